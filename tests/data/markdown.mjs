// The page's Markdown, as node runs it: what becomes of answers, and of those that
// try to be more than text. Argument: the file. Prints "all is well".

import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const { parse, elements, TAGS } = await import(pathToFileURL(process.argv[2]));
const is = (text, blocks) => assert.deepEqual(parse(text), blocks, text);
const p = (...children) => ({ tag: "p", children });
const tag = (name, ...children) => ({ tag: name, children });

is("", []);
is("one\ntwo\n\nthree", [p("one\ntwo"), p("three")]);
is("a `b` **c `d`** e", [p("a ", tag("code", "b"), " ", tag("strong", "c ", tag("code", "d")), " e")]);
is("## A **title**", [p(tag("strong", "A ", tag("strong", "title")))]);
is("- a\n- b\n  more\n\n- c\nend", [
  tag("ul", tag("li", "a"), tag("li", "b", "\n", "more"), tag("li", "c")),
  p("end"),
]);
is("1. a\n2) b", [tag("ol", tag("li", "a"), tag("li", "b"))]);
is("x\n```rust\n<b>\n\n**no**\n```\ny", [p("x"), tag("pre", tag("code", "<b>\n\n**no**")), p("y")]);
// Still being written.
is("```\nlet a", [tag("pre", tag("code", "let a"))]);
is("**a `b", [p("**a `b")]);
is("2 * 3 ** 4 and a*b*c", [p("2 * 3 ** 4 and a*b*c")]);
// Links are texts that show where they lead.
is("[here](https://x.example/?a=1) ![i](y.png)", [p("here (https://x.example/?a=1) !i (y.png)")]);
is("[a](javascript:alert) [b] (c)", [p("a (javascript:alert) [b] (c)")]);
// HTML is text.
const html = "<img src=x onerror=alert(1)><script>alert(2)</script>&lt;";
is(html, [p(html)]);

const walk = (nodes, see) => {
  for (const n of nodes) {
    see(n);
    if (typeof n !== "string") walk(n.children, see);
  }
};
// Whatever the text, only known tags, no attribute, and no character that was not in it.
let seed = 1;
const draw = (n) => (seed = (seed * 48271) % 2147483647) % n;
const pieces = ["`", "``", "```", "**", "*", "[", "](", ")", "\n", "\n\n", "- ", "1. ", "# ", " ", "a", "<b>", "&", "\u{1f980}", "~~~", "\\"];
for (let i = 0; i < 20000; i += 1) {
  let text = "";
  for (let n = draw(30); n > 0; n -= 1) text += pieces[draw(pieces.length)];
  let shown = 0;
  walk(parse(text), (n) => {
    if (typeof n === "string") {
      for (const c of n) assert.ok(text.includes(c) || c === "\n" || " ()".includes(c), JSON.stringify(text));
      shown += n.replaceAll(/[\s()]/g, "").length;
    } else {
      assert.deepEqual([Object.keys(n), TAGS.has(n.tag)], [["tag", "children"], true]);
    }
  });
  const letters = text.match(/[a&]|<b>|\u{1f980}/gu)?.join("").length ?? 0;
  // The words behind a fence's mark are its language.
  if (!/```|~~~/.test(text)) assert.ok(shown >= letters, JSON.stringify([text, parse(text)]));
}
// Long ones take their time, and no more.
for (const text of ["`".repeat(200000), "**a".repeat(70000), "[".repeat(200000), "[a](".repeat(50000), "- \n".repeat(70000), "`a``".repeat(50000)]) {
  const since = performance.now();
  parse(text);
  assert.ok(performance.now() - since < 5000, text.slice(0, 8));
}
assert.throws(() => elements([{ tag: "script", children: [] }]), /no element/);
console.log("all is well");
