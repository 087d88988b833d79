// Runs before the first paint, so that a dark page does not flash white. The rest is in theme.js.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("edgepp.theme");
  } catch {
    chosen = null; // storage is forbidden: the system decides
  }
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen === "dark" || chosen === "light" ? chosen : dark ? "dark" : "light";
})();
