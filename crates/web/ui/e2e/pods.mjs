// Looks at workers' pods on the page of a Fettle in a cluster: `node e2e/pods.mjs SETUP_LINK [FOLDER_FOR_SCREENSHOTS]`.
import { strict as assert } from "node:assert";
import { close, open, tell } from "./browser.mjs";

const link = process.argv[2];
assert(link, "usage: node e2e/pods.mjs SETUP_LINK [FOLDER]");
const ADMIN = { username: "ada", email: "ada@example.org", password: "violet harbour clockwork" };

async function makeAdmin() {
  const { context, page } = await open("wide", "light");
  await page.goto(link);
  await page.getByLabel("User name").fill(ADMIN.username);
  await page.getByLabel("E-mail address").fill(ADMIN.email);
  await page.getByLabel("Password").fill(ADMIN.password);
  await page.getByRole("button", { name: "Make the first admin" }).click();
  await page.getByRole("heading", { name: "Home" }).waitFor();
  await context.close();
}

async function look(size, colorScheme) {
  // A pod that has not begun has no log, which Chromium writes into its console.
  const { context, page, shown, to, signIn } = await open(size, colorScheme, ["409"]);
  await page.goto(new URL(link).origin);
  await signIn(ADMIN);
  await to("Workers & queue");
  const pods = page.getByRole("list", { name: "Pods of workers" });
  const rows = pods.getByRole("listitem");
  await rows.first().waitFor();
  assert.equal(await rows.count(), 3, "the workers' pods, and no dashboard's");
  await pods.getByText("2 restarts").waitFor();
  await pods.getByText("0/1 nodes are available: 1 Insufficient memory.").waitFor();
  await shown("pods");

  const button = page.getByRole("button", { name: "Log of fettle-worker-works" });
  await button.focus();
  await page.keyboard.press("Enter");
  const log = page.getByRole("region", { name: "Log of fettle-worker-works" });
  await log.getByText("leased job_1 to worker-1").waitFor();
  await log.getByText("(a line that may hold a secret is not shown)").waitFor();
  await log.getByText("Not shown, since they may hold a secret: 1 line.").waitFor();
  assert(!(await page.content()).includes("ghp_"), "a secret of a log is in the page");
  await shown("pod-log");
  await log.getByRole("button", { name: "More lines" }).click();
  await log.getByText("the last 2000 lines").waitFor();
  await page.keyboard.press("Escape");
  await log.getByRole("button", { name: "Close the log" }).click();
  await log.waitFor({ state: "detached" });

  await page.getByRole("button", { name: "Log of fettle-worker-waits" }).click();
  await page.getByRole("alert").getByText(/has no log yet: container "worker" .* is waiting to start/).waitFor();
  await shown("pod-without-log");
  await context.close();
  tell(`${size} ${colorScheme} is looked at`);
}

await makeAdmin();
await Promise.all([look("wide", "light"), look("phone", "dark")]);
await Promise.all([look("wide", "dark"), look("phone", "light")]);
await close("pods");
