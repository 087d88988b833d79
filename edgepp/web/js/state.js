// A value that is watched. The app's state is in a few of them, so that a view reads what it needs and no more.

/** A watched value: `get`, `set` with a new value, `patch` with some fields of an object, and `watch`. */
export function watched(value) {
  const watchers = new Set();
  const set = (next) => {
    if (next === value) return;
    value = next;
    for (const watcher of [...watchers]) watcher(value);
  };
  return {
    get: () => value,
    set,
    patch: (fields) => set({ ...value, ...fields }),
    /** Call `watcher` now and after each change, until the returned function is called. */
    watch: (watcher) => {
      watchers.add(watcher);
      watcher(value);
      return () => watchers.delete(watcher);
    },
  };
}

/** What is known of the server: `models` as /v1/models tells them; `health` as /health does; `reachable`; `locked` without a key. */
export const server = watched({ models: [], health: null, reachable: true, locked: false });

/** The place in the page: `view` ("chat", "cluster") and the `parts` behind it in the hash. */
export const place = watched({ view: "", parts: [] });
