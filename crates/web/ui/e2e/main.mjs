// Drives the real pages of a running Fettle that nobody has an account on yet: `node e2e/main.mjs SETUP_LINK [FOLDER_FOR_SCREENSHOTS]`.
import { strict as assert } from "node:assert";
import { close, open, tell } from "./browser.mjs";

const link = process.argv[2];
assert(link, "usage: node e2e/main.mjs SETUP_LINK [FOLDER]");
const base = new URL(link).origin;
const ADMIN = { username: "ada", email: "ada@example.org", password: "violet harbour clockwork" };
const VIEWER = { username: "vic", email: "vic@example.org", password: "seven copper lanterns" };
/** A Run with its tests before and after, on a busy machine. */
const RUN_MS = 120_000;
/** The demo's model refuses it the first time. */
const REFUSED = "Refused once: the last page of a range";
const TWICE = "Two tries at the last page of a range";

/** From the terminal's link to a pull request that was asked for in the browser, and to a session that somebody else ends. */
async function story() {
  // Chromium writes each refusal into its console.
  const { context, page, shown, to } = await open("wide", "light", ["401", "404", "409", "422"]);
  await page.goto(link);
  await page.getByRole("heading", { name: "Make the first admin" }).waitFor();
  assert(!page.url().includes("token"), "the token stays in the address");
  assert.notEqual(await page.getByLabel("Setup token").inputValue(), "");
  await shown("setup");
  for (const [size, colorScheme] of [["wide", "dark"], ["phone", "light"], ["phone", "dark"]]) {
    const other = await open(size, colorScheme);
    await other.page.goto(link);
    await other.page.getByRole("heading", { name: "Make the first admin" }).waitFor();
    await other.shown("setup");
    await other.context.close();
  }
  await page.getByLabel("User name").fill(ADMIN.username);
  await page.getByLabel("E-mail address").fill(ADMIN.email);
  await page.getByLabel("Password").fill("password1234");
  await page.getByRole("button", { name: "Make the first admin" }).click();
  await page.getByText(/easily guessed/).waitFor();
  await page.getByLabel("Password").fill(ADMIN.password);
  await page.getByRole("button", { name: "Make the first admin" }).click();
  await page.getByRole("heading", { name: "Home" }).waitFor();
  tell("the first admin is in");

  const title = "<img src=x onerror=document.title='run'> the last page of a range is missing";
  await page.getByLabel("What to do").fill(`${title}\n\`2-4\` prints two pages.`);
  await page.getByLabel("Repository").fill("paper/pages");
  await page.getByRole("button", { name: "Start" }).click();
  await page.getByRole("heading", { name: title }).waitFor();
  await page.getByLabel("Say something to whoever works on it").fill("Mind the single page.");
  await page.getByRole("button", { name: "Send" }).dblclick();
  await page.getByRole("region", { name: "Messages" }).getByText("Mind the single page.").waitFor();
  const words = page.getByRole("region", { name: "The model is saying, word by word" });
  await words.getByText(/Ranges are/).waitFor({ timeout: RUN_MS });
  // They may have ended while the page is looked at.
  await shown("words");
  // A network that is lost for a moment: what happens meanwhile is told afterwards, once.
  await page.evaluate(() => dispatchEvent(new Event("offline")));
  await page.getByText("Not live, trying again").waitFor({ state: "attached" });
  await page.evaluate(() => dispatchEvent(new Event("online")));
  await page.getByText("Live", { exact: true }).waitFor({ state: "attached" });
  const step = page.getByRole("list", { name: "What happened" }).getByText(/^view src\/lib.rs/);
  await step.first().waitFor();
  await words.getByText(/Ranges are/).waitFor({ state: "detached" });
  tell("words were read while they were said");
  await page.getByText("That is all that happened.").waitFor({ timeout: RUN_MS });
  await page.getByRole("link", { name: /^Pull request #/ }).waitFor();
  await page.getByText("Proven", { exact: true }).first().waitFor();
  assert(!(await page.title()).startsWith("run"), "a title ran as a script");
  assert.equal(await page.getByText("Mind the single page.", { exact: true }).count(), 1, "two clicks are one message");
  for (const once of [/^Taken up by/, /^Done: ready pr/, /^the new test fails on the base$/]) {
    assert.equal(await page.getByText(once).count(), 1, `${once} is told once`);
  }
  await page.getByRole("tab", { name: "Proof" }).click();
  await page.waitForURL(/tab=proof$/);
  await page.reload();
  await page.getByRole("heading", { name: "Commands that were run" }).waitFor();
  await page.goBack();
  await page.getByRole("tab", { name: "Story", selected: true }).waitFor();
  const many = await Promise.all(Array.from({ length: 8 }, () => context.newPage()));
  await Promise.all(many.map((tab) => tab.goto(page.url())));
  for (const tab of many) {
    await tab.getByText("Live", { exact: true }).waitFor({ state: "attached" });
    await tab.getByText("That is all that happened.").waitFor();
  }
  await Promise.all(many.map((tab) => tab.close()));
  tell("eight more tabs follow, too");
  tell("a Task became a pull request");

  await to("Home");
  await page.getByLabel("What to do").fill(`${REFUSED}\n\`2-4\` prints two pages.`);
  await page.getByLabel("Repository").fill("paper/pages");
  await page.getByRole("button", { name: "Start" }).click();
  await page.getByRole("heading", { name: REFUSED }).waitFor();
  const elsewhen = await context.newPage();
  await elsewhen.goto(page.url());
  for (const one of [page, elsewhen]) await one.getByText("That is all that happened.").waitFor({ timeout: RUN_MS });
  await page.getByText("Done: failed").waitFor();
  await shown("failed");
  const phone = await open("phone", "dark");
  await phone.page.goto(base);
  await phone.signIn(ADMIN);
  await phone.page.goto(page.url());
  await phone.page.getByText("That is all that happened.").waitFor();
  await page.getByRole("button", { name: "Try again" }).click();
  await phone.page.getByText(/str_replace$/).waitFor({ timeout: RUN_MS });
  await phone.shown("words");
  await phone.page.getByRole("button", { name: "Menu" }).click();
  await phone.page.getByRole("button", { name: "Sign out" }).click();
  await phone.page.getByRole("heading", { name: "Sign in" }).waitFor();
  await phone.context.close();
  for (const one of [page, elsewhen]) {
    // Nothing of it is there without a feed that goes on.
    await one.getByText("took it up again").waitFor();
    await one.getByRole("link", { name: /^Pull request #/ }).waitFor({ timeout: RUN_MS });
  }
  await elsewhen.close();
  tell("what was taken up again went on live, in another tab as well");

  await to("Models");
  const server = await page.getByRole("list", { name: "Models" }).getByText(/^http:/).innerText();
  await page.getByRole("button", { name: "Add a model" }).click();
  const adds = page.getByRole("dialog", { name: "Add a model" });
  await adds.getByLabel("Name", { exact: true }).fill("second");
  await adds.getByLabel("Address").fill("nowhere");
  await adds.getByLabel("Its name there").fill("scripted");
  await adds.getByLabel("API key").fill("sk-never-shown-again-7f");
  await adds.getByRole("button", { name: "Add it" }).click();
  await adds.getByText(/begins with http/).waitFor();
  await shown("add-model");
  await adds.getByLabel("Address").fill(server);
  await adds.getByRole("button", { name: "Add it" }).click();
  await adds.waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Try second" }).click();
  await page.getByText(/Answered in/).first().waitFor();
  await page.getByText("“ready”").waitFor();
  assert(!(await page.content()).includes("sk-never-shown-again-7f"), "a key is in the page");
  await shown("model-tried");
  await to("Repositories");
  await page.getByRole("textbox", { name: "Add a repository" }).fill("paper/nothing");
  await page.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByRole("alert").getByText(/does not exist/).waitFor();
  await page.getByRole("textbox", { name: "Add a repository" }).fill("paper/pages");
  await page.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByText("paper/pages is looked at for labels from now on").waitFor();
  tell("a model and a repository were added");

  await to("Home");
  await page.getByLabel("What to do").fill(`${TWICE}\n\`2-4\` prints two pages.`);
  await page.getByLabel("Repository").fill("paper/pages");
  await page.getByLabel("scripted", { exact: true }).check();
  await page.getByLabel("second", { exact: true }).check();
  await page.getByRole("button", { name: "Start" }).click();
  await page.getByRole("heading", { name: TWICE }).waitFor();
  await page.getByRole("tab", { name: "Runs" }).click();
  await to("Workers & queue");
  await page.getByRole("list", { name: "Workers" }).getByText(/^Last: /).first().waitFor();
  await shown("at-work");
  await page.goBack();
  const choose = page.getByRole("button", { name: "Make the pull request from run 2" });
  await choose.waitFor({ timeout: RUN_MS });
  await page.getByText("choose the one that is published").waitFor({ timeout: RUN_MS });
  assert.equal(await page.getByRole("link", { name: /pull request #/i }).count(), 0);
  await page.getByRole("region", { name: "Change against change" }).getByText("src/lib.rs").nth(1).waitFor();
  await shown("choice");
  await choose.click();
  await page.getByRole("link", { name: /pull request #/i }).waitFor();
  await page.getByRole("columnheader", { name: "2. second published" }).waitFor();
  tell("one of two Runs was chosen");

  await to("Models");
  await page.getByRole("button", { name: "Remove second" }).click();
  await page.getByRole("dialog", { name: /Remove the model/ }).getByRole("button", { name: "Remove it" }).click();
  await page.getByRole("button", { name: "Try second" }).waitFor({ state: "detached" });
  await to("Repositories");
  await page.getByRole("button", { name: "Remove paper/pages" }).click();
  await page.getByRole("dialog", { name: "Remove paper/pages?" }).getByRole("button", { name: "Remove it" }).click();
  await page.getByRole("button", { name: "Remove paper/pages" }).waitFor({ state: "detached" });
  tell("a model and a repository were removed");

  const elsewhere = await open("wide", "light", ["401"]);
  await elsewhere.page.goto(base);
  await elsewhere.signIn(ADMIN);
  await page.getByRole("link", { name: /My account/ }).click();
  await page.getByRole("button", { name: /^End the session of/ }).click();
  await page.getByRole("list", { name: "Sessions" }).getByRole("listitem").nth(1).waitFor({ state: "detached" });
  await elsewhere.to("Tasks");
  await elsewhere.page.getByText("You are signed out here").waitFor();
  await elsewhere.context.close();
  tell("an ended session is signed out");

  await page.getByRole("button", { name: "New API key" }).click();
  await page.getByLabel("Name").fill("nightly script");
  await page.getByRole("button", { name: "Make the key" }).click();
  const made = await page.getByLabel("the new key", { exact: true }).inputValue();
  const answer = await context.request.get(`${base}/api/v1/me`, { headers: { "X-API-Key": made } });
  assert.equal((await answer.json()).via, "api_key");
  await page.getByRole("button", { name: "I have it" }).click();
  await page.getByRole("button", { name: "Remove the key nightly script" }).waitFor();

  await to("Users & keys");
  await page.getByRole("button", { name: "Add a user" }).click();
  const dialog = page.getByRole("dialog", { name: "Add a user" });
  await dialog.getByLabel("User name").fill(VIEWER.username);
  await dialog.getByLabel("E-mail address").fill(VIEWER.email);
  await dialog.getByLabel("Password").fill(VIEWER.password);
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await page.getByRole("combobox", { name: "Role of vic" }).waitFor();
  await page.getByRole("combobox", { name: "Role of ada" }).selectOption("viewer");
  await page.getByRole("alert").getByText(/last active admin/).waitFor();
  tell("the last admin stays one");

  await page.keyboard.press("Control+k");
  await page.getByRole("combobox", { name: "Page, Task or command" }).waitFor();
  await page.keyboard.type("sign out");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  assert.equal(await page.getByText("You are signed out here").count(), 0);
  await page.getByLabel("User name or e-mail address").fill("nobody");
  await page.getByLabel("Password").fill("nothing");
  await page.getByRole("button", { name: "Sign in", exact: true }).click();
  await page.getByText(/user name or password is wrong/).waitFor();
  await context.close();

  const viewer = await open("wide", "light");
  await viewer.page.goto(base);
  await viewer.signIn(VIEWER);
  await viewer.page.getByText("Not allowed to the role viewer.").waitFor();
  assert.equal(await viewer.page.getByRole("link", { name: "Users & keys" }).count(), 0);
  await viewer.context.close();
  tell("a viewer only looks");
}

/** Every page as it looks. */
async function tour(size, colorScheme) {
  const { context, page, shown, to, signIn } = await open(size, colorScheme);
  await page.goto(base);
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  await shown("sign-in");
  await signIn(ADMIN);
  await page.getByText("Live", { exact: true }).waitFor({ state: "attached" });
  await page.getByRole("list").last().waitFor();
  await shown("home");
  await to("Tasks");
  await page.getByRole("heading", { name: "Tasks" }).waitFor();
  const solved = page.getByRole("link", { name: "The last page of a range is not printed", exact: true });
  await solved.waitFor();
  await shown("tasks");
  await solved.click();
  await page.getByText("That is all that happened.").waitFor();
  await shown("task");
  await page.getByRole("tab", { name: "Work" }).click();
  await page.getByRole("button", { name: /^view src\/lib.rs/ }).first().click();
  await page.getByText("What came of it").waitFor();
  await shown("work");
  await page.getByRole("tab", { name: "Change" }).click();
  await page.getByRole("button", { name: /src\/lib\.rs/ }).waitFor();
  await shown("change");
  await page.getByRole("tab", { name: "Proof" }).click();
  await page.getByRole("heading", { name: "Commands that were run" }).waitFor();
  await shown("proof");
  await to("Tasks");
  await page.getByRole("link", { name: TWICE, exact: true }).click();
  await page.getByRole("tab", { name: "Runs" }).click();
  await page.getByRole("region", { name: "Change against change" }).getByText("src/lib.rs").nth(1).waitFor();
  await shown("compare");
  await to("Workers & queue");
  await page.getByRole("heading", { name: "What runs by the clock" }).waitFor();
  await shown("queue");
  await to("Repositories");
  await page.getByRole("list", { name: "Repositories" }).getByText("paper/pages").waitFor();
  await shown("repositories");
  await to("Models");
  await page.getByRole("list", { name: "Models" }).getByText("scripted").first().waitFor();
  await shown("models");
  await to("GPUs");
  await page.getByRole("list", { name: "Devices" }).getByRole("listitem").first().waitFor();
  await shown("gpus");
  await to("Settings");
  await page.getByText("listen", { exact: true }).first().waitFor();
  await shown("settings");
  await to("Users & keys");
  await page.getByRole("button", { name: /^vic/ }).click();
  await page.getByRole("button", { name: "Make inactive: vic" }).waitFor();
  await shown("users");
  await to("Audit");
  await page.getByText("users.create").first().click();
  await shown("audit");
  if (size === "phone") await page.getByRole("button", { name: "Menu" }).click();
  if (size === "phone") await shown("menu");
  await page.getByRole("link", { name: /My account/ }).click();
  await page.getByRole("list", { name: "API keys" }).waitFor();
  await shown("account");
  await page.getByRole("button", { name: "New API key" }).click();
  await shown("new-key");
  await page.keyboard.press("Escape");
  await page.keyboard.press("Control+k");
  await page.getByRole("combobox", { name: "Page, Task or command" }).waitFor();
  await shown("palette");
  await context.close();
  tell(`${size} ${colorScheme} is looked at`);
}

await story();
await Promise.all([tour("wide", "light"), tour("phone", "dark")]);
await Promise.all([tour("wide", "dark"), tour("phone", "light")]);
await close("pages");
