const STORED = "fettle.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

export function theme(): "light" | "dark" {
  const chosen = localStorage.getItem(STORED);
  if (chosen === "light" || chosen === "dark") return chosen;
  return dark.matches ? "dark" : "light";
}

export function applyTheme() {
  document.documentElement.dataset.theme = theme();
}

export function turnTheme() {
  localStorage.setItem(STORED, theme() === "dark" ? "light" : "dark");
  applyTheme();
}

dark.addEventListener("change", applyTheme);
