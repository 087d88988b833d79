// A new chat: what answers here, and a few beginnings.

import { h, svg } from "../dom.js";
import { server } from "../state.js";
import { shortName, size, whole } from "../words.js";

const BEGINNINGS = [
  ["Explain", "why the sky is blue, to a ten-year-old."],
  ["Compare", "ZFS and btrfs in a table."],
  ["Write", "a shell script that backs up my home folder with rsync."],
  ["Plan", "a quiet weekend with two children and rain."],
];

/** The empty state: { element, unmount }. `suggest(text)` takes a beginning. */
export function emptyView(suggest) {
  const facts = h("p", { class: "empty-facts" });
  const unwatch = server.watch(({ models, health, reachable, locked }) => {
    facts.textContent = locked ? "\u00a0" : factsOf(models[0], health, reachable);
  });
  const beginnings = BEGINNINGS.map(([verb, rest]) => h("li", {},
    h("button", { type: "button", class: "beginning", onclick: () => suggest(`${verb} ${rest}`) }, h("strong", {}, verb), ` ${rest}`)));
  const element = h("section", { class: "empty", "aria-label": "New chat" },
    picture(), h("h2", {}, "Ask your own machines."), facts, h("ul", { class: "beginnings", "aria-label": "Beginnings" }, beginnings));
  return { element, unmount: unwatch };
}

function factsOf(model, health, reachable) {
  if (!reachable) return "The server does not answer. Is `edgepp serve` running?";
  if (!model) return "\u00a0";
  const { id, meta, context_length: context } = model;
  const loads = health && health.status !== "ok" ? " · not ready yet" : "";
  return [shortName(id), meta?.n_params && `${size(meta.n_params)} parameters`, context && `${whole(context)} tokens of context`].filter(Boolean).join(" · ") + loads;
}

/** Layers of one model across three machines, and a token on its way. */
function picture() {
  const stages = [12, 82, 152].map((x, at) => svg("g", { class: "stage-box" },
    svg("rect", { x, y: 10, width: 44, height: 52, rx: 9 }),
    [0, 1, 2, 3].map((row) => svg("path", { class: row <= at + 1 ? "layer on" : "layer", d: `M${x + 11} ${22 + row * 9.5}h22` }))));
  return svg("svg", { class: "empty-picture", viewBox: "0 0 208 72", "aria-hidden": "true" },
    svg("path", { class: "way", d: "M56 36h26M126 36h26" }), stages, svg("circle", { class: "token", r: 3.2, cx: 56, cy: 36 }));
}
