// What the cluster's figures are called: sizes, times, layers, and states with a shape each.

/** Bytes as 98 MB or 1.4 GB. */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  if (count >= 1e9) return `${(count / 1e9).toFixed(count >= 1e10 ? 0 : 1)} GB`;
  return count >= 1e6 || !count ? `${Math.round(count / 1e6)} MB` : `${Math.round(count / 1e3)} kB`;
}

/** `text` with a capital first letter. */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A reason or a hint of the server as a sentence. */
export function asSentence(text) {
  return capital(text) + (/[.!?]$/.test(text) ? "" : ".");
}

/** Seconds as 85 µs, 4.1 ms or 1.20 s. */
export function time(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.1 ? 1 : 0)} ms`;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

/** Half-open layer ranges as "layers 0–12", both ends included. */
export function layersOf(node) {
  if (!node.layers?.length) return "no layers";
  return `layers ${node.layers.map(([start, stop]) => (stop - start === 1 ? start : `${start}–${stop - 1}`)).join(", ")}`;
}

const SHAPES = { ready: "●", joined: "○", loading: "◐", suspect: "▲", gone: "✕", draining: "▽", spare: "○" };

/** The state of a node with a shape: { kind, shape, text }. */
export function stateOf(node, view) {
  const loading = view.stages.filter((stage) => stage.node_id === node.node && stage.state === "loading");
  const suspect = node.state === "suspect" || view.stages.some((stage) => stage.node_id === node.node && stage.state === "suspect");
  const told = (kind, text = kind) => ({ kind, shape: SHAPES[kind], text });
  if (node.state === "gone") return told("gone");
  if (suspect) return told("suspect", "not answering");
  if (node.draining) return told("draining", node.layers.length ? "draining" : "drained");
  if (loading.length) return told("loading", `loading ${Math.round(100 * Math.min(...loading.map((stage) => stage.progress)))} %`);
  if (!node.layers.length) return told("spare", "stands by");
  return told(node.state === "ready" ? "ready" : "joined");
}

/** The present nodes in the order of the ring: the coordinator, then by their first layers, then those without. */
export function inOrder(view) {
  const rank = (node) => (node.roles.includes("coordinator") ? -1 : node.layers[0]?.[0] ?? 1e9);
  return view.nodes.filter((node) => node.state !== "gone").sort((a, b) => rank(a) - rank(b) || a.name.localeCompare(b.name));
}

/** The number of a node's colour, 0 to 5. */
export function toneOf(node, nodes) {
  return nodes.findIndex((one) => one.node === node.node) % 6;
}

/** What the cluster does, in one sentence for a screen reader. */
export function sentence(view) {
  const nodes = inOrder(view);
  const parts = nodes.map((node) => `${node.name} ${stateOf(node, view).text}, ${layersOf(node)}`);
  return `${view.model} is ${view.state} on ${nodes.length} machine${nodes.length === 1 ? "" : "s"}: ${parts.join("; ")}.`;
}
