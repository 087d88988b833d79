// The model that runs, and its change: for everybody, with progress; the planner says first whether it fits.

import { postJson } from "../api.js";
import { confirmed } from "../dialogs.js";
import { h, icon, iconButton, scrollBehavior } from "../dom.js";
import { toast } from "../toasts.js";
import { shortName } from "../words.js";
import { bytes, capital } from "./words.js";

const DONE = new Set(["ready", "failed"]);
const WORDS = { opening: "Opening", fetching: "Fetching", waiting: "Waiting for answers under way before changing to", loading: "Loading" };

/** { element, update(view) }: the progress of a change or of loading, or why a change failed; hidden while there is none. */
export function progressView() {
  const text = h("span", {});
  const bar = h("progress", { max: "1", "aria-label": "Progress" });
  const progressing = h("div", { class: "cluster-progress", role: "status", hidden: true }, text, bar);
  const reason = h("span", { class: "notice-text" });
  let closed = ""; // the failure that the reader has put away
  const failure = h("div", { class: "notice danger", role: "alert", hidden: true }, icon("alert"), reason,
    iconButton("close", "Close", () => ((closed = reason.textContent), (failure.hidden = true)), { class: "small" }));
  const element = h("div", { class: "cluster-news" }, failure, progressing);
  const update = (view) => {
    const failed = view.change?.state === "failed" ? `The cluster could not change to ${shortName(view.change.model)}: ${view.change.reason}${view.change.hint ? ` (${view.change.hint})` : ""}.` : "";
    failure.hidden = !failed || failed === closed;
    if (reason.textContent !== failed) reason.textContent = failed;
    const changes = view.change && !DONE.has(view.change.state);
    const told = changes ? view.change : view.loading?.state === "loading" && view.loading; // who waits for machines sees that in the head
    progressing.hidden = !told;
    if (!told) return;
    const progress = changes && view.change.state !== "loading" ? view.change.progress : view.loading?.progress ?? 0;
    bar.value = progress;
    const words = changes ? `${WORDS[view.change.state]} ${shortName(view.change.model)}` : capital(view.reason) || `Loading ${shortName(view.model)}`;
    const next = `${words} · ${Math.round(100 * progress)} %`;
    if (text.textContent !== next) text.textContent = next;
  };
  return { element, update };
}

/** Change the model to `name`, if the reader agrees. */
export async function changeModel(name, now) {
  const agreed = await confirmed({
    title: `Run ${name}?`,
    text: `Everybody who asks this cluster gets ${name} instead of ${shortName(now)}. Answers under way end first; machines fetch what they do not have.`,
    action: "Change the model",
  });
  if (!agreed) return;
  try {
    await postJson("v1/models/load", { model: name, wait: false });
    toast(`The cluster changes to ${name}.`);
    document.querySelector(".cluster")?.scrollTo({ top: 0, behavior: scrollBehavior() }); // to the progress
  } catch (error) {
    toast(error.message);
  }
}

/** Options of models by name with their sizes, `running` first. */
export function modelOptions(models, running) {
  const known = models.some(({ name }) => name === running);
  const rest = models.map((one) => h("option", { value: one.name, selected: one.name === running }, `${one.name} · ${bytes(one.bytes)}`));
  return known ? rest : [h("option", { value: "", selected: true }, `${shortName(running)} · runs now`), ...rest];
}
