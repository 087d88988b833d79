// Where a question is written. Enter sends, Shift+Enter begins a line, Esc stops the answer.

import { h, icon, newId } from "../dom.js";
import { keep, kept } from "../kept.js";

/**
 * A composer: { element, set(answering), focus, draft(conversation), suggest(text) }. `send(text)` tells whether
 * the text was sent; `stop()` and `editLast()` act.
 */
export function composerView({ send, stop, editLast }) {
  const id = newId("question");
  const area = h("textarea", { dir: "auto", id, class: "composer-text", rows: 1, placeholder: "Ask something", enterkeyhint: "send", autocomplete: "off" });
  const button = h("button", { type: "button", class: "composer-button", "aria-label": "Send" }, icon("send"));
  const element = h("div", { class: "composer" },
    h("div", { class: "composer-box" }, h("label", { class: "visually-hidden", htmlFor: id }, "Your question"), area, button),
    h("p", { class: "composer-hint" }, "Models make mistakes. Conversations stay in this browser."));
  let answering = false;
  let draftName = "";

  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
    button.disabled = !answering && !area.value.trim();
  };
  const act = () => {
    if (answering) return stop();
    const text = area.value.trim();
    if (!text || !send(text)) return undefined;
    area.value = "";
    keep(draftName, null, "sessionStorage");
    return fit();
  };
  area.addEventListener("input", () => {
    fit();
    keep(draftName, area.value || null, "sessionStorage");
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!answering) act();
    } else if (event.key === "ArrowUp" && !area.value) {
      event.preventDefault();
      editLast();
    }
  });
  element.querySelector(".composer-box").addEventListener("click", (event) => event.target === event.currentTarget && area.focus());
  button.addEventListener("click", act);

  return {
    element,
    focus: () => area.focus(),
    /** Show whether an answer is being written. */
    set: (isAnswering) => {
      if (isAnswering !== answering) button.replaceChildren(icon(isAnswering ? "stop" : "send"));
      answering = isAnswering;
      button.setAttribute("aria-label", answering ? "Stop" : "Send");
      button.title = answering ? "Stop (Esc)" : "Send (Enter)";
      fit();
    },
    /** Write on what was begun in the conversation `id`. */
    draft: (conversation) => {
      const typed = draftName ? "" : area.value; // before the conversation was read
      draftName = `draft.${conversation}`;
      area.value = typed || (kept(draftName, "sessionStorage") ?? "");
      fit();
    },
    /** Put `text` there, for the reader to send. */
    suggest: (text) => {
      area.value = text;
      fit();
      area.focus();
    },
  };
}
