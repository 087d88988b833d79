// The API key: kept until the tab closes, or in this browser if the reader says so; never in an address.

import { keep, kept } from "./kept.js";

const NAME = "key";
let ask = async () => null;
let asking = null;
let inMemory = null; // where the browser forbids storage
let isDeclined = false;

/** The event of the window that tells of a key that was given or taken away. */
export const KEY_CHANGED = "edgepp-key";

/** The key, or null. */
export function key() {
  return kept(NAME, "sessionStorage") ?? kept(NAME) ?? inMemory;
}

/** Use `secret` from now on, and after the tab is closed if `stays`. */
export function setKey(secret, stays = false) {
  forgetKey();
  inMemory = secret;
  keep(NAME, secret, stays ? "localStorage" : "sessionStorage");
  dispatchEvent(new Event(KEY_CHANGED));
}

/** Have no key. */
export function forgetKey() {
  inMemory = null;
  keep(NAME, null);
  keep(NAME, null, "sessionStorage");
}

/** Whether the key stays after the tab is closed. */
export function keyStays() {
  return kept(NAME) !== null;
}

/** `asker(reason)` shows a dialogue, and resolves to whether there is a key now. */
export function askWith(asker) {
  ask = asker;
}

/**
 * Whether the reader has given a key; several requests at a time ask once. One who has closed the dialogue is asked
 * again only for what they do themselves, such as a question: `isAct`.
 */
export function wantKey(reason, isAct) {
  if (isDeclined && !isAct) return Promise.resolve(false);
  asking ??= ask(reason)
    .then((given) => {
      isDeclined = !given;
      return given;
    })
    .finally(() => (asking = null));
  return asking;
}

/** Take a key from the hash, as the QR code of `edgepp serve --lan` has it, and remove it from the address. */
export function takeKeyFromHash() {
  const match = /^#key=([A-Za-z0-9_-]{1,200})$/.exec(location.hash);
  if (!match) return false;
  history.replaceState(null, "", location.pathname + location.search);
  setKey(match[1]);
  return true;
}
