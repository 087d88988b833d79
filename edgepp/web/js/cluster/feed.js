// The live view of the cluster: one stream for the whole page, open while somebody watches and the tab is seen.

import { eventsOf } from "../chat/sse.js";
import { KEY_CHANGED } from "../api_key.js";
import { request } from "../api.js";
import { watched } from "../state.js";

const AGAIN_MS = [500, 1000, 2000, 5000];

/** `view` as /v1/cluster tells it, or null; `problem` says why it is not live, empty while it is; `locked` without a key. */
export const cluster = watched({ view: null, problem: "", locked: false });

let watchers = 0;
let running = null;

/** Call `watcher` with each state of `cluster` until the returned function is called. */
export function watchCluster(watcher) {
  watchers += 1;
  const end = cluster.watch(watcher);
  settle();
  return () => {
    end();
    watchers -= 1;
    settle();
  };
}

document.addEventListener("visibilitychange", settle);
addEventListener(KEY_CHANGED, () => {
  running?.abort();
  running = null;
  settle();
});

function settle() {
  const wanted = watchers > 0 && document.visibilityState === "visible";
  if (wanted && !running) {
    running = new AbortController();
    follow(running.signal);
  } else if (!wanted && running) {
    running.abort();
    running = null;
  }
}

async function follow(signal) {
  let failures = 0;
  while (!signal.aborted) {
    try {
      const response = await request("v1/cluster/events", { signal });
      for await (const data of eventsOf(response.body)) {
        if (data === null) continue;
        failures = 0;
        take(JSON.parse(data));
      }
    } catch (error) {
      if (signal.aborted) return;
      cluster.patch({ problem: error.message, locked: error.status === 401 });
      failures += 1;
    }
    await pause(AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)], signal);
  }
}

function take(told) {
  if (told.message) cluster.patch({ problem: told.message });
  else cluster.set({ view: told.schema ? told : { ...cluster.get().view, ...told }, problem: "", locked: false });
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
