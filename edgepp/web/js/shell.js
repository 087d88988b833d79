// The frame: brand, views, the panel of the current view, theme and key; and the top bar that a view fills.

import { fill, h, icon, iconButton } from "./dom.js";
import { openMenu } from "./dialogs.js";
import { place } from "./state.js";
import { setTheme, theme, THEMES } from "./theme.js";
import { showKeyDialog } from "./key_dialog.js";

const NAMES = { system: "Like the system", light: "Light", dark: "Dark" };
const ICON = { system: "system", light: "sun", dark: "moon" };

/** Draw the frame for `views`, each { name, label, icon }. */
export function drawShell(views) {
  const sidebar = document.getElementById("sidebar");
  const links = views.map((view) => h("a", { href: `#/${view.name}`, dataset: { view: view.name } }, icon(view.icon), view.label));
  const brand = h("div", { class: "brand" },
    h("a", { href: "#/chat" }, markOf(), "edgepp"),
    iconButton("close", "Close the sidebar", closeDrawer, { class: "drawer-toggle" }));
  const panel = h("div", { class: "panel", id: "panel" });
  fill(sidebar, brand, h("nav", { class: "views", "aria-label": "Views" }, links), panel, h("div", { id: "strip" }), foot());
  place.watch(({ view }) => {
    for (const link of links) {
      if (link.dataset.view === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    closeDrawer();
  });
  document.getElementById("scrim").addEventListener("click", closeDrawer);
  addEventListener("keydown", (event) => {
    const isAbove = document.querySelector("dialog[open], .menu"); // which Esc closes alone, and gives the focus back
    if (event.key === "Escape" && sidebar.classList.contains("open") && !isAbove) closeDrawer();
  });
}

/** The part of the sidebar that belongs to the current view. */
export function panel() {
  return document.getElementById("panel");
}

/** Fill the top bar of the current view: its title, a string or a node, and actions. */
export function setTopbar(title, ...actions) {
  const heading = typeof title === "string" ? h("h1", { class: "topbar-title", dir: "auto" }, title) : title;
  fill(document.getElementById("topbar"),
    iconButton("menu", "Open the sidebar", openDrawer, { class: "drawer-toggle" }), heading, h("div", { class: "topbar-actions" }, actions));
}

/** Open the sidebar on a phone. */
export function openDrawer() {
  const sidebar = document.getElementById("sidebar");
  sidebar.classList.add("open");
  document.getElementById("scrim").hidden = false;
  sidebar.querySelector("a, button")?.focus();
}

/** Close the sidebar on a phone. */
export function closeDrawer() {
  const sidebar = document.getElementById("sidebar");
  if (!sidebar.classList.contains("open")) return;
  sidebar.classList.remove("open");
  document.getElementById("scrim").hidden = true;
  document.querySelector("#topbar .drawer-toggle")?.focus();
}

function markOf() {
  const mark = icon("brand");
  mark.classList.add("mark");
  return mark;
}

function foot() {
  const themes = iconButton(ICON[theme()], "Colours", () => {
    openMenu(themes, THEMES.map((one) => ({
      label: NAMES[one], icon: ICON[one], checked: theme() === one,
      run: () => {
        setTheme(one);
        fill(themes, icon(ICON[one]));
      },
    })));
  }, { "aria-haspopup": "menu" });
  const keys = iconButton("key", "API key", () => showKeyDialog());
  return h("div", { class: "sidebar-foot" }, themes, keys, h("span", { class: "spacer" }), h("span", { id: "foot-end" }));
}
