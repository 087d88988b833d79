// The dialogue that invites a machine: the code, the command to copy, a QR code, and the time that is left.

import { postJson } from "../api.js";
import { copyText } from "../clipboard.js";
import { openDialog } from "../dialogs.js";
import { h, icon } from "../dom.js";
import { toast } from "../toasts.js";
import { watchCluster } from "./feed.js";

/** Open an invitation and show it until it is used, is over, or is closed. */
export async function showInvitation() {
  let told;
  try {
    told = await postJson("v1/cluster/invite", {});
  } catch (error) {
    toast(error.message);
    return;
  }
  const left = h("p", { class: "invite-left tabular", role: "timer" });
  const body = h("div", { class: "invite" },
    h("p", {}, "Run this on the other machine, where edgepp is installed:"),
    commandOf(told.command),
    h("details", {}, h("summary", {}, "If it does not find this machine by itself"), commandOf(told.command_without_multicast)),
    h("img", { class: "invite-qr", alt: `QR code of: ${told.command_without_multicast}`, src: `data:image/svg+xml,${encodeURIComponent(told.qr_svg)}` }),
    left,
    h("p", { class: "invite-note" }, "The code works once, and is void after three wrong guesses."));
  const dialog = openDialog({ title: "Invite a machine", body });
  const until = Date.now() + 1000 * told.expires_in_s;
  const tick = () => {
    const seconds = Math.max(0, Math.round((until - Date.now()) / 1000));
    left.textContent = seconds ? `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")} left` : "The code has expired.";
  };
  tick();
  const timer = setInterval(tick, 1000);
  const number = told.code.split("-")[0];
  let before = null; // events that there were already: a number may have been used before
  const end = watchCluster(({ view }) => {
    before ??= view ? new Set(view.events.map(keyOf)) : null;
    const used = view?.events.find((event) => event.kind === "NodePaired" && event.text.endsWith(`invitation ${number}`) && !before.has(keyOf(event)));
    if (used) {
      toast(`${used.text}.`);
      dialog.close(true);
    }
  });
  await dialog.closed;
  clearInterval(timer);
  end();
}

function keyOf({ at_s: at, text }) {
  return `${at} ${text}`;
}

function commandOf(command) {
  const copy = async () => toast((await copyText(command)) ? "Copied." : "The browser does not allow that here; select the command.");
  return h("div", { class: "invite-command" }, h("code", {}, command),
    h("button", { type: "button", class: "button small", onclick: copy }, icon("copy"), "Copy"));
}
