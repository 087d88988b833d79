// Where the time of a token goes: one bar per step of decoding, link by link and stage by stage, changed in place.

import { fill, h, svg } from "../dom.js";
import { inOrder, time, toneOf } from "./words.js";

const HEIGHT = 46;
const LEAST = 0.004; // share of the width from which a part is drawn

/** { element, update(view) }. */
export function tripView() {
  const bar = svg("svg", { class: "trip-bar", height: HEIGHT, preserveAspectRatio: "none", role: "img" });
  const legend = h("ul", { class: "trip-legend" });
  const note = h("p", { class: "trip-note" });
  const element = h("div", { class: "trip" }, bar, legend, note);
  let seen = "";
  let marks = [];
  const update = (view) => {
    const trip = view.trip;
    element.classList.toggle("is-live", Boolean(trip?.live));
    if (!trip) {
      seen = "";
      fill(bar, svg("rect", { class: "trip-empty", width: "100%", height: HEIGHT - 16, y: 8, rx: 6 }));
      fill(legend);
      note.textContent = "Ask something, and the way of each token is drawn here while the answer streams.";
      bar.setAttribute("aria-label", "No token has been computed yet");
      return;
    }
    const parts = partsOf(trip, view);
    const signature = parts.map(({ key }) => key).join();
    if (signature !== seen) {
      seen = signature;
      marks = parts.map(markOf);
      fill(bar, svg("defs", {}, hatch()), marks.map(({ shape }) => shape));
      fill(legend, marks.map(({ item }) => item));
    }
    lay(marks, parts, trip.step_s);
    bar.setAttribute("aria-label", parts.filter(({ s }) => s > 0).map(({ label, s }) => `${label} ${time(s)}`).join(", "));
    note.textContent = noteOf(trip);
  };
  return { element, update };
}

function noteOf(trip) {
  const now = trip.live ? "Now" : "The last answer";
  const guessed = trip.tokens_per_step > 1.05 ? ` Guesses make ${trip.tokens_per_step.toFixed(2)} tokens a step.` : "";
  const wasted = trip.tokens_per_step < 0.95 ? ` ${Math.round(100 * (1 - trip.tokens_per_step))} % of the steps carried guesses that were wrong.` : "";
  return `${now}: a step takes ${time(trip.step_s)}, of which ${time(trip.stages.reduce((sum, one) => sum + one.compute_s, 0))} is computing on ${trip.stages.length} stage${trip.stages.length === 1 ? "" : "s"}.${guessed}${wasted}`;
}

function partsOf(trip, view) {
  const nodes = inOrder(view);
  const parts = trip.stages.flatMap((stage) => {
    const node = nodes.find(({ name }) => name === stage.node); // by name: a plan that is new numbers its stages anew
    const several = trip.stages.filter((one) => one.node === stage.node).length > 1;
    const name = several ? `${stage.node} ${stage.layers[0]}–${stage.layers[1] - 1}` : stage.node;
    const tone = node ? `tone-${toneOf(node, nodes)}` : "";
    return [
      { key: `link ${stage.index}`, kind: "wire", label: `link to ${name}`, s: stage.wire_s },
      { key: `wait ${stage.index}`, kind: "wait", label: `waiting at ${name}`, s: stage.queue_s },
      { key: `stage ${stage.index} ${name}`, kind: `compute ${tone}`, label: name, s: stage.compute_s },
    ];
  });
  return [...parts,
    { key: "return", kind: "wire", label: "way back", s: trip.return_s },
    { key: "head", kind: "head", label: "head and sampling", s: trip.head_s }];
}

function markOf({ kind, label }) {
  const flat = kind === "wire";
  const shape = svg("rect", { class: `trip-part ${kind}`, y: flat ? HEIGHT / 2 - 3 : 8, height: flat ? 6 : HEIGHT - 16, rx: flat ? 0 : 3 });
  const tip = svg("title");
  shape.append(tip);
  const value = h("span", { class: "tabular" });
  const item = h("li", {}, h("span", { class: `trip-key ${kind}`, "aria-hidden": "true" }), h("span", {}, label), value);
  return { shape, tip, item, value };
}

function lay(marks, parts, whole) {
  let at = 0;
  marks.forEach(({ shape, tip, item, value }, number) => {
    const { label, s } = parts[number];
    const share = whole ? s / whole : 0;
    shape.setAttribute("x", `${(100 * at).toFixed(3)}%`);
    shape.setAttribute("width", `${(100 * Math.max(0, share - 0.0015)).toFixed(3)}%`);
    shape.classList.toggle("is-tiny", share < LEAST);
    item.hidden = share < LEAST;
    tip.textContent = `${label}: ${time(s)}`;
    value.textContent = time(s);
    at += share;
  });
}

function hatch() {
  return svg("pattern", { id: "trip-hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("path", { d: "M0 0v5", class: "hatch-line" }));
}
