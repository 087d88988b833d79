// A block of code: its language, a button that copies, and the text, which grows while it is written.

import { copyText } from "../clipboard.js";
import { fill, h, icon } from "../dom.js";
import { toned } from "./code_tones.js";

const COPIED_MS = 1600;

/** The element of a block of code in `language`, which may be empty. */
export function codeBlock(text, language) {
  const code = h("code", {}, document.createTextNode(text));
  const name = language.trim().split(/\s/)[0].slice(0, 40);
  const button = h("button", { type: "button", class: "button quiet small", onclick: () => copied(button, code.textContent) }, icon("copy"), "Copy");
  return h("div", { class: "code-block" },
    h("div", { class: "code-head" }, h("span", { class: "code-language" }, name || "text"), button),
    h("pre", { tabindex: "0", dir: "ltr", role: "region", "aria-label": name ? `Code in ${name}` : "Code" }, code));
}

/** Have the block show `text`; what only has grown is appended. */
export function setCode(block, text) {
  const code = block.querySelector("code");
  if (code.childNodes.length !== 1 || code.firstChild.nodeType !== Node.TEXT_NODE) code.replaceChildren(document.createTextNode(text)); // it had its tones already
  const node = code.firstChild;
  if (node.length <= text.length && text.startsWith(node.data)) node.appendData(text.slice(node.length));
  else node.data = text;
}

/** The block is whole: show comments, strings and words of the language in tones. */
export function finishCode(block) {
  const code = block.querySelector("code");
  const shown = toned(code.textContent, block.querySelector(".code-language").textContent);
  if (shown) code.replaceChildren(shown);
}

/** Give every plain block of code below `root` the same form. */
export function dressCode(root) {
  for (const pre of root.querySelectorAll?.("pre") ?? []) {
    if (pre.closest(".code-block")) continue;
    const language = pre.querySelector("code")?.className.match(/language-(\S+)/)?.[1] ?? "";
    const block = codeBlock(pre.textContent.replace(/\n$/, ""), language);
    pre.replaceWith(block);
    finishCode(block);
  }
}

/** Copy `text` and have `button` say so for a moment. */
export async function copied(button, text) {
  const done = await copyText(text);
  const had = [...button.childNodes];
  const label = button.classList.contains("icon-only") ? null : done ? "Copied" : "Not copied";
  fill(button, icon(done ? "check" : "alert"), label);
  setTimeout(() => fill(button, had), COPIED_MS);
}
