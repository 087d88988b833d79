// Markdown of a model as elements. The model is hostile until shown otherwise: no script, no style, no form, no image of
// another host, no name that a page could mistake for its own; and a link goes only where a click says.

import DOMPurify from "../../vendor/purify.es.mjs";
import { Marked } from "../../vendor/marked.esm.js";

const TAGS = "a abbr b blockquote br code dd del details div dl dt em h3 h4 h5 h6 hr i ins kbd li mark ol p pre s small span strong sub summary sup table tbody td th thead tr u ul";
const OPTIONS = {
  ALLOWED_TAGS: TAGS.split(" "),
  ALLOWED_ATTR: ["href", "title", "align", "start", "class", "colspan", "rowspan", "open"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};
const CLASSES = /^(?:language-[\w+#.-]{1,40}|task-box|task-done|remote-image)$/;

const purify = DOMPurify(window);
purify.addHook("uponSanitizeAttribute", (_, attribute) => {
  if (attribute.attrName === "class" && !attribute.attrValue.split(/\s+/).every((one) => CLASSES.test(one))) attribute.keepAttr = false;
});
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName !== "A" || !node.hasAttribute("href")) return;
  const href = node.getAttribute("href");
  if (isOwn(href)) return node.removeAttribute("href"); // a link of the model must not act on this server
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
  node.setAttribute("title", href.slice(0, 300));
});

function isOwn(href) {
  try {
    const url = new URL(href);
    return url.protocol !== "mailto:" && url.host === location.host;
  } catch {
    return true;
  }
}

function escaped(text) {
  return text.replace(/[&<>"]/g, (one) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[one]);
}

const marked = new Marked({
  gfm: true,
  renderer: {
    // The page's own headings are h1 and h2.
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    // An image would tell its host who reads, and when: a link in its place.
    image({ href, text }) {
      return `<a class="remote-image" href="${escaped(href)}">${escaped(text || "Image")}</a>`;
    },
    checkbox({ checked }) {
      return `<span class="task-box${checked ? " task-done" : ""}"></span> `;
    },
  },
});

/** The blocks of a Markdown text. */
export function blocksOf(text) {
  return marked.lexer(text);
}

/** The elements of some blocks, safe to put into the page. */
export function elementsOf(tokens) {
  return purify.sanitize(marked.parser(tokens), OPTIONS);
}

/** One row of a table as its element. */
export function rowOf(cells, isHead) {
  const tag = isHead ? "th" : "td";
  const inside = cells.map(({ tokens, align }) => `<${tag}${align ? ` align="${align}"` : ""}>${marked.Parser.parseInline(tokens, marked.defaults)}</${tag}>`);
  return purify.sanitize(`<table><tbody><tr>${inside.join("")}</tr></tbody></table>`, OPTIONS).querySelector("tr");
}

/** One item of a list as its element. */
export function itemOf(list, item) {
  return elementsOf([{ ...list, items: [item] }]).querySelector("li");
}
