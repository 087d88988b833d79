// The elements of one message: a question, which can be edited, or an answer with its figures.

import { h, icon, iconButton, fill, newId } from "../dom.js";
import { figuresOf } from "./answering.js";
import { copied } from "./code_block.js";
import { GrowingMarkdown } from "./markdown.js";

/**
 * A message as it is shown: { element, update }. `acts` are what its buttons do: edit(message, text), retry(message),
 * goOn(message), pick(message, step).
 */
export function messageView(thread, message, acts) {
  return message.role === "user" ? questionView(thread, message, acts) : answerView(thread, message, acts);
}

function questionView(thread, message, acts) {
  const text = h("div", { class: "question-text", dir: "auto" });
  const bar = h("div", { class: "message-bar" });
  const element = h("article", { class: "message question", "aria-label": "Your question", dataset: { id: message.id } }, text, bar);
  const update = () => {
    if (element.classList.contains("editing")) return;
    text.textContent = message.text;
    fill(bar, versionsOf(thread, message, acts),
      iconButton("edit", "Edit the question", edit, { class: "small" }),
      copyButton("Copy the question", () => message.text));
  };
  const edit = () => {
    const done = () => {
      element.classList.remove("editing");
      update();
      element.querySelector("[aria-label='Edit the question']")?.focus();
    };
    element.classList.add("editing");
    fill(bar);
    fill(text, editorOf(message.text, done, (changed) => (done(), acts.edit(message, changed))));
    text.querySelector("textarea").focus();
  };
  update();
  return { element, message, update, edit };
}

function editorOf(text, cancel, send) {
  const id = newId("edit");
  const area = h("textarea", { id, class: "input", dir: "auto", value: text, rows: Math.min(12, text.split("\n").length + 1) });
  const sent = () => area.value.trim() && send(area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      sent();
    }
  });
  return h("div", { class: "editor" }, h("label", { class: "visually-hidden", htmlFor: id }, "Edited question"), area,
    h("div", { class: "dialog-actions" },
      h("button", { type: "button", class: "button small", onclick: cancel }, "Cancel"),
      h("button", { type: "button", class: "button small primary", onclick: sent }, "Ask this instead")));
}

function answerView(thread, message, acts) {
  const body = h("div", { class: "markdown" });
  const thoughts = h("div", { class: "thoughts-text", dir: "auto" });
  const thinking = h("details", { class: "thoughts", hidden: true }, h("summary", {}, icon("thought"), h("span", {}, "Thoughts")), thoughts);
  const note = h("p", { class: "answer-note", hidden: true });
  const error = h("div", { class: "answer-error" });
  const bar = h("div", { class: "message-bar" });
  const element = h("article", { class: "message answer", "aria-label": "Answer", dataset: { id: message.id } }, thinking, body, note, error, bar);
  const growing = new GrowingMarkdown(body);
  let state = null;
  const update = () => {
    growing.set(message.text);
    showThoughts(thinking, thoughts, message);
    const live = thread.live.get(message.id);
    const elsewhere = message.state === "writing" && !live;
    const waits = message.state === "writing" && !message.text && !message.reasoning;
    note.hidden = !(live?.note || elsewhere);
    note.textContent = elsewhere ? "This answer is being written in another tab." : live?.note ?? "";
    element.classList.toggle("waiting", waits);
    element.classList.toggle("writing", message.state === "writing");
    element.setAttribute("aria-busy", String(message.state === "writing"));
    const now = `${message.state} ${thread.children(message.parent).length}`;
    if (now === state) return;
    if (message.state !== "writing") growing.finish();
    state = now;
    fill(error, message.state === "failed" && errorOf(message, acts));
    fill(bar, message.state !== "writing" && barOf(thread, message, acts));
  };
  update();
  return { element, message, update, unmount: () => growing.stop() };
}

function showThoughts(thinking, element, { reasoning, text, state }) {
  if (!reasoning) return;
  const isNew = thinking.hidden;
  thinking.hidden = false;
  element.textContent = reasoning;
  const isThinking = state === "writing" && !text;
  thinking.querySelector("span").textContent = isThinking ? "Thinking" : "Thoughts";
  if (isNew && isThinking) thinking.open = true;
  if (!isThinking && thinking.open && !thinking.dataset.settled) thinking.open = false;
  if (!isThinking) thinking.dataset.settled = "true";
}

function errorOf(message, acts) {
  const { text, code } = message.error ?? { text: "The answer has failed.", code: null };
  const help = code === "context_length_exceeded" ? " Start a new chat, or edit an earlier question." : "";
  return h("div", { class: "notice danger", role: "alert" }, icon("alert"), h("span", { class: "notice-text" }, text + help),
    h("button", { type: "button", class: "button small", onclick: () => acts.retry(message) }, icon("retry"), "Try again"));
}

function barOf(thread, message, acts) {
  const canGoOn = message.text && (message.state !== "done" || message.finish === "length") && thread.path().at(-1) === message;
  const ended = message.state === "stopped" ? "stopped" : message.finish === "length" ? "reached its length" : null;
  const figures = [...figuresOf(message.stats ?? {}), ended].filter(Boolean);
  return [
    versionsOf(thread, message, acts),
    message.text && copyButton("Copy the answer", () => message.text),
    message.state !== "failed" && iconButton("retry", "Answer again", () => acts.retry(message), { class: "small" }),
    canGoOn && h("button", { type: "button", class: "button quiet small", onclick: () => acts.goOn(message) }, "Continue"),
    h("span", { class: "figures tabular", title: message.model ?? "" }, figures.map((one) => h("span", {}, one))),
  ];
}

function versionsOf(thread, message, acts) {
  const versions = thread.children(message.parent);
  if (versions.length < 2) return null;
  const at = versions.indexOf(message);
  const step = (by, name, label) => iconButton(name, label, () => acts.pick(message, by), { class: "small", disabled: !versions[at + by] });
  return h("span", { class: "versions", role: "group", "aria-label": "Versions" }, step(-1, "left", "Version before"),
    h("span", { class: "tabular", "aria-live": "off" }, `${at + 1} / ${versions.length}`), step(1, "right", "Version after"));
}

function copyButton(label, textOf) {
  const button = iconButton("copy", label, () => copied(button, textOf()), { class: "small" });
  return button;
}
