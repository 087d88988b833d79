// The messages of a conversation, one below the other, with the end in view while an answer is written.

import { h, iconButton, scrollBehavior } from "../dom.js";
import { inFrame, notInFrame } from "../frames.js";
import { messageView } from "./message.js";

const NEAR_PX = 48;

/** The messages of `thread`: { element, update(path, message), toEnd, editLast, unmount }. */
export function threadView(thread, acts) {
  const column = h("div", { class: "thread" });
  const scroller = h("div", { class: "thread-scroll", tabindex: "0", role: "region", "aria-label": "Conversation" }, column);
  const down = iconButton("down", "To the end", () => toEnd(true), { class: "to-end", hidden: true });
  const element = h("div", { class: "thread-frame" }, scroller, down);
  let views = new Map();
  let follows = true;

  const toEnd = (smooth = false) => {
    follows = true;
    scroller.scrollTo({ top: scroller.scrollHeight, behavior: smooth ? scrollBehavior() : "instant" });
    down.hidden = true;
  };
  const follow = new ResizeObserver(() => follows && scroller.scrollTo({ top: scroller.scrollHeight, behavior: "instant" }));
  for (const one of [column, scroller]) follow.observe(one); // what has grown is followed in the same frame

  const stale = new Set(); // ids of messages that have grown since the last frame
  const refresh = () => {
    for (const id of stale) views.get(id)?.update();
    stale.clear();
  };
  const update = (path, message) => {
    if (!path) {
      if (message) stale.add(message.id);
      return inFrame(refresh);
    }
    const former = views;
    views = new Map(thread.path().map((one) => [one.id, former.get(one.id) ?? messageView(thread, one, acts)]));
    for (const [id, view] of former) if (!views.has(id)) view.unmount?.();
    place(column, [...views.values()].map((view) => view.element));
    for (const view of views.values()) view.update();
    return undefined;
  };

  let top = 0; // where the reader was; the page itself only ever scrolls down
  scroller.addEventListener("scroll", () => {
    const left = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
    if (left < NEAR_PX) follows = true;
    else if (scroller.scrollTop < top) follows = false;
    top = scroller.scrollTop;
    down.hidden = left < 4 * NEAR_PX;
  }, { passive: true });
  for (const kind of ["wheel", "touchmove", "keydown"]) {
    scroller.addEventListener(kind, (event) => {
      if (event.deltaY < 0 || kind === "touchmove" || ["ArrowUp", "PageUp", "Home"].includes(event.key)) follows = false;
    }, { passive: true });
  }
  update(true);
  queueMicrotask(() => toEnd());
  return {
    element,
    update,
    toEnd,
    editLast: () => [...views.values()].filter((view) => view.edit).at(-1)?.edit(),
    unmount: () => {
      follow.disconnect();
      notInFrame(refresh);
      for (const view of views.values()) view.unmount?.();
    },
  };
}

/** Have `parent` show `elements` in order, and move none that is in place already. */
function place(parent, elements) {
  const wanted = new Set(elements);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  for (const [at, element] of elements.entries()) if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] ?? null);
}
