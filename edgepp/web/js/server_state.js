// What the server says of itself, asked again now and then while the page is visible.

import { getJson } from "./api.js";
import { KEY_CHANGED } from "./api_key.js";
import { server } from "./state.js";

const CALM_MS = 15_000;
const RESTLESS_MS = 2000; // while the model loads, or the server does not answer
let timer = null;

/** Keep `server` up to date. The first request asks for an API key if one is due. */
export function watchServer() {
  document.addEventListener("visibilitychange", () => !document.hidden && refreshServer());
  addEventListener(KEY_CHANGED, () => refreshServer());
  return refreshServer({ silent: false });
}

/** Ask now. */
export async function refreshServer({ silent = true } = {}) {
  clearTimeout(timer);
  try {
    const { data } = await getJson("v1/models", { silent });
    server.patch({ models: Array.isArray(data) ? data : [], reachable: true, locked: false });
  } catch (error) {
    server.patch({ reachable: error.status !== 0, locked: error.status === 401 });
  }
  server.patch({ health: await healthOf() });
  const calm = server.get().reachable && server.get().health?.status === "ok";
  if (!document.hidden) timer = setTimeout(refreshServer, calm ? CALM_MS : RESTLESS_MS);
}

/** What /health says, also while it answers with 503; null without an answer. */
export async function healthOf() {
  try {
    const response = await fetch(new URL("health", document.baseURI.split("#")[0]), { credentials: "omit" });
    return await response.json();
  } catch {
    return null;
  }
}
