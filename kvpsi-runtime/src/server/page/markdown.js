// A small part of Markdown, as elements.
//
// Owns paragraphs, headings, lists, code, bold text, and links, which are shown
// as text: nothing of an answer is fetched or run. Invariants: elements are of the
// tags below, without attributes; nothing but marks and numbers of items is left out; the time
// is about linear in the text. Out of scope: tables, nested lists, HTML: these are
// text.

/** What an answer can become. */
export const TAGS = new Set(["p", "pre", "code", "strong", "ul", "ol", "li"]);

/** Characters in which the end of a link is looked for. */
const LINK = 2000;

const node = (tag, children) => ({ tag, children });

/** Texts and nodes of a line's text. */
function inline(text) {
  const parts = [];
  // What has no end from here on has none further on either.
  const endless = new Set();
  const end = (mark, from) => {
    if (endless.has(mark)) return -1;
    const at = text.indexOf(mark, from);
    if (at === -1) endless.add(mark);
    return at;
  };
  let plain = "";
  const flush = () => {
    if (plain !== "") parts.push(plain);
    plain = "";
  };
  let i = 0;
  while (i < text.length) {
    const c = text[i];
    if (c === "`") {
      let n = 1;
      while (text[i + n] === "`") n += 1;
      const mark = text.slice(i, i + n);
      const at = end(mark, i + n);
      if (at !== -1) {
        flush();
        parts.push(node("code", [text.slice(i + n, at)]));
        i = at + n;
        continue;
      }
      plain += mark;
      i += n;
      continue;
    }
    if (text.startsWith("**", i) && text[i + 2] !== undefined && !/[\s*]/.test(text[i + 2])) {
      const at = end("**", i + 2);
      if (at > i + 2) {
        flush();
        parts.push(node("strong", inline(text.slice(i + 2, at))));
        i = at + 2;
        continue;
      }
    }
    if (c === "[") {
      const near = text.slice(i, i + LINK);
      const link = /^\[([^[\]\n]*)\]\(([^()\s]*)\)/.exec(near);
      if (link !== null) {
        const [whole, label, target] = link;
        plain += label === "" || label === target ? target : `${label} (${target})`;
        i += whole.length;
        continue;
      }
    }
    plain += c;
    i += 1;
  }
  flush();
  return parts;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const HEADING = /^ {0,3}#{1,6}[ \t]+/;
const ITEM = /^[ \t]{0,12}(?:([-*+])|\d{1,9}[.)])[ \t]+/;

/** The blocks of a text, each a tag and its children: texts and such again. */
export function parse(text) {
  const lines = text.split("\n");
  const blocks = [];
  let paragraph = [];
  let list = null;
  const close = () => {
    if (paragraph.length > 0) blocks.push(node("p", inline(paragraph.join("\n"))));
    paragraph = [];
    list = null;
  };
  for (let i = 0; i < lines.length; i += 1) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (fence !== null) {
      close();
      const code = [];
      const mark = fence[1];
      // One that has no end yet is still being written.
      for (i += 1; i < lines.length && !lines[i].trimStart().startsWith(mark); i += 1) code.push(lines[i]);
      blocks.push(node("pre", [node("code", [code.join("\n")])]));
      continue;
    }
    if (line.trim() === "") {
      // A list goes on behind an empty line.
      if (paragraph.length > 0) close();
      continue;
    }
    const heading = HEADING.exec(line);
    if (heading !== null) {
      close();
      blocks.push(node("p", [node("strong", inline(line.slice(heading[0].length)))]));
      continue;
    }
    const item = ITEM.exec(line);
    if (item !== null) {
      const tag = item[1] === undefined ? "ol" : "ul";
      if (list === null || list.tag !== tag) {
        close();
        list = node(tag, []);
        blocks.push(list);
      }
      list.children.push(node("li", inline(line.slice(item[0].length))));
      continue;
    }
    const last = list?.children.at(-1);
    if (last !== undefined && /^[ \t]/.test(line)) {
      last.children.push("\n", ...inline(line.trim()));
      continue;
    }
    if (list !== null) close();
    paragraph.push(line);
  }
  close();
  return blocks;
}

/** The elements of what `parse` returned. */
export function elements(nodes) {
  return nodes.map((part) => {
    if (typeof part === "string") return document.createTextNode(part);
    if (!TAGS.has(part.tag)) throw new TypeError(`no element ${part.tag}`);
    const element = document.createElement(part.tag);
    element.append(...elements(part.children));
    return element;
  });
}
