// One machine of the picture: its name and state, its layers, its memory, and how busy it is.

import { svg } from "../dom.js";
import { bytes, layersOf, stateOf, time } from "./words.js";

const EDGE = 16;
const WIDE = 520; // from here on both meters are side by side

/** The height of a card of this width. */
export function heightOf(width) {
  return width >= WIDE ? 116 : 158;
}

/** The card of `node` at `box`; changes for each view are added to `live`. */
export function cardOf(node, tone, box, live) {
  const inner = box.width - 2 * EDGE;
  const frame = svg("rect", { class: "card-frame", width: box.width, height: heightOf(box.width), rx: 12 });
  const name = svg("text", { class: "card-name", x: EDGE, y: 33 }, clipped(node.name, inner - 78, 9));
  const state = svg("text", { class: "card-state", x: box.width - EDGE, y: 32, "text-anchor": "end" });
  const roles = [node.roles.includes("coordinator") && "◆ coordinates", `${node.backend} on ${node.device}`, node.device === "cpu" && `${node.threads} thread${node.threads === 1 ? "" : "s"}`];
  const about = svg("text", { class: "card-about", x: EDGE, y: 53 }, clipped(roles.filter(Boolean).join(" · "), inner, 6));
  const isWide = box.width >= WIDE;
  const length = isWide ? (inner - 2 * EDGE) / 2 : inner;
  const memory = meter("memory", length, EDGE, 78);
  const busy = isWide ? meter("busy", length, 3 * EDGE + length, 78) : meter("busy", length, EDGE, 120);
  live.push((view) => {
    const now = view.nodes.find((one) => one.node === node.node);
    if (!now) return;
    const told = stateOf(now, view);
    state.textContent = `${told.shape} ${told.text}`;
    frame.setAttribute("class", `card-frame is-${told.kind}`);
    state.setAttribute("class", `card-state is-${told.kind}`);
    showMemory(memory, now, view);
    showBusy(busy, now, view);
  });
  return svg("g", { class: `card tone-${tone}`, transform: `translate(${box.x} ${box.y})` },
    frame, svg("path", { class: "card-edge", d: `M12 0H${box.width - 12}` }), name, state, about, memory.element, busy.element);
}

function showMemory({ bar, label, value, width }, node, view) {
  const stages = view.stages.filter((stage) => stage.node_id === node.node);
  const used = stages.reduce((sum, stage) => sum + (stage.resident_bytes ?? 0) + (stage.kv_bytes ?? 0), 0);
  bar.setAttribute("width", width * Math.min(1, node.memory_bytes ? used / node.memory_bytes : 0));
  label.textContent = layersOf(node);
  value.textContent = node.memory_bytes ? `${bytes(used)} of ${bytes(node.memory_bytes)}` : "";
}

function showBusy({ bar, label, value, width }, node, view) {
  const stages = view.trip?.stages.filter((stage) => stage.node === node.name) ?? [];
  const compute = stages.reduce((sum, stage) => sum + stage.compute_s, 0);
  const share = node.busy ?? 0;
  bar.setAttribute("width", width * share);
  bar.style.opacity = (0.45 + 0.55 * share).toFixed(2);
  label.textContent = node.layers.length ? `busy ${Math.round(100 * share)} %` : "idle";
  value.textContent = stages.length ? `${time(compute)} a step` : "";
}

/** A bar with a label before and a value behind, both below it. */
function meter(kind, width, x, y) {
  const bar = svg("rect", { class: `meter-bar ${kind}`, x, y: y - 8, width: 0, height: 8, rx: 4 });
  const label = svg("text", { class: "meter-label", x, y: y + 16 });
  const value = svg("text", { class: "meter-label", x: x + width, y: y + 16, "text-anchor": "end" });
  const element = svg("g", {}, svg("rect", { class: "meter-rest", x, y: y - 8, width, height: 8, rx: 4 }), bar, label, value);
  return { element, bar, label, value, width };
}

/** `text` cut to `width`, by the mean width of a letter. */
function clipped(text, width, letter) {
  const most = Math.max(4, Math.floor(width / letter));
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
