// Light or dark: the system's choice until the reader makes one. theme_first.js sets it before the first paint.

import { kept, keep } from "./kept.js";

export const THEMES = ["system", "light", "dark"];
const DARK = matchMedia("(prefers-color-scheme: dark)");

/** The reader's choice: one of THEMES. */
export function theme() {
  const chosen = kept("theme");
  return THEMES.includes(chosen) ? chosen : "system";
}

/** Choose one of THEMES, for this browser. */
export function setTheme(chosen) {
  keep("theme", chosen === "system" ? null : chosen);
  apply();
}

function apply() {
  const chosen = theme();
  const shown = chosen === "system" ? (DARK.matches ? "dark" : "light") : chosen;
  document.documentElement.dataset.theme = shown;
}

DARK.addEventListener("change", apply);
addEventListener("storage", (event) => event.key === "edgepp.theme" && apply());
