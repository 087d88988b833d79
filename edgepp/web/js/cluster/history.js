// Rates that `edgepp bench` has measured on the coordinator's machine, run by run: one chart for what can be compared.

import { getJson } from "../api.js";
import { fill, h, newId, svg } from "../dom.js";
import { rate, shortName } from "../words.js";

const MOST_RUNS = 60;
const AGAIN_MS = 5000;
const WIDTH = 600;
const HEIGHT = 120;
const EDGE = 8;
const NAMES = { decode_tokens_per_s: "Decoding", prefill_tokens_per_s: "Reading a prompt", e2e_tokens_per_s: "Whole answer" };

/** { element, update() }: the history, which is read once, when there is a view of the cluster. */
export function historyView() {
  const select = h("select", { class: "input", id: newId("rate"), onchange: () => draw() });
  const choice = h("div", { class: "field history-rate", hidden: true }, h("label", { htmlFor: select.id }, "Rate"), select);
  const charts = h("div", { class: "history-charts" });
  const element = h("div", { class: "history" }, choice, charts);
  let entries = [];
  const draw = () => fill(charts, seriesOf(entries, select.value).map((runs) => chartOf(runs, select.value)));
  let readMs = 0; // when it was asked for; Infinity once it is there
  const update = () => void (Date.now() - readMs > AGAIN_MS && read());
  return { element, update };

  async function read() {
    readMs = Date.now();
    try {
      ({ entries } = await getJson("bench/history", { silent: true }));
    } catch (error) {
      fill(charts, h("p", { class: "history-none" }, error.message));
      return;
    }
    readMs = Infinity;
    const names = [...new Set(entries.flatMap(({ rates }) => Object.keys(rates)))].sort((a, b) => order(a) - order(b));
    if (!names.length) {
      fill(charts, h("p", { class: "history-none" }, "Nothing yet: ", h("code", {}, "edgepp bench"), " measures this cluster and notes its rates for each version."));
      return;
    }
    fill(select, names.map((name) => h("option", { value: name }, nameOf(name))));
    choice.hidden = names.length < 2;
    draw();
  }
}

function order(name) {
  const at = Object.keys(NAMES).indexOf(name);
  return at < 0 ? Infinity : at;
}

function nameOf(name) {
  const together = name.match(/^together_(\d+)_/);
  return NAMES[name] ?? (together ? `${together[1]} requests at once` : name.replaceAll("_", " "));
}

/** Runs that can be compared, of one model, shape and machine: the series with the newest run first. */
function seriesOf(entries, name) {
  const found = new Map();
  for (const entry of entries) {
    if (!entry.rates[name]) continue;
    const key = JSON.stringify([entry.model, entry.shape, entry.machine]);
    found.set(key, [...(found.get(key) ?? []), entry].slice(-MOST_RUNS));
  }
  return [...found.values()].sort((a, b) => entries.indexOf(b.at(-1)) - entries.indexOf(a.at(-1)));
}

function chartOf(runs, name) {
  const last = runs.at(-1);
  const before = runs.at(-2);
  const change = before ? last.rates[name].median / before.rates[name].median - 1 : null;
  const most = Math.max(...runs.map(({ rates }) => rates[name].high));
  return h("figure", { class: "history-chart" },
    h("figcaption", {},
      h("h3", {}, shortName(last.model)),
      h("p", { class: "history-rate-now tabular" }, rate(last.rates[name].median), h("span", {}, " token/s"), change !== null && h("span", { class: "history-change" }, ` ${percent(change)} since the run before`)),
      h("p", { class: "history-about" }, `${last.shape} · ${last.machine}`)),
    h("div", { class: "history-plot" }, h("span", { class: "history-most tabular", "aria-hidden": "true" }, rate(most)), plotOf(runs, name, most)),
    h("p", { class: "history-ends tabular", "aria-hidden": "true" }, h("span", {}, labelOf(runs[0])), runs.length > 1 && h("span", {}, labelOf(last))),
    h("details", {}, h("summary", {}, runs.length === 1 ? "The run" : `All ${runs.length} runs`), tableOf(runs, name)));
}

function plotOf(runs, name, most) {
  const x = (at) => (runs.length === 1 ? WIDTH / 2 : EDGE + (at * (WIDTH - 2 * EDGE)) / (runs.length - 1));
  const y = (value) => HEIGHT - EDGE - (value * (HEIGHT - 2 * EDGE)) / most;
  const points = runs.map((run, at) => ({ run, at, ...run.rates[name] }));
  const told = `${nameOf(name)}: ${points.map(({ run, median }) => `${labelOf(run)} ${rate(median)}`).join(", ")} tokens per second`;
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": told.slice(0, 600) },
    svg("path", { class: "history-base", d: `M0 ${HEIGHT - EDGE}H${WIDTH}M0 ${EDGE}H${WIDTH}` }),
    points.slice(1).filter(({ run, at }) => labelOf(run) !== labelOf(runs[at - 1])).map(({ at }) => svg("path", { class: "history-version", d: `M${(x(at) + x(at - 1)) / 2} ${EDGE}V${HEIGHT - EDGE}` })),
    svg("path", { class: "history-line", d: `M${points.map(({ at, median }) => `${x(at).toFixed(1)} ${y(median).toFixed(1)}`).join("L")}` }),
    points.map(({ run, at, median, low, high }) => svg("g", {},
      svg("title", {}, `${run.time}, ${labelOf(run)}: ${rate(median)} token/s (${rate(low)} to ${rate(high)})${run.busy ? ", on a busy machine" : ""}`),
      svg("path", { class: "history-spread", d: `M${x(at).toFixed(1)} ${y(low).toFixed(1)}V${y(high).toFixed(1)}` }),
      svg("circle", { class: `history-run${run.busy ? " is-busy" : ""}`, cx: x(at).toFixed(1), cy: y(median).toFixed(1), r: 4.5 }))));
}

function tableOf(runs, name) {
  const heads = ["When", "Version", "token/s", "Spread"].map((text) => h("th", { scope: "col" }, text));
  const rows = [...runs].reverse().map((run) => h("tr", {},
    h("td", { class: "tabular" }, run.time.slice(0, 16)), h("td", {}, labelOf(run) + (run.busy ? " ○ busy machine" : "")),
    h("td", { class: "tabular" }, rate(run.rates[name].median)), h("td", { class: "tabular" }, `${rate(run.rates[name].low)} to ${rate(run.rates[name].high)}`)));
  return h("div", { class: "machines", tabindex: "0", role: "region", "aria-label": `Runs of ${runs[0].model}` }, h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows)));
}

function labelOf({ version, commit }) {
  return commit ? `${version} ${commit.slice(0, 9)}` : version;
}

function percent(share) {
  return `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(Math.abs(share) < 0.1 ? 1 : 0)} %`;
}
