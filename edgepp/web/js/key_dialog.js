// The dialogue that asks for the API key, by itself where the server demands one.

import { forgetKey, key, keyStays, setKey } from "./api_key.js";
import { onEnter, openDialog } from "./dialogs.js";
import { h, icon, newId } from "./dom.js";

/** A notice, with a button that asks for the key. */
export function keyNotice(text) {
  return h("div", { class: "notice", role: "status" }, icon("key"), h("span", { class: "notice-text" }, text),
    h("button", { type: "button", class: "button small", onclick: () => showKeyDialog() }, "Enter the key"));
}

/** Ask for a key, and tell `reason` why. Resolves to whether there is one now. */
export async function showKeyDialog(reason = "") {
  const field = newId("key");
  const input = h("input", { id: field, class: "input", type: "password", autocomplete: "off", spellcheck: "false", placeholder: key() ? "A key is set; type another one" : "edgepp-…" });
  const stays = h("input", { type: "checkbox", checked: keyStays() });
  const use = () => {
    const secret = input.value.trim();
    if (!secret) return input.focus();
    setKey(secret, stays.checked);
    return dialog.close(true);
  };
  onEnter(input, use);
  const body = h("div", { class: "dialog-fields" },
    reason && h("p", { class: "notice", role: "alert" }, h("span", { class: "notice-text" }, reason)),
    h("div", { class: "field" }, h("label", { htmlFor: field }, "API key"), input,
      h("span", { class: "hint" }, "Make one on the machine of the server: ", h("code", {}, "edgepp keys add NAME"))),
    h("label", { class: "check" }, stays, "Keep it in this browser after the tab is closed"));
  const forget = key() && h("button", { type: "button", class: "button danger", onclick: () => (forgetKey(), dialog.close(false)) }, "Forget the key");
  const ok = h("button", { type: "button", class: "button primary", onclick: use }, "Use this key");
  const dialog = openDialog({ title: "API key", body, actions: [forget, ok].filter(Boolean) });
  input.focus();
  return (await dialog.closed) === true;
}
