// The machines as a table: all that the picture shows, for screen readers and phones, with a button to drain each.

import { postJson } from "../api.js";
import { confirmed } from "../dialogs.js";
import { fill, h } from "../dom.js";
import { toast } from "../toasts.js";
import { bytes, inOrder, layersOf, stateOf, time } from "./words.js";

const COLUMNS = ["State", "Layers", "Memory", "Busy", "Round trip"];
const ON_CARD = new Set(["Memory", "Busy", "Round trip"]); // not in the table of a phone, which would hide the buttons

/** { element, update(view) }. */
export function machinesView() {
  const body = h("tbody");
  const heads = ["Machine", ...COLUMNS].map((text) => h("th", { scope: "col", class: ON_CARD.has(text) && "on-card" }, text));
  const element = h("div", { class: "machines", tabindex: "0", role: "region", "aria-label": "Machines" },
    h("table", {}, h("thead", {}, h("tr", {}, heads, h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Actions")))), body));
  let rows = new Map();
  const update = (view) => {
    const nodes = [...inOrder(view), ...view.nodes.filter((node) => node.state === "gone")];
    const known = new Map(nodes.map((node) => [node.node, rows.get(node.node) ?? rowOf(node)]));
    if ([...known.keys()].join() !== [...rows.keys()].join()) fill(body, [...known.values()].map(({ element: row }) => row));
    rows = known;
    for (const node of nodes) show(rows.get(node.node), node, view);
  };
  return { element, update };
}

function rowOf(node) {
  const cells = COLUMNS.map((text) => h("td", { class: ON_CARD.has(text) ? "tabular on-card" : "tabular" }));
  const name = h("th", { scope: "row" });
  const button = h("button", { type: "button", class: "button small", dataset: { node: node.node } });
  return { element: h("tr", { dataset: { node: node.node } }, name, cells, h("td", { class: "actions" }, button)), name, cells, button };
}

function show({ name, cells, button }, node, view) {
  const state = stateOf(node, view);
  set(name, node.name + (node.roles.includes("coordinator") ? " ◆" : ""));
  set(cells[0], `${state.shape} ${state.text}`);
  const reason = !node.layers.length && !node.draining && node.reason; // of a drain the state and the button tell
  set(cells[1], reason || (node.layers.length ? layersOf(node).replace("layers ", "") : "none"));
  cells[1].classList.toggle("reason", Boolean(reason));
  set(cells[2], bytes(node.memory_bytes));
  set(cells[3], node.busy === null ? "–" : `${Math.round(100 * node.busy)} %`);
  set(cells[4], time(node.rtt_s));
  set(button, node.draining ? "Undo drain" : "Drain");
  button.setAttribute("aria-label", `${node.draining ? "Undo the drain of" : "Drain"} ${node.name}`);
  button.hidden = !view.administers || node.state === "gone";
  button.onclick = () => drain(node);
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

async function drain(node) {
  const undo = node.draining;
  if (!undo && !(await confirmed({
    title: `Drain ${node.name}?`,
    text: `The other machines take its layers, and answers go on. ${node.name} then runs none until you undo it.`,
    action: "Drain",
    danger: true,
  }))) return;
  try {
    await postJson("v1/cluster/drain", { node: node.node, undo });
    toast(undo ? `${node.name} may run layers again.` : `${node.name} is being drained.`);
  } catch (error) {
    toast(error.message);
  }
}
