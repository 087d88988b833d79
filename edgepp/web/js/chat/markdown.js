// Markdown that grows: blocks that are finished are rendered once, and only the open block again, once per frame.
//
// A block is finished when the first line of a later block is whole, since no further text can change it then. Lists and
// tables are long blocks, so their finished items and rows are kept as well. All texts share the time of a frame (frames.js),
// and a text whose frame took long waits in proportion before the next one.

import { codeBlock, dressCode, finishCode, setCode } from "./code_block.js";
import { blocksOf, elementsOf, itemOf, rowOf } from "./sanitize.js";
import { h } from "../dom.js";
import { inFrame, notInFrame } from "../frames.js";

const REST = 3; // pause after a frame, as a multiple of its duration, beyond SHORT_MS
const SHORT_MS = 6;

/** What has been done so far on this page, for tests and the bench. */
export const work = { frames: 0, pieces: 0, longestMs: 0 };

export class GrowingMarkdown {
  #text = "";
  #finished = 0; // characters of finished blocks
  #open = []; // { token, element, pieces } of the blocks behind them
  #tokens = null; // of the text behind the finished blocks, while it stays the same
  #resting = 0;
  #isWhole = false;
  #work = (until) => this.#frame(until);

  /** Show Markdown in `element`. */
  constructor(element) {
    this.element = element;
  }

  /** Show `text` soon. */
  set(text) {
    const whole = text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
    if (whole === this.#text) return;
    if (!whole.startsWith(this.#text.slice(0, this.#finished))) this.#clear();
    this.#text = whole;
    this.#tokens = null;
    this.#isWhole = false;
    this.#soon();
  }

  /** The text is whole: a definition of a link may stand at the end, and count for all that was rendered before. */
  finish() {
    this.#isWhole = true;
    this.#soon();
    if (!/^ {0,3}\[[^\]]+\]:\s/m.test(this.#text)) return;
    this.#clear();
  }

  /** Render nothing more. */
  stop() {
    clearTimeout(this.#resting);
    notInFrame(this.#work);
  }

  #clear() {
    this.element.replaceChildren();
    this.#finished = 0;
    this.#open = [];
    this.#tokens = null;
  }

  #soon() {
    if (!this.#resting) inFrame(this.#work);
  }

  #frame(until) {
    const began = performance.now();
    const rest = this.#text.slice(this.#finished);
    this.#tokens ??= blocksOf(rest).filter(({ raw }) => raw);
    const isWhole = this.#render(this.#tokens, until);
    if (isWhole) this.#finish(this.#tokens, rest);
    if (isWhole && this.#isWhole) this.#open.filter(({ token }) => token.type === "code").forEach(({ element }) => finishCode(element));
    const tookMs = performance.now() - began;
    work.frames += 1;
    work.longestMs = Math.max(work.longestMs, tookMs);
    if (!isWhole) this.#soon();
    else if (tookMs > SHORT_MS && !this.#isWhole) this.#rest(tookMs * REST);
  }

  /** Do nothing for a while; what comes meanwhile is shown then. */
  #rest(ms) {
    const shown = this.#text;
    this.#resting = setTimeout(() => {
      this.#resting = 0;
      if (this.#text !== shown || this.#isWhole) this.#soon();
    }, ms);
  }

  /** Make the open blocks those of `tokens`; false if the time did not suffice, so that another frame must go on. */
  #render(tokens, until) {
    const visible = tokens.filter(({ type }) => type !== "space" && type !== "def");
    while (this.#open.length > visible.length) this.#open.pop().element.remove();
    for (const [at, token] of visible.entries()) {
      let block = this.#open[at];
      if (block && block.token.type !== token.type) {
        for (const stale of this.#open.splice(at)) stale.element.remove();
        block = undefined;
      }
      if (!block) {
        block = newBlock(token);
        this.#open.push(block);
        this.element.append(block.element);
      }
      if (!update(block, token, until)) return false;
      if (performance.now() > until && at < visible.length - 1) return false;
    }
    return true;
  }

  /** Leave behind the blocks that nothing can change any more. */
  #finish(tokens, rest) {
    let end = 0;
    let numDone = 0;
    let visible = 0;
    let safe = 0;
    for (const token of tokens) {
      if (!rest.startsWith(token.raw, end)) break; // the lexer has changed the text: nothing behind is sure
      const isVisible = token.type !== "space" && token.type !== "def";
      if (isVisible && visible > 0 && rest.indexOf("\n", end) >= 0) {
        safe = end;
        numDone = visible;
      }
      if (isVisible) visible += 1;
      end += token.raw.length;
    }
    this.#finished += safe;
    if (safe) this.#tokens = null;
    for (const block of this.#open.splice(0, numDone)) if (block.token.type === "code") finishCode(block.element);
  }
}

function newBlock(token) {
  if (token.type === "code") return { token, element: codeBlock("", token.lang ?? ""), pieces: [] };
  if (token.type === "list") return { token, element: listOf(token), pieces: [] };
  if (token.type === "table") return { token, element: tableOf(), pieces: [] };
  return { token: { ...token, raw: null }, element: h("div", { class: "block" }), pieces: [] };
}

function listOf({ ordered, start }) {
  return h(ordered ? "ol" : "ul", { dir: "auto", start: ordered && start !== 1 ? start : null });
}

function tableOf() {
  return h("div", { class: "table-scroll", dir: "auto", tabindex: "0", role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}), h("tbody", {})));
}

/** Have `block` show `token`; false if the time did not suffice. */
function update(block, token, until) {
  const former = block.token;
  block.token = token;
  if (token.type === "code") {
    setCode(block.element, token.text);
    block.element.querySelector(".code-language").textContent = (token.lang ?? "").trim().split(/\s/)[0].slice(0, 40) || "text";
    work.pieces += 1;
    return true;
  }
  if (token.type === "list") return updatePieces(block, listPieces(token), block.element, until);
  if (token.type === "table") return updatePieces(block, tablePieces(token), null, until);
  if (former.raw !== token.raw) {
    const fragment = elementsOf([token]);
    for (const element of fragment.children) element.dir = "auto"; // each block has the direction of its own text
    dressCode(fragment);
    block.element.replaceChildren(fragment);
    work.pieces += 1;
  }
  return true;
}

function listPieces(list) {
  return list.items.map((item) => ({ key: `${item.loose}${item.raw}`, make: () => itemOf(list, item) }));
}

function tablePieces({ header, rows }) {
  const keyOf = (cells) => cells.map(({ text }) => text).join("\u0000");
  return [header, ...rows].map((cells, at) => ({ key: keyOf(cells), isHead: at === 0, make: () => rowOf(cells, at === 0) }));
}

function updatePieces(block, wanted, parent, until) {
  while (block.pieces.length > wanted.length) block.pieces.pop().element.remove();
  for (const [at, { key, make, isHead }] of wanted.entries()) {
    const had = block.pieces[at];
    if (had?.key === key) continue;
    if (performance.now() > until) return false;
    const element = make() ?? document.createElement("span");
    dressCode(element);
    if (had) had.element.replaceWith(element);
    else (parent ?? block.element.querySelector(isHead ? "thead" : "tbody")).append(element);
    block.pieces[at] = { key, element };
    work.pieces += 1;
  }
  return true;
}
