// Code in three tones: comments, strings, words of the language. One rough reader for all languages; what it does not
// know stays plain. The text itself is never changed.

import { h } from "../dom.js";

const MOST_CHARACTERS = 30_000;
const HASH = "sh bash zsh shell console python py ruby rb perl yaml yml toml ini make makefile dockerfile r elixir nix";
const DASHES = "sql lua haskell hs ada";
const PLAIN = "text txt plaintext markdown md output log csv";
const WORDS = new Set(("abstract and as assert async await begin bool break case catch char class const continue def default defer del do "
  + "done double elif else elsif end enum esac except export extends false fi final finally float fn for from func function global go if "
  + "impl implements import in instanceof int interface is lambda let local long loop match mod module mut namespace new nil none not null "
  + "of or package pass private protected pub public raise readonly ref return select self set short signed sizeof static string struct "
  + "super switch then this throw throws trait true try type typeof union unless unsigned until use using val var void when where while "
  + "with yield").split(" "));
const SQL = new Set("select from where insert into values update set delete create table alter drop join left right inner outer on group by order having limit and or not null primary key index union as distinct count".split(" "));

/** A fragment that shows `text` in tones, or null where it should stay plain. */
export function toned(text, language) {
  const name = language.toLowerCase();
  if (text.length > MOST_CHARACTERS || PLAIN.split(" ").includes(name)) return null;
  const isSql = name.includes("sql");
  const fragment = document.createDocumentFragment();
  let plain = "";
  const flush = () => {
    if (plain) fragment.append(plain);
    plain = "";
  };
  for (const [piece] of text.matchAll(readerOf(name))) {
    const tone = toneOf(piece, isSql);
    if (!tone) {
      plain += piece;
    } else {
      flush();
      fragment.append(h("span", { class: `tone-${tone}` }, piece));
    }
  }
  flush();
  return fragment;
}

/** A pattern whose matches are the whole text: a comment, a string, a word, or one other character. */
function readerOf(name) {
  const comment = HASH.split(" ").includes(name)
    ? "(?<![\\w$])#[^\\n]*"
    : DASHES.split(" ").includes(name) ? "--[^\\n]*" : "\\/\\/[^\\n]*|\\/\\*[\\s\\S]*?\\*\\/|<!--[\\s\\S]*?-->";
  const string = `"(?:[^"\\\\\\n]|\\\\.)*"|'(?:[^'\\\\\\n]|\\\\.)*'|\`(?:[^\`\\\\]|\\\\.)*\``;
  return new RegExp(`${comment}|${string}|[A-Za-z_$][\\w$-]*|[\\s\\S]`, "g");
}

function toneOf(piece, isSql) {
  if (piece.length === 1) return null;
  if (/^["'`]/.test(piece)) return "string";
  if (/^(?:#|--|\/\/|\/\*|<!--)/.test(piece)) return "comment";
  return (isSql ? SQL.has(piece.toLowerCase()) : WORDS.has(piece)) ? "word" : null;
}
