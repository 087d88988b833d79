// The chat: the list of conversations beside one that is open, and the composer below it.

import { openMenu } from "../dialogs.js";
import { announce, fill, h, icon, iconButton } from "../dom.js";
import { go } from "../router.js";
import { watchServer } from "../server_state.js";
import { keyNotice } from "../key_dialog.js";
import { panel, setTopbar } from "../shell.js";
import { server } from "../state.js";
import { shortName, size, whole } from "../words.js";
import { answer, ask, goOn, isAnswering, stop } from "./answering.js";
import { composerView } from "./composer.js";
import { emptyView } from "./empty.js";
import * as library from "./library.js";
import { conversationMenu, listView } from "./list.js";
import { numSettings, showSettings } from "./settings.js";
import { followKeys } from "./shortcuts.js";
import { storage } from "./store.js";
import { ROOT } from "./thread.js";
import { threadView } from "./thread_view.js";

const SAID_CHARACTERS = 300;

/** Show the conversation that `parts` names, or a new one. */
export function mount(main, parts) {
  const view = new ChatView(main);
  view.show(parts[0]);
  return { update: ([id]) => view.show(id), unmount: () => view.unmount() };
}

class ChatView {
  #thread = null;
  #shown = null; // what fills the middle: { element, unmount }
  #ends = [];
  #wanted = null; // the newest call of show

  constructor(main) {
    this.notices = h("div", { class: "chat-notices" });
    this.middle = h("div", { class: "chat-middle" });
    this.composer = composerView({
      send: (text) => this.#send(text),
      stop: () => this.#thread && stop(this.#thread),
      editLast: () => this.#shown?.editLast?.(),
    });
    fill(main, this.notices, this.middle, this.composer.element);
    const list = listView(panel());
    const keys = followKeys({
      stop: () => this.#thread && stop(this.#thread),
      write: () => this.composer.focus(),
      search: () => list.focusSearch(),
      create: () => go(["chat"]),
    });
    this.#ends = [list.unmount, keys, storage.watch(() => this.#notices()), server.watch(() => (this.#notices(), this.#topbar()))];
    watchServer();
  }

  /** Show the conversation `id`; a new one without. */
  async show(id) {
    if (id && id === this.#thread?.conversation.id) return;
    const mine = (this.#wanted = {});
    library.start();
    const thread = id ? await library.open(id) : library.create(); // a new one is ready at once, for who types at once
    if (mine !== this.#wanted) return; // the reader has gone on meanwhile
    if (!thread) {
      announce("There is no such conversation in this browser.");
      go(["chat"], { replace: true });
      return;
    }
    this.#leave();
    this.#thread = thread;
    const unwatch = thread.watch(({ path, message }) => this.#changed(path, message));
    this.#leave = () => {
      unwatch();
      this.#shown?.unmount();
      this.#shown = null;
    };
    this.composer.draft(id ?? "new");
    this.#fill();
    if (!matchMedia("(pointer: coarse)").matches) this.composer.focus();
  }

  unmount() {
    this.#leave();
    this.middle.parentElement?.classList.remove("is-empty"); // <main> goes on to the next view
    for (const end of this.#ends) end();
  }

  #leave = () => {};

  #fill() {
    const isEmpty = this.#thread.messages.size === 0;
    this.#shown?.unmount();
    this.#shown = isEmpty ? emptyView((text) => this.composer.suggest(text)) : threadView(this.#thread, this.#acts());
    fill(this.middle, this.#shown.element);
    this.middle.parentElement.classList.toggle("is-empty", isEmpty);
    this.#settle();
  }

  #acts() {
    return {
      edit: (message, text) => ask(this.#thread, message.parent, text),
      retry: (message) => answer(this.#thread, this.#thread.messages.get(message.parent)),
      goOn: (message) => goOn(this.#thread, message),
      pick: (message, step) => this.#thread.pick(message, step),
    };
  }

  #send(text) {
    const thread = this.#thread;
    if (!thread) return false;
    const isNew = thread.messages.size === 0;
    ask(thread, thread.path().at(-1)?.id ?? ROOT, text);
    if (isNew) go(["chat", thread.conversation.id], { replace: true });
    this.#shown?.toEnd?.();
    return true;
  }

  #changed(path, message) {
    const wasAnswering = this.composer.element.classList.contains("answering");
    if (path && !this.#shown?.update) this.#fill();
    else this.#shown?.update?.(path, message);
    if (path || !message) this.#settle();
    const answering = isAnswering(this.#thread);
    if (answering === wasAnswering) return;
    if (answering) announce("The answer is being written.");
    else if (message) announce(saidOf(message));
  }

  /** Have the composer and the top bar show how the conversation is. */
  #settle() {
    const answering = isAnswering(this.#thread);
    this.composer.element.classList.toggle("answering", answering);
    this.composer.set(answering);
    this.#topbar();
  }

  #topbar() {
    const thread = this.#thread;
    if (!thread) return;
    const { conversation } = thread;
    const isEmpty = thread.messages.size === 0;
    const number = numSettings(conversation.settings);
    const title = isEmpty ? "New chat" : conversation.title || "Chat";
    document.title = `${title} · edgepp`;
    const key = JSON.stringify([title, number, isEmpty, server.get().models.map(({ id }) => id), conversation.settings.model]);
    if (key === this.drawn) return; // a button that has the focus stays
    this.drawn = key;
    const settings = iconButton("sliders", number ? `Settings, ${number} changed` : "Settings", () => showSettings(thread), { class: number ? "marked" : "" });
    const menu = iconButton("more", "Menu of this chat", () => openMenu(menu, conversationMenu(conversation)), { "aria-haspopup": "menu" });
    setTopbar(title, this.#modelButton(), settings, !isEmpty && menu);
  }

  #modelButton() {
    const { models } = server.get();
    const { settings } = this.#thread.conversation;
    const chosen = models.find(({ id }) => id === settings.model) ?? models[0];
    const button = h("button", { type: "button", class: "button quiet model-button", "aria-haspopup": "menu", title: chosen?.id ?? "Model", onclick: () => openMenu(button, this.#models(chosen)) },
      h("span", { class: "model-name" }, chosen ? shortName(chosen.id) : "No model"), icon("down"));
    return button;
  }

  #models(chosen) {
    const choices = server.get().models.map((model) => ({
      label: model.id,
      checked: model === chosen,
      run: () => {
        this.#thread.conversation.settings = { ...this.#thread.conversation.settings, model: model.id };
        this.#thread.save();
        this.#topbar();
      },
    }));
    const facts = chosen && [chosen.meta?.n_params && `${size(chosen.meta.n_params)} parameters`, chosen.context_length && `${whole(chosen.context_length)} tokens of context`];
    const note = facts ? facts.filter(Boolean).join(", ") : "The server has not told of a model yet.";
    return [...choices, { note }, "line", { label: "Change the model", href: "#/cluster/model" }];
  }

  #notices() {
    const { reachable, locked } = server.get();
    const lost = { full: "The browser's storage is full: what is new is lost when this tab is closed. Export it, or delete old conversations.", none: "This browser keeps nothing for this page: conversations are lost when the tab is closed." }[storage.get()];
    fill(this.notices,
      !reachable && noticeOf("alert", "The server does not answer. The page tries again by itself.", "danger"),
      locked && keyNotice("This server asks for an API key."),
      lost && noticeOf("info", lost));
  }
}

function noticeOf(name, text, kind = "") {
  return h("div", { class: `notice ${kind}`, role: "status" }, icon(name), h("span", { class: "notice-text" }, text));
}

function saidOf({ text, state, error }) {
  if (state === "failed") return `The answer has failed. ${error?.text ?? ""}`;
  const said = text.length > SAID_CHARACTERS ? `${text.slice(0, SAID_CHARACTERS)}…` : text;
  return state === "stopped" ? "Stopped." : `Answer: ${said}`;
}
