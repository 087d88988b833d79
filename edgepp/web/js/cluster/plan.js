// The plan: what the planner says of a model on these machines, and on machines that join in thought.

import { getJson, postJson } from "../api.js";
import { fill, h, icon, newId, scrollBehavior } from "../dom.js";
import { rate } from "../words.js";
import { changeModel, modelOptions } from "./model.js";
import { asSentence, bytes, time } from "./words.js";

const MAX_MACHINES = 8;
const AGAIN_MS = 5000;
const LINKS = [["", "usual network"], ["10Gbit:0.1ms", "10 Gbit/s cable"], ["1Gbit:0.3ms", "1 Gbit/s cable"], ["300Mbit:2ms", "good Wi-Fi"], ["100Mbit:1ms", "100 Mbit/s"]];

/** { element, update(view), choose() }. */
export function planView() {
  return new PlanView();
}

class PlanView {
  #view = null;
  #choices = null;
  #machines = [];
  #asked = 0;
  #signature = "";
  #loadedMs = 0; // when the choices were asked for
  #running = ""; // the model when the choices were drawn
  #planned = { model: "", fits: false }; // what the planner has said last of the machines that there are

  constructor() {
    this.model = h("select", { class: "input", id: newId("model"), onchange: () => (this.#offer(), this.#ask()) });
    this.hardware = h("select", { class: "input", id: newId("hw"), onchange: () => this.#memories() });
    this.memory = h("select", { class: "input", id: newId("mem") });
    this.link = h("select", { class: "input", id: newId("link"), onchange: () => this.#ask() }, LINKS.map(([value, text]) => h("option", { value }, text)));
    this.list = h("ul", { class: "plan-machines" });
    this.answer = h("div", { class: "plan-answer", "aria-live": "polite" });
    this.change = h("button", { type: "button", class: "button primary plan-run", onclick: () => changeModel(this.model.value, this.#view.model) }, "Run this model");
    this.refusal = h("p", { class: "plan-hint plan-refusal", id: newId("refusal"), hidden: true }, "It does not fit on the machines that there are, so it cannot be run now.");
    this.change.setAttribute("aria-describedby", this.refusal.id);
    const add = h("button", { type: "button", class: "button", onclick: () => this.#add() }, icon("plus"), "Add");
    this.element = h("div", { class: "plan" },
      h("p", { class: "plan-lead" }, "The planner’s prediction, for another model or with machines that you only think of."),
      h("div", { class: "plan-model" }, field("Model", this.model), this.change), this.refusal,
      h("div", { class: "plan-add" }, field("One more machine", this.hardware), field("Memory", this.memory), add),
      this.list, field("Link of what is added", this.link), this.answer);
    this.link.parentElement.hidden = true;
  }

  /** Lead the reader to the choice of the model. */
  choose() {
    this.element.scrollIntoView({ block: "center", behavior: scrollBehavior() });
    this.model.focus({ preventScroll: true });
  }

  update(view) {
    this.#view = view;
    if (!this.#choices && Date.now() - this.#loadedMs > AGAIN_MS) this.#load(); // not before there is a view: a key may be due
    const signature = JSON.stringify([view.model, view.policy, view.nodes.map((node) => [node.node, node.state === "gone", node.memory_bytes])]);
    if (signature !== this.#signature && this.#choices) {
      this.#signature = signature;
      const chosen = this.model.value;
      fill(this.model, modelOptions(this.#choices.models, view.model));
      if (chosen && chosen !== this.#running) this.model.value = chosen; // else what runs now is shown
      this.#running = view.model;
      this.#ask();
    }
    this.#offer();
  }

  /** Offer to run the chosen model once the planner has said that it fits; a model of which it says nothing is tried. */
  #offer() {
    const { administers, model } = this.#view;
    this.change.hidden = !administers || !this.model.value || this.model.value === model;
    const isPlanned = this.#planned.model === this.model.value;
    this.change.disabled = !isPlanned || !this.#planned.fits;
    this.refusal.hidden = this.change.hidden || !isPlanned || this.#planned.fits;
  }

  async #load() {
    this.#loadedMs = Date.now();
    try {
      this.#choices = await getJson("v1/cluster/choices", { silent: true });
    } catch (error) {
      this.#say(error.message);
      return;
    }
    fill(this.hardware, this.#choices.hardware.map(({ name, title }) => h("option", { value: name, selected: name === "m4" }, title)));
    this.#memories();
    if (this.#view) this.update(this.#view);
  }

  #memories() {
    const sizes = this.#choices.hardware.find(({ name }) => name === this.hardware.value)?.memory_gb ?? [16];
    fill(this.memory, sizes.map((size) => h("option", { value: `${size}GB` }, `${size} GB`)));
  }

  #add() {
    if (this.#machines.length >= MAX_MACHINES) return;
    const title = this.hardware.selectedOptions[0]?.textContent ?? "";
    this.#machines.push({ hw: this.hardware.value, mem: this.memory.value, title });
    this.#listed();
  }

  #listed() {
    fill(this.list, this.#machines.map((one, at) => h("li", {}, `${one.title}, ${one.mem.replace("GB", " GB")}`,
      h("button", { type: "button", class: "button quiet small icon-only", "aria-label": `Take ${one.title} away`, onclick: () => (this.#machines.splice(at, 1), this.#listed()) }, icon("close")))));
    this.link.parentElement.hidden = this.#machines.length === 0;
    this.#ask();
  }

  async #ask() {
    const mine = (this.#asked += 1);
    const name = this.model.value;
    const model = name ? { model: name } : {};
    const machines = this.#machines.map(({ hw, mem }) => ({ hw, mem }));
    const link = this.link.value ? { link: this.link.value } : {};
    try {
      const now = await postJson("v1/cluster/plan", model, { silent: true });
      if (mine === this.#asked) this.#planned = { model: name, fits: now.fits };
      const then = machines.length ? await postJson("v1/cluster/plan", { ...model, ...link, machines }, { silent: true }) : null;
      if (mine === this.#asked) fill(this.answer, resultOf(now, machines.length ? "Today" : ""), then && resultOf(then, "With what is added"));
    } catch (error) {
      if (mine === this.#asked) {
        if (this.#planned.model !== name) this.#planned = { model: name, fits: true };
        this.#say(error.message);
      }
    }
    if (this.#view) this.update(this.#view);
  }

  #say(text) {
    fill(this.answer, h("p", { class: "notice" }, h("span", { class: "notice-text" }, text)));
  }
}

function field(label, control) {
  return h("div", { class: "field" }, h("label", { htmlFor: control.id }, label), control);
}

function resultOf(told, title) {
  const head = title && h("h3", {}, title);
  if (!told.fits) {
    return h("div", { class: "plan-result" }, head, h("p", { class: "plan-rate" }, "✕ does not fit"), h("p", {}, asSentence(told.reason.replace(/^the model does not fit: /, ""))), told.hint && h("p", { class: "plan-hint" }, asSentence(told.hint)));
  }
  const one = told.decode[0];
  const whole = told.stages.reduce((sum, stage) => sum + stage.layers[1] - stage.layers[0], 0);
  const shares = told.stages.map((stage) => h("li", {},
    h("span", {}, stage.node), h("meter", { min: "0", max: String(whole), value: String(stage.layers[1] - stage.layers[0]), "aria-label": `Layers on ${stage.node}` }),
    h("span", { class: "tabular" }, `${stage.layers[0]}–${stage.layers[1] - 1}`), h("span", { class: "tabular quiet" }, bytes(stage.memory_needed_bytes))));
  return h("div", { class: "plan-result" }, head,
    h("p", { class: "plan-rate tabular" }, rate(one.tokens_per_s), h("span", {}, " token/s predicted")),
    h("p", {}, `First token of a prompt of ${told.prefill.tokens} after ${time(told.prefill.ttft_s)}; eight at once: ${rate(told.decode.at(-1).tokens_per_s)} token/s together.`),
    h("ul", { class: "plan-shares" }, shares),
    told.changes[0] && h("p", { class: "plan-hint" }, `What would help most: ${told.changes[0].what} (${told.changes[0].times_as_fast.toFixed(2)} times as fast).`));
}
