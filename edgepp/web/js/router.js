// Views by the hash of the address: #/chat/ID, #/cluster. The hash is never sent to the server.

import { place } from "./state.js";

const DEFAULT = "chat";

/** The hash of a view, such as hashOf("chat", id). */
export function hashOf(...parts) {
  return `#/${parts.filter(Boolean).map(encodeURIComponent).join("/")}`;
}

/** Go to a view; with `replace` without a new entry in the history. */
export function go(parts, { replace = false } = {}) {
  const hash = hashOf(...parts);
  if (hash === location.hash) return;
  if (replace) {
    history.replaceState(null, "", hash);
    read();
  } else {
    location.hash = hash;
  }
}

/** Keep `place` what the hash says, from now on; `views` are the names that there are. */
export function startRouter(views) {
  known = views;
  addEventListener("hashchange", read);
  read();
}

let known = [DEFAULT];

function read() {
  const [view, ...parts] = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decoded);
  place.set(known.includes(view) ? { view, parts } : { view: DEFAULT, parts: [] });
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return "";
  }
}
