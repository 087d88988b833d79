// The settings of a conversation: what the model is told first, and how its words are drawn.

import { openDialog } from "../dialogs.js";
import { h, newId } from "../dom.js";
import { keepSettings, NO_SETTINGS } from "./library.js";

const NUMBERS = [
  { name: "temperature", label: "Temperature", hint: "0 is always the likeliest word; higher is more varied. Empty: what the model's makers recommend.", min: 0, max: 2, step: 0.05 },
  { name: "topP", label: "Top-p", hint: "Draw from the likeliest words that have this share together.", min: 0, max: 1, step: 0.01 },
  { name: "maxTokens", label: "Longest answer", hint: "In tokens, with the thoughts of a model that thinks.", empty: "As long as fits", min: 1, max: 1_000_000, step: 1 },
  { name: "seed", label: "Seed", hint: "The same number draws the same words again.", empty: "Another one each time", min: 0, max: 2 ** 53 - 1, step: 1 },
];

/** Show the settings of `thread`, and keep what the reader changes. */
export async function showSettings(thread) {
  const { settings } = thread.conversation;
  const systemId = newId("system");
  const system = h("textarea", { id: systemId, class: "input", rows: 5, value: settings.system, placeholder: "For example: answer in short sentences." });
  const fields = NUMBERS.map((described) => ({ ...described, input: inputOf(described, settings[described.name]) }));
  const always = h("input", { type: "checkbox" });
  const body = h("div", { class: "settings" },
    h("div", { class: "field" }, h("label", { htmlFor: systemId }, "System prompt"), system, h("span", { class: "hint" }, "The model reads this before the conversation.")),
    h("div", { class: "settings-numbers" }, fields.map(({ label, hint, input }) => h("div", { class: "field" }, h("label", { htmlFor: input.id }, label), input, h("span", { class: "hint", id: `${input.id}-hint` }, hint)))),
    h("label", { class: "check" }, always, "Use these for new chats too"));
  const reset = h("button", { type: "button", class: "button quiet", onclick: () => {
    system.value = "";
    for (const { input } of fields) input.value = "";
  } }, "Reset");
  const save = h("button", { type: "button", class: "button primary", onclick: () => {
    const wrong = fields.find(({ input }) => !input.reportValidity());
    if (!wrong) dialog.close(read(system, fields));
  } }, "Save");
  const dialog = openDialog({ title: "Settings of this chat", body, actions: [reset, save], sheet: true });
  const chosen = await dialog.closed;
  if (!chosen) return;
  thread.conversation.settings = { ...NO_SETTINGS, ...settings, ...chosen };
  if (always.checked) keepSettings(chosen);
  await thread.save();
  thread.tell(false);
}

/** How many settings differ from a new conversation's. */
export function numSettings(settings) {
  return (settings.system.trim() ? 1 : 0) + NUMBERS.filter(({ name }) => settings[name] !== null).length;
}

function inputOf({ min, max, step, empty = "Recommended" }, value) {
  const id = newId("setting");
  return h("input", { id, class: "input tabular", type: "number", inputmode: "decimal", min, max, step, value: value ?? "", placeholder: empty, "aria-describedby": `${id}-hint` });
}

function read(system, fields) {
  const numbers = fields.map(({ name, input }) => [name, input.value === "" ? null : input.valueAsNumber]);
  return { system: system.value, ...Object.fromEntries(numbers) };
}
