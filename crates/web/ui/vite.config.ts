import { defineConfig } from "vite";
import react from "@vitejs/plugin-react";
import tailwindcss from "@tailwindcss/vite";

// Names without digests: the built files are committed, and each is asked for again by its entity tag.
export default defineConfig({
  plugins: [react(), tailwindcss()],
  // `npm run dev` shows the pages as they are edited, in front of a running Fettle.
  server: { proxy: { "/api": process.env.FETTLE ?? "http://127.0.0.1:8080" } },
  build: {
    outDir: "../dist",
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rollupOptions: {
      output: {
        entryFileNames: "assets/main.js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
});
