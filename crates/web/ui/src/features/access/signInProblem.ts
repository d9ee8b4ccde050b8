/** What the sign-in by a provider says when it has not signed somebody in, in words. */
const SENTENCES: Record<string, string> = {
  refused: "The provider did not sign you in.",
  nothing: "The provider said nothing that one can be signed in by. Begin again.",
  not_begun_here: "This sign-in was not begun in this browser, or too long ago. Begin again.",
  unfit: "What the provider said is not good for this sign-in. Begin again; if it goes on, an admin finds the reason in the audit log.",
  unverified: "The provider says no e-mail address of yours that it has verified. Verify it there first.",
  not_allowed: "Your e-mail address is not among those that may sign in here. An admin can change that.",
  inactive: "Your account is inactive. An admin can change that.",
  email_has_account: "There is an account with your e-mail address already, which signs in with its password.",
  away: "The provider of sign-ins does not answer. Try again in a moment.",
  too_many: "Too many sign-ins from where you are. Wait a minute.",
  failed: "You could not be signed in just now. Try again; an admin finds the reason in the log.",
};

/** From the address that the failed sign-in led to; taken out of it at once, so that it is not said again when the page is loaded anew. */
function take(): string | null {
  if (location.pathname !== "/sign-in") return null;
  const word = new URLSearchParams(location.search).get("problem");
  history.replaceState(null, "", "/");
  return word === null ? null : (SENTENCES[word] ?? SENTENCES.failed ?? null);
}

export const signInProblem = take();
