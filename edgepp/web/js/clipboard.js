// Copying. The clipboard's own interface is missing where the page comes over plain HTTP from a LAN.

import { h } from "./dom.js";

/** Copy `text`; returns whether it worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text);
  }
}

function copiedBySelection(text) {
  const had = document.activeElement;
  const area = h("textarea", { class: "visually-hidden", value: text, "aria-hidden": "true" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  had?.focus?.();
  return done;
}
