// Dialogues over the native element, which holds the focus and gives it back; and menus over native popovers.

import { h, icon, iconButton, newId } from "./dom.js";

/**
 * Open a dialogue and return { element, close, closed }. `closed` resolves to what `close` was given, null by Esc.
 * With `sheet` it lies along an edge of the window.
 */
export function openDialog({ title, body, actions = [], sheet = false }) {
  const heading = newId("dialog");
  const element = h("dialog", { class: sheet ? "dialog sheet" : "dialog", "aria-labelledby": heading },
    h("div", { class: "dialog-body" },
      h("div", { class: "dialog-head" }, h("h2", { id: heading }, title), iconButton("close", "Close", () => close(null), { class: "small" })),
      body,
      actions.length > 0 && h("div", { class: "dialog-actions" }, actions)));
  let result = null;
  const close = (value = null) => {
    result = value;
    element.close();
  };
  const closed = new Promise((resolve) => {
    element.addEventListener("close", () => {
      element.remove();
      resolve(result);
    });
  });
  element.addEventListener("click", (event) => event.target === element && close(null)); // the backdrop
  document.body.append(element);
  element.showModal();
  return { element, close, closed };
}

/** Call `act` when Enter is pressed in the field `input` of a dialogue. */
export function onEnter(input, act) {
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // or it would press the button that gets the focus back
    act();
  });
}

/** Whether the reader agrees. */
export async function confirmed({ title, text, action, danger = false }) {
  const yes = h("button", { type: "button", class: danger ? "button danger" : "button primary", onclick: () => dialog.close(true) }, action);
  const no = h("button", { type: "button", class: "button", onclick: () => dialog.close(false) }, "Cancel");
  const dialog = openDialog({ title, body: h("p", {}, text), actions: [no, yes] });
  return (await dialog.closed) === true;
}

/**
 * Open a menu at the button `anchor`. Items are { label, icon, run, danger, href, end, checked }, "line", or { note }.
 * Arrow keys, Home and End move; Esc and a click elsewhere close.
 */
export function openMenu(anchor, items) {
  const element = h("div", { class: "menu", role: "menu", popover: "auto" }, items.map((item) => itemOf(item, () => element.hidePopover())));
  document.body.append(element);
  anchor.setAttribute("aria-expanded", "true");
  element.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    anchor.removeAttribute("aria-expanded");
    const had = element.contains(document.activeElement) || document.activeElement === document.body;
    element.remove();
    if (had && anchor.isConnected) anchor.focus();
  });
  element.addEventListener("keydown", (event) => move(element, event));
  element.showPopover();
  lay(element, anchor.getBoundingClientRect());
  element.querySelector(".menu-item")?.focus();
  return element;
}

function itemOf(item, close) {
  if (item === "line") return h("div", { class: "menu-line", role: "separator" });
  if (item.note) return h("div", { class: "menu-note", role: "presentation" }, item.note);
  const inside = [item.icon && icon(item.icon), h("span", {}, item.label), (item.end || item.checked) && h("span", { class: "end" }, item.checked ? icon("check") : item.end)];
  const role = item.checked === undefined ? "menuitem" : "menuitemradio";
  const attributes = { class: `menu-item${item.danger ? " danger" : ""}`, role, tabindex: "-1", "aria-checked": item.checked === undefined ? null : String(item.checked) };
  if (item.href) return h("a", { ...attributes, href: item.href, onclick: close }, inside);
  return h("button", { type: "button", ...attributes, onclick: () => (close(), item.run()) }, inside);
}

function move(menu, event) {
  const items = [...menu.querySelectorAll(".menu-item")];
  const at = items.indexOf(document.activeElement);
  const next = { ArrowDown: (at + 1) % items.length, ArrowUp: (at - 1 + items.length) % items.length, Home: 0, End: items.length - 1 }[event.key];
  if (event.key === "Tab") menu.hidePopover();
  if (next === undefined) return;
  event.preventDefault();
  items[next].focus();
}

function lay(menu, around) {
  const { width, height } = menu.getBoundingClientRect();
  const left = Math.min(around.left, innerWidth - width - 8);
  const below = around.bottom + 4;
  const top = below + height <= innerHeight - 8 ? below : Math.max(8, around.top - height - 4);
  menu.style.left = `${Math.max(8, left)}px`;
  menu.style.top = `${top}px`;
}
