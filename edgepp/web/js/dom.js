// Elements without markup in strings: text is always text, and the content policy stays strict.

import { ICONS } from "./icons.js";

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "selected", "open", "htmlFor", "indeterminate"]);

/**
 * An element: h("button", { class: "button", onclick: act }, icon("plus"), "New").
 * Functions named on… become listeners, true an empty attribute; null, undefined and false leave an attribute out.
 * Children are nodes, strings, numbers, arrays of them, or nothing.
 */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An element of SVG, with the same arguments. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** One of the icons of icons.js, hidden from screen readers: the control around it has the label. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true", focusable: "false" },
    ICONS[name].map((path) => svg("path", { d: path })));
}

/** A button with an icon alone, which `label` names for screen readers and as a tooltip. */
export function iconButton(name, label, onclick, attributes = {}) {
  const { class: more = "", ...rest } = attributes;
  return h("button", { type: "button", class: `button quiet icon-only ${more}`, "aria-label": label, title: label, onclick, ...rest },
    icon(name));
}

/** Let `element` have these children and no others. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Tell a screen reader, once, politely. */
export function announce(text) {
  const announcer = document.getElementById("announcer");
  announcer.textContent = "";
  setTimeout(() => (announcer.textContent = text), 50); // the same text again is told again
}

/** How to scroll for a reader who may want no motion. */
export function scrollBehavior() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth";
}

let numIds = 0;

/** A new id for an element, to bind labels to fields. */
export function newId(prefix = "id") {
  numIds += 1;
  return `${prefix}-${numIds}`;
}
