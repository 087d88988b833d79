// The start of the page: the frame, then the view that the hash names. A view is a module with
// `mount(main, parts)`, which fills <main>, panel() and the top bar, and returns { update(parts), unmount() }.

import { askWith, takeKeyFromHash } from "./api_key.js";
import { fill, h, icon } from "./dom.js";
import { showStrip } from "./cluster/strip.js";
import { showKeyDialog } from "./key_dialog.js";
import { startRouter } from "./router.js";
import { drawShell, panel, setTopbar } from "./shell.js";
import { place } from "./state.js";
import { toast } from "./toasts.js";
import "./theme.js";

const VIEWS = [
  { name: "chat", label: "Chat", icon: "chat", load: () => import("./chat/view.js") },
  { name: "cluster", label: "Cluster", icon: "cluster", load: () => import("./cluster/view.js") },
];
const SOON_MS = 1500;
let shown = { name: "", mounted: null };

async function show({ view, parts }) {
  if (view === shown.name) return shown.mounted?.update(parts);
  shown.mounted?.unmount();
  const mine = (shown = { name: view, mounted: null });
  const main = document.getElementById("main");
  const described = VIEWS.find(({ name }) => name === view);
  document.title = `${described.label} · edgepp`;
  let module;
  try {
    module = await described.load();
  } catch {
    fill(panel());
    setTopbar(described.label);
    return fill(main, h("div", { class: "view-failed" }, failed()));
  }
  if (mine !== shown) return undefined; // the reader has gone on
  fill(panel());
  mine.mounted = module.mount(fill(main), place.get().parts);
  return undefined;
}

function failed() {
  return h("p", { class: "notice danger", role: "alert" }, icon("alert"), h("span", { class: "notice-text" }, "A part of this page could not be loaded. "),
    h("button", { type: "button", class: "button small", onclick: () => location.reload() }, "Reload"));
}

askWith(showKeyDialog);
const tookKey = takeKeyFromHash();
drawShell(VIEWS);
showStrip(document.getElementById("strip"));
startRouter(VIEWS.map(({ name }) => name));
place.watch(show);
setTimeout(() => VIEWS.forEach(({ load }) => load().catch(() => {})), SOON_MS); // so that a view opens when the server is lost; show() tells of failures
if (tookKey) toast("The API key of the QR code is used until this tab is closed.");
