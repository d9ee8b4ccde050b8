// Drives the real pages of a running Fettle: `node e2e/main.mjs ADDRESS ADMIN_KEY [FOLDER_FOR_SCREENSHOTS]`.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { strict as assert } from "node:assert";
import { chromium } from "playwright-core";

const [base, key, folder] = process.argv.slice(2);
assert(base && key, "usage: node e2e/main.mjs ADDRESS ADMIN_KEY [FOLDER]");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const found = [];

for (const [size, viewport] of [["wide", { width: 1360, height: 900 }], ["phone", { width: 390, height: 844 }]]) {
  for (const colorScheme of ["light", "dark"]) {
    const context = await browser.newContext({ viewport, colorScheme });
    // By the debugger's way in, which the page's policy does not reach.
    const page = await context.newPage();
    page.on("console", (message) => message.type() === "error" && found.push(`${page.url()}: ${message.text()}`));
    page.on("pageerror", (error) => found.push(`${page.url()}: ${error}`));
    // What is half faded in can be read by nobody yet.
    const settled = () =>
      page.evaluate(() => {
        const ends = document.getAnimations().filter((one) => one.effect.getComputedTiming().endTime !== Infinity);
        return Promise.allSettled(ends.map((one) => one.finished)).then(() => undefined);
      });
    const shown = async (name) => {
      await settled();
      if (folder) await page.screenshot({ path: `${folder}/${name}-${size}-${colorScheme}.png`, fullPage: true });
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      for (const one of violations.filter(({ impact }) => impact === "serious" || impact === "critical")) {
        found.push(`${name} ${size} ${colorScheme}: ${one.id}: ${one.nodes.map((node) => node.html).join(" | ").slice(0, 400)}`);
      }
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      if (wide) found.push(`${name} ${size}: the page scrolls sideways`);
    };
    await page.goto(base);
    await shown("sign-in");
    await page.getByLabel("Admin key").fill(key);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("heading", { name: "Home" }).waitFor();
    await page.getByText("Live", { exact: true }).waitFor({ state: "attached" });
    await page.getByRole("list").last().waitFor();
    await shown("home");
    await page.getByRole("link", { name: "Tasks", exact: true }).click();
    await page.getByRole("heading", { name: "Tasks" }).waitFor();
    await shown("tasks");
    await page.locator("main ul a").first().click();
    await page.getByText("That is all that happened.").waitFor();
    await shown("task");
    await page.getByRole("tab", { name: "Change" }).click();
    await page.getByRole("button", { name: /src\/lib\.rs/ }).waitFor();
    await shown("change");
    await page.getByRole("tab", { name: "Proof" }).click();
    await page.getByRole("heading", { name: "Commands that were run" }).waitFor();
    await shown("proof");
    await page.getByRole("link", { name: "Queue" }).click();
    await page.getByRole("heading", { name: "What runs by the clock" }).waitFor();
    await shown("queue");
    await page.keyboard.press("Control+k");
    await page.getByRole("combobox", { name: "Page or Task" }).waitFor();
    await shown("palette");
    await context.close();
  }
}
await browser.close();
for (const one of new Set(found)) console.error(one);
assert.equal(found.length, 0, `${found.length} things are wrong`);
console.log("pages: all well");
