// Conversations as files: Markdown of what is shown, JSON of all versions, and JSON read back. A file is checked whole
// before anything of it is kept.

import { h } from "../dom.js";
import { randomId } from "../ids.js";
import { NO_SETTINGS } from "./library.js";
import * as store from "./store.js";
import { ROOT } from "./thread.js";

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
  if (file.size === 0) throw new FormatError("The file is empty.");
  const told = parsed(await file.text().catch(() => failed("The file cannot be read.")));
  if (told?.format !== FORMAT) failed("The file is no export of this page, which reads what its own “Export as JSON” has written and no files of other programs.");
  if (told.version !== 1) failed("The file was written by another version of this page, which this one cannot read.");
  if (!Array.isArray(told.conversations)) failed("The file is damaged: it has no list of conversations.");
  if (told.conversations.length === 0) failed("The file holds no conversation.");
  return told.conversations.map(numberedEntryOf);
}

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return failed("The file is no JSON.");
  }
}

function failed(sentence) {
  throw new FormatError(sentence);
}

function numberedEntryOf(told, index) {
  try {
    return entryOf(told);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    const title = typeof told?.title === "string" ? ` (“${told.title.slice(0, 60)}”)` : "";
    return failed(`Conversation ${index + 1}${title} of the file is damaged: ${error.message}`);
  }
}

function entryOf(told) {
  if (typeof told !== "object" || told === null) failed("it is no conversation.");
  const messages = Array.isArray(told.messages) ? told.messages : [];
  const ids = new Map([[ROOT, ROOT], ...messages.map((one) => [text(one?.id), randomId()])]);
  if (ids.size !== messages.length + 1) failed("two messages have one id.");
  const now = Date.now();
  const conversation = {
    id: randomId(),
    title: text(told.title).slice(0, 200) || "Imported chat",
    titled: told.titled === true,
    created: time(told.created, now),
    updated: time(told.updated, now),
    picks: Object.fromEntries(Object.entries(told.picks ?? {}).filter(([a, b]) => ids.has(a) && ids.has(b)).map(([a, b]) => [ids.get(a), ids.get(b)])),
    settings: settingsOf(told.settings),
    deleted: 0,
  };
  return { conversation, messages: connected(messages.map((one) => messageOf(one, ids, conversation.id, now))) };
}

function messageOf(told, ids, conversation, now) {
  if (!["user", "assistant"].includes(told.role)) failed("a message is neither a question nor an answer.");
  if (!ids.has(told.parent)) failed("a message follows one that is not there.");
  const { tokens, perSecond, firstMs } = told.stats ?? {};
  return {
    id: ids.get(told.id),
    conversation,
    parent: ids.get(told.parent),
    created: time(told.created, now),
    role: told.role,
    text: text(told.text),
    reasoning: text(told.reasoning ?? ""),
    state: told.state === "writing" ? "stopped" : STATES.includes(told.state) ? told.state : "done",
    finish: told.finish === "length" ? "length" : "stop",
    model: told.model ? text(told.model).slice(0, 200) : null,
    error: told.error ? { text: text(told.error.text ?? ""), code: null } : null,
    stats: told.stats ? { tokens: number(tokens), perSecond: number(perSecond), firstMs: number(firstMs), recoveries: [] } : null,
  };
}

/** The messages that hang together with the first one; the others could never be shown. */
function connected(messages) {
  const children = new Map();
  for (const one of messages) {
    if (children.has(one.parent)) children.get(one.parent).push(one);
    else children.set(one.parent, [one]);
  }
  const found = [];
  const waiting = [ROOT];
  while (waiting.length > 0) {
    for (const child of children.get(waiting.pop()) ?? []) {
      found.push(child);
      waiting.push(child.id);
    }
  }
  if (found.length === 0) failed("it has no first message.");
  return found;
}

function settingsOf(told) {
  const found = { ...NO_SETTINGS, system: text(told?.system ?? "") };
  for (const name of ["temperature", "topP", "maxTokens", "seed"]) found[name] = number(told?.[name]);
  return found;
}

function number(value) {
  return Number.isFinite(value) && value >= 0 && value <= Number.MAX_SAFE_INTEGER ? value : null;
}

/** A time in milliseconds, which lies in the past. */
function time(value, now) {
  return Math.min(number(value) ?? now, now);
}

function text(value) {
  if (typeof value !== "string") failed("a text is missing.");
  if (value.length > MOST_CHARACTERS) failed("a text is too long.");
  return value;
}
