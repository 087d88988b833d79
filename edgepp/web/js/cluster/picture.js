// The picture: the model as a band of layers, the machines that hold them as cards, the links between them.
// It is built when machines, layers or the width change, and else changed in place.

import { fill, svg } from "../dom.js";
import { cardOf, heightOf } from "./card.js";
import { bytes, inOrder, sentence, time, toneOf } from "./words.js";

const WIDE = 700;
const GAP = 92; // between two cards of a row, for the figures of a link
const MAX_CARD = 290;
const BAND = 28;

/** { element, update(view) }: the picture of `view`, which fills the width that it has. */
export function pictureView() {
  const element = svg("svg", { class: "cluster-picture", role: "img", "aria-label": "The cluster" });
  let seen = "";
  let live = [];
  let view = null;
  const draw = () => {
    const width = Math.round(element.getBoundingClientRect().width);
    if (!view || width < 200) return;
    const signature = JSON.stringify([width, view.nodes.map((n) => [n.node, n.name, n.layers, n.state === "gone", n.roles, n.device]), view.links.length]);
    if (signature !== seen) {
      seen = signature;
      live = build(element, view, width);
    }
    for (const change of live) change(view);
    element.setAttribute("aria-label", sentence(view));
  };
  new ResizeObserver(draw).observe(element);
  return { element, update: (next) => ((view = next), draw()) };
}

function build(element, view, width) {
  const nodes = inOrder(view);
  const rows = width >= WIDE && nodes.length <= Math.floor((width + GAP) / (190 + GAP));
  const place = rows ? row(nodes, width) : column(nodes, width);
  const live = [];
  element.setAttribute("viewBox", `0 0 ${width} ${place.height}`);
  element.setAttribute("height", place.height);
  const ranges = nodes.flatMap((node) => node.layers.map(([start, stop]) => ({ node, start, stop })));
  const total = Math.max(1, ...ranges.map(({ stop }) => stop));
  const parts = ranges.map((range) => rangeOf(range, nodes, total, place, live));
  fill(element,
    svg("defs", {}, hatch()),
    parts.map(({ ribbon }) => ribbon), svg("g", {}, parts.map(({ band }) => band)), parts.length ? scale(total, place) : emptyBand(place),
    linksOf(view, nodes, place, live),
    nodes.map((node, at) => cardOf(node, toneOf(node, nodes), place.cards[at], live)));
  return live;
}

/** Diagonal strokes for what waits or loads, so that it is known without its colour. */
function hatch() {
  return svg("pattern", { id: "cluster-hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("path", { d: "M0 0v6", class: "hatch-line" }));
}

function row(nodes, width) {
  const card = Math.min(MAX_CARD, (width - (nodes.length - 1) * GAP - 4) / nodes.length);
  const gap = nodes.length > 1 ? (width - 4 - card * nodes.length) / (nodes.length - 1) : 0;
  const spread = Math.min(gap, 190);
  const left = (width - card * nodes.length - spread * (nodes.length - 1)) / 2;
  const top = 138;
  const cards = nodes.map((_, at) => ({ x: left + at * (card + spread), y: top, width: card }));
  const band = { x: cards[0].x, y: 24, length: cards.at(-1).x + card - cards[0].x };
  return { rows: true, cards, band, height: top + heightOf(card) + (nodes.length > 1 ? 66 : 12), width };
}

function column(nodes, width) {
  const step = heightOf(width - 108) + 58;
  const cards = nodes.map((_, at) => ({ x: 104, y: 18 + at * step, width: width - 108 }));
  const length = nodes.length * step - 58;
  return { rows: false, cards, band: { x: 24, y: 18, length }, height: 18 + length + 52, width };
}

/** One range of layers: its part of the band, and the ribbon from there to the card of its machine. */
function rangeOf({ node, start, stop }, nodes, total, place, live) {
  const card = place.cards[nodes.indexOf(node)];
  const edge = edgeOf(node, start, stop);
  const tone = `tone-${toneOf(node, nodes)}`;
  const unit = place.band.length / total;
  const [from, to] = [start * unit, stop * unit];
  const cells = [];
  const size = Math.max(1, unit - 2);
  for (let layer = start; layer < stop; layer += 1) {
    const at = layer * unit + 1;
    cells.push(place.rows
      ? svg("rect", { x: place.band.x + at, y: place.band.y, width: size, height: BAND, rx: Math.min(3, size / 2) })
      : svg("rect", { x: place.band.x, y: place.band.y + at, width: BAND, height: size, rx: Math.min(3, size / 2) }));
  }
  const band = svg("g", { class: `band ${tone}` }, cells);
  const ribbon = svg("path", { class: `ribbon ${tone}`, d: place.rows ? down(place.band, from, to, card, edge) : across(place.band, from, to, card, edge) });
  live.push((view) => {
    const stage = view.stages.find((one) => one.node_id === node.node && one.layers[0] === start);
    band.classList.toggle("is-loading", stage?.state === "loading");
    ribbon.style.opacity = (0.16 + 0.5 * (stage?.busy ?? 0)).toFixed(2);
  });
  return { band, ribbon };
}

/** Which part of a card's edge a range of layers meets, from 0 to 1: ranges of one machine lie beside each other. */
function edgeOf(node, start, stop) {
  const count = (ranges) => ranges.reduce((sum, [first, end]) => sum + end - first, 0);
  const whole = count(node.layers);
  const before = count(node.layers.filter(([first]) => first < start));
  return [before / whole, (before + stop - start) / whole];
}

function down(band, from, to, card, [first, last]) {
  const [top, bottom] = [band.y + BAND + 4, card.y];
  const middle = (top + bottom) / 2;
  const [left, length] = [card.x + 10, card.width - 20];
  const [a, b, c, d] = [band.x + from + 1, band.x + to - 1, left + last * length, left + first * length];
  return `M${a} ${top}H${b}C${b} ${middle} ${c} ${middle} ${c} ${bottom}H${d}C${d} ${middle} ${a} ${middle} ${a} ${top}Z`;
}

function across(band, from, to, card, [first, last]) {
  const [left, right] = [band.x + BAND + 4, card.x];
  const middle = (left + right) / 2;
  const [top, length] = [card.y + 10, heightOf(card.width) - 20];
  const [a, b, c, d] = [band.y + from + 1, band.y + to - 1, top + last * length, top + first * length];
  return `M${left} ${a}V${b}C${middle} ${b} ${middle} ${c} ${right} ${c}V${d}C${middle} ${d} ${middle} ${a} ${left} ${a}Z`;
}

/** The band before any layer is placed. */
function emptyBand({ rows, band }) {
  const [width, height] = rows ? [band.length, BAND] : [BAND, band.length];
  return svg("g", {}, svg("rect", { class: "band-empty", x: band.x, y: band.y, width, height, rx: 4 }),
    rows && svg("text", { class: "quiet", x: band.x + band.length / 2, y: band.y + BAND + 20, "text-anchor": "middle" }, "No layers are placed yet"));
}

/** The numbers of the first and the last layer. */
function scale(total, { rows, band }) {
  if (rows) {
    return svg("g", { class: "scale" },
      svg("text", { x: band.x, y: band.y - 8 }, "layer 0"),
      svg("text", { x: band.x + band.length, y: band.y - 8, "text-anchor": "end" }, String(total - 1)));
  }
  return svg("g", { class: "scale" },
    svg("text", { x: band.x - 6, y: band.y + 10, "text-anchor": "end" }, "0"),
    svg("text", { x: band.x - 6, y: band.y + band.length, "text-anchor": "end" }, String(total - 1)));
}

/** The links in the order of the ring: arrows between cards, and the way back below them. */
function linksOf(view, nodes, place, live) {
  const at = (id) => nodes.findIndex((node) => node.node === id);
  const last = view.links.length - 1;
  return view.links.map((link, number) => {
    const [from, to] = [at(link.from), at(link.to)];
    if (from < 0 || to < 0 || from === to) return null;
    const way = number === last ? back(place, from, to) : on(place, from, to);
    const first = svg("text", { x: way.x, y: way.y, "text-anchor": way.anchor });
    const second = svg("text", { x: way.x, y: way.y + way.below, "text-anchor": way.anchor, class: "quiet" });
    const path = svg("path", { d: way.d, class: "link-line" });
    const flow = svg("path", { d: way.d, class: "link-flow" });
    live.push((now) => {
      const one = now.links[number];
      if (!one) return;
      first.textContent = time(one.latency_s);
      second.textContent = number === last ? `back to ${nodes[to].name}` : one.rate ? `${bytes(one.rate)}/s` : "";
      flow.classList.toggle("is-flowing", now.rates?.tokens_per_s > 0);
    });
    return svg("g", { class: "link" }, path, flow, svg("path", { d: way.head, class: "link-head" }), first, second);
  });
}

function on({ rows, cards }, from, to) {
  const [a, b] = [cards[from], cards[to]];
  if (rows) {
    const y = a.y + heightOf(a.width) / 2;
    const [x1, x2] = a.x < b.x ? [a.x + a.width + 6, b.x - 8] : [a.x - 6, b.x + b.width + 8];
    const side = x2 > x1 ? -1 : 1;
    return { d: `M${x1} ${y}H${x2}`, head: `M${x2 + 7 * side} ${y - 5}L${x2} ${y}L${x2 + 7 * side} ${y + 5}`, x: (x1 + x2) / 2, y: y - 10, below: 28, anchor: "middle" };
  }
  const x = a.x + 30;
  const [y1, y2] = a.y < b.y ? [a.y + heightOf(a.width) + 5, b.y - 7] : [a.y - 5, b.y + heightOf(b.width) + 7];
  const side = y2 > y1 ? -1 : 1;
  return { d: `M${x} ${y1}V${y2}`, head: `M${x - 5} ${y2 + 7 * side}L${x} ${y2}L${x + 5} ${y2 + 7 * side}`, x: x + 16, y: (y1 + y2) / 2 - 3, below: 15, anchor: "start" };
}

function back({ rows, cards, height, width }, from, to) {
  const [a, b] = [cards[from], cards[to]];
  if (rows) {
    const [x1, x2, y] = [a.x + a.width / 2, b.x + b.width / 2, a.y + heightOf(a.width)];
    const low = y + 30;
    const turn = x2 < x1 ? 14 : -14;
    return { d: `M${x1} ${y + 6}V${low - 14}Q${x1} ${low} ${x1 - turn} ${low}H${x2 + turn}Q${x2} ${low} ${x2} ${low - 14}V${y + 9}`, head: `M${x2 - 5} ${y + 16}L${x2} ${y + 8}L${x2 + 5} ${y + 16}`, x: (x1 + x2) / 2, y: low - 7, below: 24, anchor: "middle" };
  }
  const [x, y] = [a.x + 30, a.y + heightOf(a.width) + 5];
  const low = Math.min(height - 6, y + 34);
  return { d: `M${x} ${y}V${low - 7}`, head: `M${x - 5} ${low - 14}L${x} ${low - 7}L${x + 5} ${low - 14}`, x: Math.min(x + 16, width), y: y + 14, below: 15, anchor: "start" };
}
