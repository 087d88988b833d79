// Keys that act from anywhere on the page, and the dialogue that lists them.

import { openDialog } from "../dialogs.js";
import { h } from "../dom.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const CONTROL = MAC ? "⌘" : "Ctrl";

const LIST = [
  ["Enter", "Send the question"],
  ["Shift + Enter", "Begin a new line"],
  ["Esc", "Stop the answer"],
  ["↑", "Edit the last question, where nothing is written"],
  ["/", "Write a question"],
  [`${CONTROL} + K`, "Search conversations"],
  [`${CONTROL} + Shift + O`, "New chat"],
  ["F2", "Rename the conversation that has the focus"],
  ["Del", "Delete it"],
  ["?", "This list"],
];

/** Show the shortcuts. */
export function showShortcuts() {
  const rows = LIST.map(([keys, what]) => h("div", { class: "shortcut" }, h("dt", {}, keys.split(" + ").map((key) => h("kbd", {}, key))), h("dd", {}, what)));
  openDialog({ title: "Keyboard shortcuts", body: h("dl", { class: "shortcuts" }, rows) });
}

/** Follow the keys: `acts` has stop, write, search and create; the result ends it. */
export function followKeys(acts) {
  const onKey = (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open], .menu")) return;
    const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
    const control = MAC ? event.metaKey : event.ctrlKey;
    const act = control ? withControl(event, acts) : plain(event, acts, isTyping);
    if (!act) return;
    event.preventDefault();
    act();
  };
  addEventListener("keydown", onKey);
  return () => removeEventListener("keydown", onKey);
}

function withControl(event, acts) {
  const key = event.key.toLowerCase();
  if (key === "k" && !event.shiftKey) return acts.search;
  return key === "o" && event.shiftKey ? acts.create : null;
}

function plain(event, acts, isTyping) {
  if (event.key === "Escape") return acts.stop;
  if (isTyping || event.altKey) return null;
  return { "/": acts.write, "?": showShortcuts }[event.key] ?? null;
}
