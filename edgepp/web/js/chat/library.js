// All conversations of this browser: the list, those that are open, and what other tabs do to them.

import { keep, keptJson } from "../kept.js";
import { watched } from "../state.js";
import * as store from "./store.js";
import { newConversation, Thread } from "./thread.js";

/** The conversations that are not deleted, newest first. */
export const list = watched([]);

/** Settings of a new conversation. */
export const NO_SETTINGS = { system: "", temperature: null, topP: null, maxTokens: null, seed: null, model: null };
const UNDO_MS = 60_000;
const ABANDONED_MS = 15_000; // a message that is being written is kept more often than that
const threads = new Map();
let started = null;

/** Read the list, once; and follow the other tabs from now on. */
export function start() {
  started ??= (async () => {
    store.onOtherTabs(heard);
    for (const one of await store.conversations()) {
      if (one.deleted && Date.now() - one.deleted > UNDO_MS) await store.remove(one.id);
    }
    await refresh();
  })();
  return started;
}

/** The open conversation `id`, or null where there is none. */
export async function open(id) {
  await start();
  if (!threads.has(id)) {
    const conversation = (await store.conversations()).find((one) => one.id === id && !one.deleted);
    if (!conversation) return null;
    const messages = (await store.messagesOf(id)).map(abandoned);
    if (!threads.has(id)) threads.set(id, new Thread(conversation, messages));
  }
  return threads.get(id);
}

/** A new conversation, which is listed once it has a message. */
export function create() {
  const thread = new Thread(newConversation({ ...NO_SETTINGS, ...keptJson("settings", {}) }));
  threads.set(thread.conversation.id, thread);
  return thread;
}

/** Have the list show how `thread` is now. */
export function changed(thread) {
  if (thread.messages.size === 0 || thread.conversation.deleted) return;
  const others = list.get().filter(({ id }) => id !== thread.conversation.id);
  list.set([thread.conversation, ...others].sort((a, b) => b.updated - a.updated));
}

/** Call a conversation `title`. */
export async function rename(id, title) {
  const thread = await open(id);
  if (!thread || !title.trim()) return;
  Object.assign(thread.conversation, { title: title.trim().slice(0, 200), titled: true });
  await thread.save();
  changed(thread);
  thread.tell(false);
}

/** Delete a conversation: it is hidden now, and forgotten unless `restore` comes within a minute. */
export async function discard(id) {
  const thread = await open(id);
  if (!thread) return;
  thread.conversation.deleted = Date.now();
  await thread.save();
  list.set(list.get().filter((one) => one.id !== id));
  setTimeout(() => thread.conversation.deleted && forget(id), UNDO_MS);
}

/** Undo `discard`. */
export async function restore(id) {
  const thread = threads.get(id);
  if (!thread) return;
  thread.conversation.deleted = 0;
  await thread.save();
  changed(thread);
}

/** Delete everything, without undo. */
export async function forgetAll() {
  for (const { id } of await store.conversations()) await forget(id);
  list.set([]);
}

/** Use `settings` for new conversations. */
export function keepSettings(settings) {
  keep("settings", JSON.stringify(settings));
}

/** Take conversations with their messages from a file; they are listed then. */
export async function add(entries) {
  await store.putEntries(entries);
  await refresh();
}

/** Conversations whose title or text has `words`: a map from id to where it was found, "" for the title. */
export async function search(words) {
  const wanted = words.trim().toLowerCase();
  const found = new Map();
  for (const { id, title } of list.get()) if (title.toLowerCase().includes(wanted)) found.set(id, "");
  await store.eachMessage(({ conversation, text }) => {
    const at = found.has(conversation) ? -1 : text.toLowerCase().indexOf(wanted);
    if (at >= 0) found.set(conversation, text.slice(Math.max(0, at - 30), at + wanted.length + 60).replace(/\s+/g, " "));
  });
  return found;
}

async function forget(id) {
  threads.delete(id);
  await store.remove(id);
}

async function refresh() {
  const all = (await store.conversations()).filter((one) => !one.deleted);
  const mine = all.map((one) => threads.get(one.id)?.conversation ?? one);
  list.set(mine.sort((a, b) => b.updated - a.updated));
}

async function heard({ kind, id, conversation }) {
  if (kind === "message") {
    const thread = threads.get(conversation);
    const message = thread && !thread.live.has(id) ? await store.message(id) : null;
    if (message) thread.take(message);
    return;
  }
  if (kind === "removed") {
    threads.get(id)?.tell(true);
    threads.delete(id);
  } else {
    const newer = (await store.conversations()).find((one) => one.id === id);
    const thread = threads.get(id);
    if (thread && newer) {
      Object.assign(thread.conversation, newer);
      thread.tell(true);
    }
  }
  await refresh();
}

/** A message that nobody writes any more, since its tab was closed, as one that was stopped. */
function abandoned(message) {
  const dead = message.state === "writing" && Date.now() - (message.saved ?? 0) > ABANDONED_MS;
  return dead ? { ...message, state: "stopped" } : message;
}
