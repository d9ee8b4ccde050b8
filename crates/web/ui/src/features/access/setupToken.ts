/** From the link that the terminal shows; taken out of the address at once, so that no history keeps it. */
function take(): string {
  const token = /^#\/?(?:setup\?)?token=([^&]+)$/.exec(location.hash)?.[1];
  if (!token) return "";
  history.replaceState(null, "", location.pathname);
  return decodeURIComponent(token);
}

export const setupToken = take();
