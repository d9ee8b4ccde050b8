// A browser that looks at pages: it notices whatever goes wrong in them, and leaves pictures.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { strict as assert } from "node:assert";
import { chromium } from "playwright-core";

/** Where pictures go; none are left without. */
const folder = process.argv[3];
const SIZES = { wide: { width: 1360, height: 900 }, phone: { width: 390, height: 844 } };

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const found = [];
const began = Date.now();
export const tell = (text) => console.log(`${((Date.now() - began) / 1000).toFixed(1)} s: ${text}`);

/** A browser of its own. What it says in its console is wrong, but for the answers that a story expects. */
export async function open(size, colorScheme, expected = []) {
  const context = await browser.newContext({ viewport: SIZES[size], colorScheme });
  const page = await context.newPage();
  const wrong = (text) => expected.some((one) => text.includes(one)) || found.push(`${page.url()}: ${text}`);
  page.on("console", (message) => message.type() === "error" && wrong(message.text()));
  page.on("pageerror", (error) => wrong(String(error)));
  // What is half faded in can be read by nobody yet.
  const settled = () =>
    page.evaluate(() => {
      const ends = document.getAnimations().filter((one) => one.effect.getComputedTiming().endTime !== Infinity);
      return Promise.allSettled(ends.map((one) => one.finished)).then(() => undefined);
    });
  const shown = async (name) => {
    await settled();
    if (folder) await page.screenshot({ path: `${folder}/${name}-${size}-${colorScheme}.png`, fullPage: true });
    // By the debugger's way in, which the page's policy does not reach.
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    for (const one of violations.filter(({ impact }) => impact === "serious" || impact === "critical")) {
      found.push(`${name} ${size} ${colorScheme}: ${one.id}: ${one.nodes.map((node) => node.html).join(" | ").slice(0, 400)}`);
    }
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    if (wide) found.push(`${name} ${size}: the page scrolls sideways`);
  };
  const to = async (label, exact = true) => {
    if (size === "phone") await page.getByRole("button", { name: "Menu" }).click();
    await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name: label, exact }).click();
  };
  const signIn = async ({ username, password }) => {
    await page.getByLabel("User name or e-mail address").fill(username);
    await page.getByLabel("Password").fill(password);
    await page.getByRole("button", { name: "Sign in", exact: true }).click();
    await page.getByRole("heading", { name: "Home" }).waitFor();
  };
  return { context, page, shown, to, signIn };
}

/** Fails with all that was found. */
export async function close(what) {
  await browser.close();
  for (const one of new Set(found)) console.error(one);
  assert.equal(found.length, 0, `${found.length} things are wrong`);
  console.log(`${what}: all well`);
}
