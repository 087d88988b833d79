// The cluster: its picture, the way of a token, the machines, what the planner says, and what has happened.

import { fill, h, icon, scrollBehavior } from "../dom.js";
import { keyNotice } from "../key_dialog.js";
import { closeDrawer, panel, setTopbar } from "../shell.js";
import { shortName } from "../words.js";
import { watchCluster } from "./feed.js";
import { historyView } from "./history.js";
import { showInvitation } from "./invite.js";
import { machinesView } from "./machines.js";
import { progressView } from "./model.js";
import { pictureView } from "./picture.js";
import { planView } from "./plan.js";
import { sparkView } from "./spark.js";
import { tripView } from "./trip.js";

const SHOWN_EVENTS = 12;

/** Show the cluster; the part `model` of the hash leads to the choice of the model. */
export function mount(main, [first]) {
  setTopbar("Cluster", h("button", { type: "button", class: "button", id: "invite", hidden: true, onclick: showInvitation }, icon("plus"), "Invite a machine"));
  const [progress, picture, trip, machines, plan, events, rates] = [progressView(), pictureView(), tripView(), machinesView(), planView(), eventsView(), historyView()];
  const head = headView(() => plan.choose());
  let isWanted = first === "model"; // once there is something to choose
  const problem = h("div", { class: "cluster-problem", role: "alert" });
  let told = "";
  const waits = h("p", { class: "cluster-waits" }, "The cluster is asked how it is …");
  const rest = h("div", { class: "cluster-parts", hidden: true }, head.element, progress.element,
    h("figure", { class: "cluster-figure" }, picture.element),
    section("Where a token’s time goes", trip.element),
    section("Machines", machines.element),
    h("div", { class: "cluster-pair" }, section("What if", plan.element), section("What happened", events.element)),
    section("Rates measured here", rates.element));
  fill(main, h("div", { class: "cluster" }, problem, waits, rest));
  const contents = contentsOf(rest);
  fill(panel(), contents);
  const views = [head, progress, picture, trip, machines, plan, events, rates];
  const lead = () => {
    if (!isWanted || rest.hidden) return;
    isWanted = false;
    plan.choose();
  };
  const end = watchCluster(({ view, problem: text, locked }) => {
    if (text !== told) fill(problem, text && (locked ? keyNotice(text) : h("p", { class: "notice danger" }, icon("alert"), h("span", { class: "notice-text" }, text))));
    told = text;
    waits.hidden = Boolean(view || text);
    contents.hidden = rest.hidden = !view;
    rest.classList.toggle("is-stale", Boolean(text));
    if (!view) return;
    document.getElementById("invite").hidden = !view.administers;
    for (const one of views) one.update(view);
    lead();
  });
  return { update: ([part]) => ((isWanted = part === "model"), lead()), unmount: end };
}

function section(title, ...children) {
  return h("section", { class: "cluster-section" }, h("h2", { tabindex: "-1" }, title), children);
}

/** The headings of the view in the sidebar, for who looks for one of them. */
function contentsOf(rest) {
  const entries = [...rest.querySelectorAll("h2")].map((heading) => h("li", {}, h("button", {
    type: "button", class: "button quiet", onclick: () => {
      closeDrawer();
      heading.scrollIntoView({ block: "start", behavior: scrollBehavior() });
      heading.focus({ preventScroll: true });
    },
  }, heading.textContent)));
  return h("nav", { class: "contents", "aria-label": "On this page" }, h("ul", {}, entries));
}

function headView(chooseModel) {
  const model = h("p", { class: "cluster-model" });
  const change = h("button", { type: "button", class: "button small", id: "change-model", hidden: true, onclick: chooseModel }, "Change");
  change.setAttribute("aria-label", "Change the model");
  const facts = h("p", { class: "cluster-facts" });
  const rate = h("p", { class: "cluster-rate tabular" });
  const spark = sparkView();
  const element = h("header", { class: "cluster-head" }, h("div", {}, h("div", { class: "cluster-model-line" }, model, change), facts), h("div", { class: "cluster-speed" }, rate, spark.element));
  const update = (view) => {
    const running = view.answers.running.length;
    const recovered = Object.values(view.engine.recoveries ?? {}).reduce((sum, count) => sum + count, 0);
    const words = [
      view.state === "ready" ? "● ready" : `◐ ${view.state}`,
      `${running || "no"} answer${running === 1 ? "" : "s"} under way`,
      view.engine.waiting ? `${view.engine.waiting} waiting` : "",
      `${view.answers.done} done`,
      recovered ? `${recovered} survived a loss` : "",
    ];
    model.textContent = shortName(view.model);
    change.hidden = !view.administers;
    facts.textContent = [...words, view.loading?.state !== "loading" && view.reason].filter(Boolean).join(" · "); // what loads is told below
    fill(rate, view.rates.tokens_per_s.toFixed(1), h("span", {}, " token/s"));
    spark.update(view.rates);
  };
  return { element, update };
}

function eventsView() {
  const element = h("ol", { class: "cluster-events" });
  let seen = "";
  const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const update = (view) => {
    const shown = view.events.slice(-SHOWN_EVENTS).reverse();
    const signature = JSON.stringify(shown);
    if (signature === seen) return;
    seen = signature;
    fill(element, shown.map((event) => h("li", {}, h("time", { class: "tabular" }, clock.format(1000 * event.at_s)), h("span", {}, event.text))),
      !shown.length && h("li", {}, h("span", {}, view.administers ? "Nothing yet." : "Shown on the machine that serves, or with a key that may administer.")));
  };
  return { element, update };
}
