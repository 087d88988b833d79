// The list of conversations in the sidebar: search, rename, delete with undo, files.

import { confirmed, onEnter, openDialog, openMenu } from "../dialogs.js";
import { announce, fill, h, icon, iconButton, newId } from "../dom.js";
import { go, hashOf } from "../router.js";
import { closeDrawer } from "../shell.js";
import { place } from "../state.js";
import { toast } from "../toasts.js";
import { counted, period } from "../words.js";
import * as library from "./library.js";
import { showShortcuts } from "./shortcuts.js";
import * as transfer from "./transfer.js";

const SEARCH_MS = 150;

/** Fill `panel` with the list; returns { focusSearch, unmount }. */
export function listView(panel) {
  const id = newId("search");
  const search = h("input", { id, class: "input", type: "search", placeholder: "Search", autocomplete: "off", "aria-keyshortcuts": "Control+K" });
  const results = h("nav", { class: "conversations", "aria-label": "Conversations" });
  const more = iconButton("more", "All conversations", () => openMenu(more, allMenu()), { "aria-haspopup": "menu" });
  fill(panel,
    h("div", { class: "list-head" }, h("a", { class: "button new-chat", href: "#/chat", onclick: closeDrawer }, icon("plus"), "New chat"), more),
    h("div", { class: "list-search" }, icon("search"), h("label", { class: "visually-hidden", htmlFor: id }, "Search conversations"), search),
    results);

  let found = null;
  let timer = null;
  const draw = () => fill(results, entries(library.list.get(), found));
  const look = async () => {
    const words = search.value.trim();
    found = words ? await library.search(words) : null;
    if (words !== search.value.trim()) return;
    draw();
    if (words) announce(found.size === 0 ? "Nothing found" : `${counted(found.size, "conversation")} found`);
  };
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, SEARCH_MS);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !search.value) return;
    event.stopPropagation();
    search.value = "";
    look();
  });
  results.addEventListener("keydown", (event) => onKey(results, event));
  const unwatch = [library.list.watch(draw), place.watch(() => mark(results))];
  return {
    focusSearch: () => search.focus(),
    unmount: () => unwatch.forEach((stop) => stop()),
  };
}

function entries(conversations, found) {
  const shown = found ? conversations.filter(({ id }) => found.has(id)) : conversations;
  if (shown.length === 0) return h("p", { class: "list-empty" }, found ? "Nothing found." : "Conversations that you begin are kept in this browser.");
  const groups = new Map();
  for (const one of shown) groups.set(period(one.updated), [...(groups.get(period(one.updated)) ?? []), one]);
  return [...groups].map(([name, members]) => {
    const heading = newId("period");
    return h("section", { "aria-labelledby": heading }, h("h2", { id: heading }, name), h("ul", {}, members.map((one) => entry(one, found?.get(one.id)))));
  });
}

function entry(conversation, snippet) {
  const { id, title } = conversation;
  const link = h("a", { href: hashOf("chat", id), dataset: { conversation: id }, onclick: closeDrawer },
    h("span", { class: "conversation-title", dir: "auto" }, title || "Chat"), snippet && h("span", { class: "conversation-snippet" }, snippet));
  const menu = iconButton("more", `Menu of ${title || "Chat"}`, () => openMenu(menu, conversationMenu(conversation)), { class: "small", "aria-haspopup": "menu" });
  const element = h("li", { class: "conversation" }, link, menu);
  markOne(link);
  return element;
}

function mark(results) {
  for (const link of results.querySelectorAll("a")) markOne(link);
}

function markOne(link) {
  if (link.dataset.conversation === place.get().parts[0]) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}

function onKey(results, event) {
  const link = event.target.closest("a[data-conversation]");
  if (!link) return;
  const links = [...results.querySelectorAll("a[data-conversation]")];
  const next = { ArrowDown: links[links.indexOf(link) + 1], ArrowUp: links[links.indexOf(link) - 1] }[event.key];
  const conversation = library.list.get().find(({ id }) => id === link.dataset.conversation);
  if (next) next.focus();
  else if (event.key === "F2") askTitle(conversation);
  else if (event.key === "Delete") discard(conversation);
  else return;
  event.preventDefault();
}

/** The menu of one conversation. */
export function conversationMenu(conversation) {
  return [
    { label: "Rename", icon: "edit", end: "F2", run: () => askTitle(conversation) },
    { label: "Export as Markdown", icon: "download", run: () => exportMarkdown(conversation) },
    { label: "Export as JSON", icon: "download", run: () => exportJson([conversation], transfer.fileName(conversation.title, "json")) },
    "line",
    { label: "Delete", icon: "trash", end: "Del", danger: true, run: () => discard(conversation) },
  ];
}

function allMenu() {
  return [
    { label: "Import…", icon: "upload", run: importFile },
    { label: "Export all as JSON", icon: "download", run: () => exportJson(library.list.get(), "edgepp-conversations.json") },
    { label: "Keyboard shortcuts", icon: "keyboard", end: "?", run: showShortcuts },
    "line",
    { label: "Delete all…", icon: "trash", danger: true, run: discardAll },
  ];
}

async function askTitle({ id, title }) {
  const field = newId("title");
  const input = h("input", { id: field, class: "input", value: title, maxlength: 200 });
  const ok = () => input.value.trim() && dialog.close(input.value);
  onEnter(input, ok);
  const body = h("div", { class: "field" }, h("label", { htmlFor: field }, "Title"), input);
  const dialog = openDialog({ title: "Rename the chat", body, actions: [h("button", { type: "button", class: "button primary", onclick: ok }, "Rename")] });
  input.select();
  const chosen = await dialog.closed;
  if (chosen) await library.rename(id, chosen);
}

async function discard({ id, title }) {
  await library.discard(id);
  if (place.get().parts[0] === id) go(["chat"]);
  toast(`“${title || "Chat"}” is deleted.`, { label: "Undo", run: () => library.restore(id).then(() => go(["chat", id])) });
}

async function discardAll() {
  const number = library.list.get().length;
  if (number === 0) return;
  const text = `${counted(number, "conversation")} will be deleted from this browser. This cannot be undone; an export keeps them.`;
  if (!(await confirmed({ title: "Delete all conversations?", text, action: "Delete all", danger: true }))) return;
  await library.forgetAll();
  go(["chat"]);
}

async function exportMarkdown({ id, title }) {
  const thread = await library.open(id);
  if (thread) transfer.save(transfer.fileName(title, "md"), transfer.markdownOf(thread), "text/markdown");
}

async function exportJson(conversations, name) {
  if (conversations.length === 0) return toast("There is no conversation to export.");
  return transfer.save(name, await transfer.jsonOf(conversations), "application/json");
}

async function importFile() {
  const file = await transfer.chosenFile();
  if (!file) return;
  try {
    const found = await transfer.entriesOf(file);
    await library.add(found);
    toast(`${counted(found.length, "conversation")} imported.`);
  } catch (error) {
    if (!(error instanceof transfer.FormatError)) throw error;
    toast(`Nothing is imported. ${error.message}`);
  }
}
