// The status page: asks once a second, and shows what it is told.
//
// Owns the loop, the history that the plots show, and the controls. It stops
// while the tab is hidden, and says so when the server does not answer.

import { hasKey, json, NONE, Refused, setKey } from "./page/api.js";
import { Chat } from "./page/chat.js";
import { age, bytes, count, figures, percent, put, sequences, trims, us } from "./page/figures.js";
import { binary, decimal, Plot } from "./page/plot.js";

const $ = (id) => document.getElementById(id);

const EVERY_MS = 1000;
/** What is kept: as much as the server keeps. */
const KEPT_MS = 10 * 60 * 1000;
/** Longer between two samples is a gap, not a line. */
const GAP_MS = 3000;
const KEPT_TRIMS = 1024;
/** A budget of more than so many times what is resident is not drawn. */
const FAR = 4;

const seen = { status: null, samples: [], trims: [], next: 0, now: 0, psi: [] };
let minutes = 5;
/** The time under the pointer, or null. */
let cursor = null;
let timer = 0;
let goneSince = null;

const chat = new Chat({
  model: () => seen.status?.model ?? "",
  refused: wantKey,
});

const plots = {
  stall: new Plot($("plot-stall"), { step: decimal, least: 1, write: (ms) => `${Number(ms.toPrecision(3))} ms` }),
  kv: new Plot($("plot-kv"), { step: binary, least: 1 << 20, write: (n) => bytes(n).replace(/\.0+ /, " ") }),
};

// --- what is known -------------------------------------------------------

function forget() {
  Object.assign(seen, { samples: [], trims: [], next: 0, psi: [] });
}

/** Adds what is new; answers overlap by a sample, so that no trim falls between two. */
function merge(history) {
  const last = seen.samples.at(-1)?.t_ms ?? -1;
  seen.samples.push(...history.samples.filter((s) => s.t_ms > last));
  for (const t of history.trims) {
    const same = (o) => Object.keys(t).every((k) => o[k] === t[k]);
    if (!seen.trims.some(same)) seen.trims.push(t);
  }
  seen.trims.sort((a, b) => a.t_ms - b.t_ms);
  seen.next = history.next;
  seen.now = history.now_ms;
  const from = seen.now - KEPT_MS;
  seen.samples = seen.samples.filter((s) => s.t_ms >= from);
  seen.trims = seen.trims.filter((t) => t.t_ms >= from).slice(-KEPT_TRIMS);
}

/** Shares of time and speeds, of the last seconds. */
function rates() {
  const last = (ms) => seen.samples.filter((s) => s.t_ms > seen.now - ms);
  const sum = (list, name) => list.reduce((n, s) => n + s[name], 0);
  const [two, ten] = [last(2000), last(10_000)];
  // A sample covers the quarter of a second before it.
  const share = (name) => (ten.length === 0 ? 0 : sum(ten, name) / (ten.length * 250_000));
  const [a, b] = [seen.psi[0], seen.psi.at(-1)];
  const past = a && b ? b.at - a.at : 0;
  const psi = (name) => (past > 0 ? (b[name] - a[name]) / 1e6 / past : null);
  return {
    stall: share("stall_us"),
    // Of the same time as full, which is never more.
    some: psi("some") ?? share("psi_some_us"),
    full: psi("full"),
    tokens: two.length === 0 ? 0 : sum(two, "tokens") / (two.length * 0.25),
  };
}

function keepPsi(status) {
  if (status.psi === null) return;
  seen.psi.push({ at: status.uptime_s, some: status.psi.some_us, full: status.psi.full_us });
  while (seen.psi.length > 2 && seen.psi[0].at < status.uptime_s - 10) seen.psi.shift();
}

// --- asking --------------------------------------------------------------

async function look() {
  const status = await json("kvpsi/status");
  // Another process answers at this address now: its history is its own.
  if (seen.status !== null && status.uptime_s < seen.status.uptime_s) forget();
  const since = seen.next > 1 ? `?since=${seen.next - 1}` : "";
  const before = seen.next;
  let history = await json(`kvpsi/history${since}`);
  if (history.next < before) {
    forget();
    history = await json("kvpsi/history");
  }
  seen.status = status;
  keepPsi(status);
  merge(history);
}

async function turn() {
  const begun = performance.now();
  try {
    await look();
    goneSince = null;
    link("up", "connected");
    $("gone").hidden = true;
    $("key").hidden = true;
    show();
  } catch (e) {
    if (e instanceof Refused && e.status === 401) {
      wantKey();
      return;
    }
    gone(e instanceof Refused ? e.message : "it answers in a shape that this page does not know");
    if (!(e instanceof Refused)) console.warn(e);
  }
  again(Math.max(EVERY_MS - (performance.now() - begun), 100));
}

/** One turn is under way or planned, never two. */
function again(ms) {
  clearTimeout(timer);
  timer = document.hidden ? 0 : setTimeout(turn, ms);
}

document.addEventListener("visibilitychange", () => again(0));

function link(state, text) {
  $("link").className = `link ${state}`;
  put("link", text);
}

function gone(why) {
  goneSince ??= Date.now();
  link("down", "no answer");
  $("gone").textContent =
    `kvpsi does not answer since ${new Date(goneSince).toLocaleTimeString()}${why === NONE ? "" : ` (${why})`}. ` +
    (seen.status === null ? "Trying again." : "What is shown is what was last known; trying again.");
  $("gone").hidden = false;
  document.body.classList.add("stale");
}

function wantKey() {
  clearTimeout(timer);
  link("down", "key wanted");
  $("gone").hidden = true;
  $("key-why").textContent = hasKey() ? "kvpsi refuses this API key. Another:" : "This kvpsi wants its API key:";
  if ($("key").hidden) {
    $("key").hidden = false;
    $("key-text").focus();
  }
}

$("key").addEventListener("submit", (e) => {
  e.preventDefault();
  try {
    setKey($("key-text").value.trim());
  } catch (error) {
    $("key-why").textContent = error.message;
    return;
  }
  $("key-text").value = "";
  $("key").hidden = true;
  link("waiting", "connecting");
  again(0);
});

// --- showing -------------------------------------------------------------

function show() {
  const { status } = seen;
  document.body.classList.remove("stale");
  document.title = `kvpsi · ${status.model}`;
  put("model", status.model);
  put("version", status.version);
  put("signal", status.rung === null ? `signal ${status.signal}` : `signal ${status.signal}, rung ${status.rung}`);
  put("uptime", `up ${age(status.uptime_s)}`);
  $("note").hidden = status.note === null;
  $("note").textContent = status.note ?? "";
  press("profile", status.profile);
  press("trimming", String(status.trimming));
  put("kv-now", `${bytes(status.kv.resident)} resident${status.kv.swapped ? `, ${bytes(status.kv.swapped)} in swap` : ""}, budget ${bytes(status.kv.budget)}, ${bytes(status.trims.bytes)} returned so far`);
  figures(status, rates());
  sequences(status.sequences);
  trims(seen.trims, seen.now);
  draw();
}

/** Shows which button of a group is chosen. */
function press(group, value) {
  for (const b of $(group).children) b.setAttribute("aria-pressed", String(b.dataset[group === "window" ? "minutes" : group] === value));
}

function colors() {
  const css = getComputedStyle(document.documentElement);
  const name = (n) => css.getPropertyValue(`--${n}`).trim();
  return Object.fromEntries(
    ["text", "muted", "grid", "card", "stall", "psi", "resident", "in-use", "budget", "trim", "lost"].map((n) => [n, name(n)]),
  );
}

/** Points of the samples that are shown, one list for each stretch without a gap. */
function stretches(value) {
  const from = seen.now - minutes * 60_000 - GAP_MS;
  const all = [];
  let before = -Infinity;
  for (const s of seen.samples) {
    if (s.t_ms < from) continue;
    if (s.t_ms - before > GAP_MS) all.push([]);
    all.at(-1).push([s.t_ms, value(s)]);
    before = s.t_ms;
  }
  return all;
}

function draw() {
  const c = colors();
  const line = (kind, color, value) => stretches(value).map((points) => ({ kind, color, points }));
  const marks = seen.trims.map((t) => ({ t: t.t_ms, color: t.tokens > 0 ? c.lost : c.trim, solid: t.tokens > 0 }));
  const shared = { from: seen.now - minutes * 60_000, to: seen.now, marks, cursor, colors: c };
  const bars = stretches((s) => s.stall_us / 1000).flat();
  // A budget far above would leave nothing to see of what is resident.
  const most = (name) => Math.max(...stretches((s) => s[name]).flat().map(([, v]) => v), 1 << 20);
  const aside = most("budget") > FAR * most("resident");
  put("legend-budget", aside ? "budget, above the plot" : "budget");
  plots.stall.draw({
    ...shared,
    series: [...line("area", c.psi, (s) => s.psi_some_us / 1000), { kind: "bars", color: c.stall, points: bars }],
  });
  plots.kv.draw({
    ...shared,
    series: [
      ...line("area", c.resident, (s) => s.resident),
      ...line("line", c["in-use"], (s) => s.in_use),
      ...line("dashes", c.budget, (s) => s.budget).map((s) => ({ ...s, aside })),
    ],
  });
  tip();
}

/** The sample that the column under the cursor shows: of those that share it, the one that stalled longest. */
function under(t) {
  const start = plots.stall.start(t);
  const end = start + plots.stall.span();
  const inside = seen.samples.filter((s) => s.t_ms >= start && s.t_ms < end);
  if (inside.length > 0) return inside.reduce((a, b) => (b.stall_us > a.stall_us ? b : a));
  const near = seen.samples.reduce((a, b) => (a && Math.abs(a.t_ms - t) <= Math.abs(b.t_ms - t) ? a : b), null);
  return near !== null && Math.abs(near.t_ms - t) < GAP_MS ? near : null;
}

function tip() {
  const sample = cursor === null ? null : under(cursor);
  $("tip").hidden = sample === null;
  if (sample === null) return;
  const back = seen.now - sample.t_ms;
  const lines = [
    `${age(back / 1000)} ago, ${new Date(Date.now() - back).toLocaleTimeString()}`,
    `stalled ${us(sample.stall_us)} in 250 ms, ${count(sample.stalls)} stalls`,
    `PSI some ${us(sample.psi_some_us)}`,
    `KV ${bytes(sample.resident)} resident, ${bytes(sample.in_use)} in use`,
    `budget ${bytes(sample.budget)}, ${bytes(sample.returned_total)} returned so far`,
    `${count(sample.tokens)} tokens, ${count(sample.running)} running, ${count(sample.waiting)} waiting`,
  ];
  const reach = Math.max(plots.stall.span() * 2, 250);
  const near = seen.trims.filter((t) => Math.abs(t.t_ms - cursor) <= reach);
  for (const t of near.slice(-3)) {
    lines.push(
      `${t.tokens > 0 ? "▼" : "▽"} ${t.trigger.replaceAll("_", " ")}, ${t.kind}, ${t.step}: ${bytes(t.bytes)} in ${us(t.onset_to_returned_us)}` +
        (t.tokens > 0 ? `, ${count(t.tokens)} tokens, ${percent(t.mass_dropped)} of attention` : ""),
    );
  }
  if (near.length > 3) lines.push(`and ${near.length - 3} more trims`);
  $("tip").replaceChildren(
    ...lines.map((text) => {
      const p = document.createElement("p");
      p.textContent = text;
      return p;
    }),
  );
  place();
}

/** Puts the tip beside the cursor, on the side that has room. */
function place() {
  const box = $("plot-stall");
  const x = box.offsetLeft + plots.stall.x(cursor);
  const left = x > box.offsetLeft + box.clientWidth / 2 ? x - $("tip").offsetWidth - 12 : x + 12;
  const right = box.offsetLeft + box.clientWidth - $("tip").offsetWidth;
  $("tip").style.left = `${Math.max(Math.min(left, right), 4)}px`;
}

// --- hands ---------------------------------------------------------------

for (const plot of Object.values(plots)) {
  const { canvas } = plot;
  const move = (e) => {
    cursor = plot.at(e.clientX - canvas.getBoundingClientRect().left);
    $("tip").style.top = `${canvas.offsetTop + 18}px`;
    draw();
  };
  const leave = () => {
    cursor = null;
    draw();
  };
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerdown", move);
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (e) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (way === undefined) return;
    e.preventDefault();
    const to = (cursor ?? seen.now) + way * Math.max(plot.span(), 250);
    cursor = Math.min(Math.max(to, plot.from), plot.to);
    $("tip").style.top = `${canvas.offsetTop + 18}px`;
    draw();
  });
}

function chooseWindow(value) {
  minutes = Number(value);
  press("window", value);
  draw();
}

for (const b of $("window").children) b.addEventListener("click", () => chooseWindow(b.dataset.minutes));

/** Sends an order and says what came of it. */
async function order(path, body, done) {
  put("said", "...");
  try {
    put("said", done(await json(path, { body, ms: 30_000 })));
    again(0);
  } catch (e) {
    put("said", e instanceof Refused ? `Not done: ${e.message}` : "Not done.", true);
    if (e.status === 401) wantKey();
  }
}

for (const b of $("profile").children) {
  const { profile } = b.dataset;
  b.addEventListener("click", () => order("kvpsi/control", { profile }, (s) => `The profile is ${s.profile}.`));
}

for (const b of $("trimming").children) {
  const trimming = b.dataset.trimming === "true";
  b.addEventListener("click", () =>
    order("kvpsi/control", { trimming }, (s) => (s.trimming ? "Trimming is on." : "Trimming is off: kvpsi only watches.")),
  );
}

$("trim").addEventListener("submit", (e) => {
  e.preventDefault();
  const wanted = Number($("trim-mib").value) * 2 ** 20;
  order("kvpsi/trim", { bytes: wanted }, (d) =>
    d.bytes === 0 ? "Nothing could be returned." : `${bytes(d.bytes)} returned, ${count(d.tokens)} tokens lost.`,
  );
});

new ResizeObserver(() => draw()).observe($("plot-stall"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
chooseWindow("5");
again(0);
