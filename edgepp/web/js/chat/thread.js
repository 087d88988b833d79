// One conversation as a tree: a question edited or an answer tried again is a further child of the same message.
// No element is made here; a view watches.

import { randomId } from "../ids.js";
import * as store from "./store.js";

/** The parent of the first messages, as a key of `picks`. */
export const ROOT = "root";

/** A new, empty conversation; it is kept with its first message. */
export function newConversation(settings) {
  const now = Date.now();
  return { id: randomId(), title: "", titled: false, created: now, updated: now, picks: {}, settings, deleted: 0 };
}

export class Thread {
  #watchers = new Set();

  constructor(conversation, messages = []) {
    this.conversation = conversation;
    this.messages = new Map(messages.map((one) => [one.id, one]));
    /** What is true only now, by message: { note, firstAt, began }. */
    this.live = new Map();
  }

  /** Call `watcher({ path })` after each change: `path` tells whether other messages are shown than before. */
  watch(watcher) {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** Tell the watchers; `message` is the one that has changed, or null. */
  tell(path, message = null) {
    for (const watcher of [...this.#watchers]) watcher({ path, message });
  }

  /** The versions at one place, oldest first. */
  children(parent) {
    const found = [...this.messages.values()].filter((one) => one.parent === parent);
    return found.sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
  }

  /** The messages that are shown, from the first question on. */
  path() {
    const found = [];
    const seen = new Set();
    for (let parent = ROOT; !seen.has(parent); ) {
      seen.add(parent);
      const versions = this.children(parent);
      if (versions.length === 0) break;
      const chosen = versions.find(({ id }) => id === this.conversation.picks[parent]) ?? versions.at(-1);
      found.push(chosen);
      parent = chosen.id;
    }
    return found;
  }

  /** The messages from the first question to `message`, with it. */
  before(message) {
    const found = [];
    for (let one = message; one && !found.includes(one); one = this.messages.get(one.parent)) found.unshift(one);
    return found;
  }

  /** Add a message below `parent`, show it, and keep it. */
  add(parent, fields) {
    const versions = this.children(parent);
    const created = Math.max(Date.now(), (versions.at(-1)?.created ?? 0) + 1); // versions keep their order
    const message = { id: randomId(), conversation: this.conversation.id, parent, created, text: "", state: "done", ...fields };
    this.messages.set(message.id, message);
    this.conversation.picks = { ...this.conversation.picks, [parent]: message.id };
    this.conversation.updated = Date.now();
    store.putMessage(message);
    this.save();
    this.tell(true, message);
    return message;
  }

  /** Show another version of what is at the place of `message`, `step` further. */
  pick(message, step) {
    const versions = this.children(message.parent);
    const next = versions[versions.indexOf(message) + step];
    if (!next) return null;
    this.conversation.picks = { ...this.conversation.picks, [message.parent]: next.id };
    this.save();
    this.tell(true);
    return next;
  }

  /** Keep the conversation's own record, if it has a message. */
  save() {
    return this.messages.size > 0 ? store.putConversation(this.conversation) : undefined;
  }

  /** Take a message as another tab has kept it. */
  take(message) {
    const had = this.messages.get(message.id);
    if (had) Object.assign(had, message); // views hold the object
    else this.messages.set(message.id, message);
    this.tell(!had, message);
  }
}
