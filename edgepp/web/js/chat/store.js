// Conversations in the browser: IndexedDB, a record for each message, so that tabs never overwrite each other's.
// Where the browser forbids it or is full, what is new is kept in memory, and `storage` says so.

import { watched } from "../state.js";

const NAME = "edgepp";
const VERSION = 1;

/** "ok"; "full" or "none" where new messages are lost when the tab closes. */
export const storage = watched("ok");

const memory = { conversations: new Map(), messages: new Map() };
const channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
let opening = null;

/** `heard({ kind, id, conversation })` is called when another tab changes a record. */
export function onOtherTabs(heard) {
  channel?.addEventListener("message", ({ data }) => heard(data));
}

/** All conversations, in no order. */
export async function conversations() {
  return merged(await read("conversations", (all) => all.getAll()), memory.conversations.values());
}

/** All messages of a conversation, in no order. */
export async function messagesOf(conversation) {
  const kept = await read("messages", (all) => all.index("conversation").getAll(conversation));
  return merged(kept, [...memory.messages.values()].filter((one) => one.conversation === conversation));
}

/** One message, or undefined. */
export async function message(id) {
  return memory.messages.get(id) ?? read("messages", (all) => all.get(id));
}

/** Call `visit` with each message of all conversations until it returns false. */
export async function eachMessage(visit) {
  for (const one of memory.messages.values()) if (visit(one) === false) return;
  const db = await opened();
  if (!db) return;
  await new Promise((resolve) => {
    const walk = db.transaction("messages").objectStore("messages").openCursor();
    walk.onerror = () => resolve();
    walk.onsuccess = () => {
      const cursor = walk.result;
      if (!cursor || visit(cursor.value) === false) resolve();
      else cursor.continue();
    };
  });
}

/** Keep a conversation. */
export function putConversation(one) {
  return put("conversations", one, { kind: "conversation", id: one.id });
}

/** Keep a message. */
export function putMessage(one) {
  return put("messages", one, { kind: "message", id: one.id, conversation: one.conversation });
}

/** Keep conversations with their messages, all or none of them: a list of { conversation, messages }. */
export async function putEntries(entries) {
  const db = await opened();
  try {
    if (!db) throw new Error("no database");
    await write(db, ["conversations", "messages"], (transaction) => {
      for (const { conversation, messages } of entries) {
        for (const message of messages) transaction.objectStore("messages").put(message);
        transaction.objectStore("conversations").put(conversation);
      }
    });
    channel?.postMessage({ kind: "conversation", id: entries.at(-1)?.conversation.id }); // other tabs read the list again
  } catch {
    for (const { conversation, messages } of entries) {
      for (const message of messages) memory.messages.set(message.id, message);
      memory.conversations.set(conversation.id, conversation);
    }
    storage.set(db ? "full" : "none");
  }
}

/** Forget a conversation with all its messages. */
export async function remove(id) {
  memory.conversations.delete(id);
  for (const one of [...memory.messages.values()]) if (one.conversation === id) memory.messages.delete(one.id);
  const db = await opened();
  if (db) {
    await write(db, ["conversations", "messages"], (transaction) => {
      transaction.objectStore("conversations").delete(id);
      const index = transaction.objectStore("messages").index("conversation");
      index.openKeyCursor(IDBKeyRange.only(id)).onsuccess = ({ target: { result: cursor } }) => {
        if (!cursor) return;
        transaction.objectStore("messages").delete(cursor.primaryKey);
        cursor.continue();
      };
    });
    if (storage.get() === "full" && memory.messages.size === 0) storage.set("ok");
  }
  channel?.postMessage({ kind: "removed", id });
}

async function put(store, record, news) {
  const db = await opened();
  try {
    if (!db) throw new Error("no database");
    await write(db, [store], (transaction) => transaction.objectStore(store).put(record));
    memory[store].delete(record.id);
    channel?.postMessage(news);
  } catch {
    memory[store].set(record.id, structuredClone(record));
    storage.set(db ? "full" : "none");
  }
}

function write(db, stores, act) {
  return new Promise((resolve, reject) => {
    const transaction = db.transaction(stores, "readwrite");
    transaction.oncomplete = () => resolve();
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("not written"));
    act(transaction);
  });
}

async function read(store, ask) {
  const db = await opened();
  if (!db) return undefined;
  return new Promise((resolve) => {
    const asked = ask(db.transaction(store).objectStore(store));
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => resolve(undefined);
  });
}

function merged(kept, inMemory) {
  const found = new Map((kept ?? []).map((one) => [one.id, one]));
  for (const one of inMemory) found.set(one.id, one);
  return [...found.values()];
}

function opened() {
  opening ??= new Promise((resolve) => {
    const none = () => {
      storage.set("none");
      resolve(null);
    };
    let asked;
    try {
      asked = indexedDB.open(NAME, VERSION);
    } catch {
      return none();
    }
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("conversations", { keyPath: "id" });
      asked.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    asked.onerror = none;
    asked.onblocked = none;
    asked.onsuccess = () => {
      const db = asked.result;
      db.onversionchange = () => db.close(); // a newer page in another tab
      db.onclose = () => (opening = null);
      resolve(db);
    };
    return undefined;
  });
  return opening;
}
