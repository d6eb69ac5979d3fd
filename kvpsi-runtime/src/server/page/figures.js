// Figures, bars and tables of a status.
//
// Owns how numbers are written and where they stand. Whatever came from the
// server is put in as text, never as markup. Out of scope: input.

const $ = (id) => document.getElementById(id);

/** Trims that are listed. */
const LISTED = 20;

export function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1 << 20) return `${(n / 1024).toFixed(1)} KiB`;
  if (n < 1 << 30) return `${(n / (1 << 20)).toFixed(1)} MiB`;
  return `${(n / (1 << 30)).toFixed(2)} GiB`;
}

export function count(n) {
  return Number(n).toLocaleString("en-US");
}

/** Microseconds, with a unit that fits. */
export function us(n) {
  if (n < 10_000) return `${count(n)} us`;
  if (n < 1_000_000) return `${(n / 1000).toFixed(1)} ms`;
  return `${(n / 1e6).toFixed(1)} s`;
}

export function age(s) {
  if (s < 60) return s < 10 ? `${s.toFixed(1)} s` : `${Math.floor(s)} s`;
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  const two = (n) => String(n).padStart(2, "0");
  if (d > 0) return `${d} d ${two(h)}:${two(m)} h`;
  return h > 0 ? `${h}:${two(m)}:${two(Math.floor(s) % 60)} h` : `${m}:${two(Math.floor(s) % 60)} min`;
}

export function percent(share) {
  return `${(share * 100).toFixed(1)} %`;
}

export function put(id, text, alarm = false) {
  const element = $(id);
  if (element.textContent !== text) element.textContent = text;
  element.classList.toggle("alarm", alarm);
}

/** Widths of the bar of KV by kind, all of them shares of `whole`. */
function memory(kv) {
  const whole = Math.max(kv.capacity, kv.resident, kv.budget, 1);
  const share = (n) => `${Math.min((n / whole) * 100, 100)}%`;
  for (const kind of ["in_use", "cached", "slack"]) {
    $(`bar-${kind}`).style.width = share(kv[kind]);
    put(`kv-${kind}`, bytes(kv[kind]));
  }
  $("bar-budget").style.left = share(kv.budget);
  $("bar-floor").style.left = share(kv.floor);
  put("kv-resident", bytes(kv.resident));
  put("kv-budget", bytes(kv.budget));
  put("kv-floor", bytes(kv.floor));
  put("kv-capacity", bytes(kv.capacity));
  put("kv-tokens", `${count(kv.tokens)} tokens`);
}

/** All figures of a status. `rates` are what the page worked out of the last samples. */
export function figures(status, rates) {
  const { stalls, psi, trims, requests } = status;
  memory(status.kv);
  put("rss", bytes(status.rss));
  put("limit", status.limit === null ? "no limit" : `of ${bytes(status.limit)}`);

  const measured = stalls.some_us !== null;
  put("stalled", measured ? percent(rates.stall) : "-", rates.stall >= 0.1);
  put("stalled-total", measured ? `${us(stalls.some_us)} since start` : "not measured");
  put("psi-some", psi === null ? "-" : percent(rates.some), rates.some >= 0.1);
  put("psi-some-total", psi === null ? "no PSI here" : `${us(psi.some_us)} since boot`);
  put("psi-full", psi === null || rates.full === null ? "-" : percent(rates.full), rates.full >= 0.1);
  put("psi-full-total", psi === null ? "no PSI here" : `${us(psi.full_us)} since boot`);

  put("seen", count(stalls.seen));
  put("delivered", count(stalls.delivered));
  put("coalesced", count(stalls.coalesced));
  put("dropped", count(stalls.dropped), stalls.dropped > 0);

  put("returned", bytes(trims.bytes));
  put("trim-count", `${count(trims.count)} trims`);
  put("trim-tokens", `${count(trims.tokens)} tokens lost`);
  const steps = Object.entries(trims.by_step).map(([step, n]) => `${step} ${bytes(n)}`);
  put("by-step", steps.length === 0 ? "nothing yet" : steps.join(", "));

  put("speed", rates.tokens.toFixed(1));
  put("generated", count(requests.tokens));
  put("prompted", count(requests.prompt_tokens));
  for (const name of ["running", "waiting", "finished", "cancelled", "refused", "failed"]) {
    put(name, count(requests[name]), name === "failed" && requests.failed > 0);
  }
}

/** Puts rows of texts into a table's body; a cell may be {text, title, alarm}. */
function fill(body, rows, empty) {
  const heads = body.closest("table").tHead.rows[0].cells;
  const made = rows.map((cells) => {
    const row = document.createElement("tr");
    for (const [i, cell] of cells.entries()) {
      const td = document.createElement("td");
      td.className = heads[i].className;
      td.textContent = cell?.text ?? cell;
      if (cell?.title) td.title = cell.title;
      if (cell?.alarm) td.classList.add("alarm");
      row.append(td);
    }
    return row;
  });
  if (made.length === 0) {
    const row = document.createElement("tr");
    const td = document.createElement("td");
    td.colSpan = heads.length;
    td.className = "empty";
    td.textContent = empty;
    row.append(td);
    made.push(row);
  }
  body.replaceChildren(...made);
}

export function sequences(list) {
  const rows = list.map((s) => [
    { text: s.id, title: s.id },
    s.doing,
    count(s.prompt_tokens),
    count(s.tokens),
    { text: count(s.lost_tokens), alarm: s.lost_tokens > 0 },
    age(s.age_s),
  ]);
  fill($("sequences"), rows, "No request is in flight.");
}

/** The newest trims first. */
export function trims(list, now) {
  const rows = list.slice(-LISTED).reverse().map((t) => [
    `${age(Math.max(now - t.t_ms, 0) / 1000)} ago`,
    t.trigger.replaceAll("_", " "),
    t.kind,
    t.step,
    bytes(t.bytes),
    { text: count(t.tokens), alarm: t.tokens > 0 },
    percent(t.mass_dropped),
    us(t.onset_to_returned_us),
  ]);
  fill($("trims"), rows, "Nothing was given back in the last ten minutes.");
}
