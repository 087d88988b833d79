// Short messages at the bottom, which go by themselves; one may have an action, such as to undo.

import { announce, h } from "./dom.js";

const SHOWN_MS = 5000;
const WITH_ACTION_MS = 10_000;
const CHARACTER_MS = 80; // to read one

/** Show `text`; `action` is { label, run }. Resolves to whether the action was taken, once the message has gone. */
export function toast(text, action = null) {
  return new Promise((resolve) => {
    let timer = null;
    const done = (taken) => {
      clearTimeout(timer);
      element.remove();
      resolve(taken);
    };
    const button = action && h("button", { type: "button", class: "button small", onclick: () => (action.run(), done(true)) }, action.label);
    const element = h("div", { class: "toast" }, h("span", {}, text), button);
    const wait = () => (timer = setTimeout(() => done(false), Math.max(action ? WITH_ACTION_MS : SHOWN_MS, CHARACTER_MS * text.length)));
    element.addEventListener("pointerenter", () => clearTimeout(timer));
    element.addEventListener("pointerleave", wait);
    element.addEventListener("focusin", () => clearTimeout(timer));
    element.addEventListener("focusout", wait);
    document.getElementById("toasts").append(element);
    announce(action ? `${text} ${action.label} is possible for a few seconds.` : text);
    wait();
  });
}
