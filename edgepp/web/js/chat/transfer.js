// Conversations as files: Markdown of what is shown, JSON of all versions, and JSON read back. A file is checked whole
// before anything of it is kept.

import { h } from "../dom.js";
import { randomId } from "../ids.js";
import { NO_SETTINGS } from "./library.js";
import * as store from "./store.js";
import { ROOT, Thread } from "./thread.js";

const FORMAT = "edgepp-conversations";
const MOST_BYTES = 256 << 20;
const MOST_CHARACTERS = 4 << 20; // of one text
const STATES = ["done", "stopped", "failed"];

/** A file that is no export of this page. */
export class FormatError extends Error {}

/** What is shown of `thread`, as Markdown. */
export function markdownOf(thread) {
  const { title, settings } = thread.conversation;
  const parts = thread.path().map(({ role, text }) => `## ${role === "user" ? "Question" : "Answer"}\n\n${text.trim()}\n`);
  const system = settings.system.trim() ? [`> ${settings.system.trim().replaceAll("\n", "\n> ")}\n`] : [];
  return [`# ${title || "Chat"}\n`, ...system, ...parts].join("\n");
}

/** Conversations with all their messages, as JSON. */
export async function jsonOf(conversations) {
  const entries = [];
  for (const conversation of conversations) {
    entries.push({ ...conversation, messages: await store.messagesOf(conversation.id) });
  }
  return JSON.stringify({ format: FORMAT, version: 1, conversations: entries }, null, 1);
}

/** Have the browser save `text` as a file. */
export function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A name for a file of `title`. */
export function fileName(title, ending) {
  const plain = title.normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60).toLowerCase();
  return `${plain || "chat"}.${ending}`;
}

/** The file that the reader chooses, or null. */
export function chosenFile() {
  return new Promise((resolve) => {
    const input = h("input", { type: "file", accept: ".json,application/json" });
    input.addEventListener("change", () => resolve(input.files[0] ?? null));
    input.addEventListener("cancel", () => resolve(null));
    input.click();
  });
}

/** The conversations of an exported file, under new ids: a list of { conversation, messages }. Raises FormatError. */
export async function entriesOf(file) {
  if (file.size > MOST_BYTES) throw new FormatError("The file is larger than 256 MiB.");
  let told;
  try {
    told = JSON.parse(await file.text());
  } catch {
    throw new FormatError("The file is no JSON.");
  }
  if (told?.format !== FORMAT || told.version !== 1 || !Array.isArray(told.conversations)) throw new FormatError("The file is no export of conversations.");
  return told.conversations.map(entryOf);
}

function entryOf(told) {
  const messages = Array.isArray(told?.messages) ? told.messages : [];
  const ids = new Map([[ROOT, ROOT], ...messages.map((one) => [text(one?.id), randomId()])]);
  const now = Date.now();
  const conversation = {
    id: randomId(),
    title: text(told.title).slice(0, 200) || "Imported chat",
    titled: told.titled === true,
    created: number(told.created) ?? now,
    updated: number(told.updated) ?? now,
    picks: Object.fromEntries(Object.entries(told.picks ?? {}).filter(([a, b]) => ids.has(a) && ids.has(b)).map(([a, b]) => [ids.get(a), ids.get(b)])),
    settings: settingsOf(told.settings),
    deleted: 0,
  };
  return { conversation, messages: connected(messages.map((one) => messageOf(one, ids, conversation.id)), conversation) };
}

function messageOf(told, ids, conversation) {
  if (!["user", "assistant"].includes(told?.role) || !ids.has(told.parent)) throw new FormatError("A message of the file is damaged.");
  const { tokens, perSecond, firstMs } = told.stats ?? {};
  return {
    id: ids.get(told.id),
    conversation,
    parent: ids.get(told.parent),
    created: number(told.created) ?? Date.now(),
    role: told.role,
    text: text(told.text),
    reasoning: text(told.reasoning ?? ""),
    state: STATES.includes(told.state) ? told.state : "done",
    finish: told.finish === "length" ? "length" : "stop",
    model: told.model ? text(told.model).slice(0, 200) : null,
    error: told.error ? { text: text(told.error.text ?? ""), code: null } : null,
    stats: told.stats ? { tokens: number(tokens), perSecond: number(perSecond), firstMs: number(firstMs), recoveries: [] } : null,
  };
}

/** The messages that hang together with the first one; the others could never be shown. */
function connected(messages, conversation) {
  const thread = new Thread(conversation, messages);
  const found = [];
  const waiting = [ROOT];
  while (waiting.length > 0) {
    for (const child of thread.children(waiting.pop())) {
      found.push(child);
      waiting.push(child.id);
    }
  }
  if (found.length === 0) throw new FormatError("A conversation of the file has no message.");
  return found;
}

function settingsOf(told) {
  const found = { ...NO_SETTINGS, system: text(told?.system ?? "") };
  for (const name of ["temperature", "topP", "maxTokens", "seed"]) found[name] = number(told?.[name]);
  return found;
}

function number(value) {
  return Number.isFinite(value) && value >= 0 ? value : null;
}

function text(value) {
  if (typeof value !== "string" || value.length > MOST_CHARACTERS) throw new FormatError("A text of the file is missing or too long.");
  return value;
}
