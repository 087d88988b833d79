// The cluster in a strip beside the chat: state, tokens per second, and the shares of the machines.

import { h, svg } from "../dom.js";
import { watchCluster } from "./feed.js";
import { sparkView } from "./spark.js";
import { inOrder, layersOf, stateOf, toneOf } from "./words.js";

/** Fill `element` with the strip, for as long as the page is open. */
export function showStrip(element) {
  const spark = sparkView({ small: true });
  const rate = h("span", { class: "strip-rate tabular" });
  const state = h("span", { class: "strip-state" });
  const band = svg("svg", { class: "strip-band", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" });
  const link = h("a", { class: "strip", href: "#/cluster", hidden: true }, h("span", { class: "strip-head" }, state, rate), band, spark.element);
  element.append(link);
  let seen = "";
  watchCluster(({ view, problem }) => {
    link.hidden = !view;
    if (!view) return;
    const nodes = inOrder(view);
    const away = nodes.filter((node) => stateOf(node, view).kind === "suspect").length;
    state.textContent = problem ? "✕ not reached" : away ? `▲ ${away} not answering` : view.state === "ready" ? `● ${nodes.length} machine${nodes.length === 1 ? "" : "s"}` : `◐ ${view.state}`;
    rate.textContent = problem ? "" : view.rates.tokens_per_s > 0 ? `${view.rates.tokens_per_s.toFixed(1)} token/s` : "idle";
    spark.update(view.rates);
    const signature = JSON.stringify(nodes.map((node) => [node.node, node.layers]));
    if (signature === seen) return;
    seen = signature;
    const total = Math.max(1, ...nodes.flatMap((node) => node.layers.map(([, stop]) => stop)));
    band.replaceChildren(...nodes.flatMap((node) => node.layers.map(([start, stop]) => svg("rect",
      { class: `tone-${toneOf(node, nodes)}`, x: (100 * start) / total + 0.4, width: Math.max(0.4, (100 * (stop - start)) / total - 0.8), height: 6 },
      svg("title", {}, `${node.name}: ${layersOf(node)}`)))));
  });
}
