// One plot over time on one canvas.
//
// Owns pixels, scales and ticks. Out of scope: what is plotted: it is handed
// points, marks and how a value is written.

const GAP = { top: 16, right: 10, bottom: 18, left: 62 };
/** Least distance of two ticks, CSS pixels. */
const TICK = 34;
/** Width of a bar, CSS pixels. */
const BAR = 3;
/** Least distance of two marks, CSS pixels. */
const MARK = 9;

/** The next step of 1, 2, 5 times a power of ten. */
export function decimal(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  const head = step / power;
  return power * (head <= 1 ? 1 : head <= 2 ? 2 : head <= 5 ? 5 : 10);
}

/** The next power of two. */
export function binary(step) {
  return 2 ** Math.ceil(Math.log2(step));
}

function time(ms) {
  const s = Math.round(ms / 1000);
  if (s === 0) return "now";
  return s % 60 === 0 ? `-${s / 60} min` : `-${s} s`;
}

export class Plot {
  /** `step` rounds a distance of ticks up, `write` writes a value, `least` is the smallest top. */
  constructor(canvas, { step, write, least }) {
    this.canvas = canvas;
    this.step = step;
    this.write = write;
    this.least = least;
    this.from = 0;
    this.to = 1;
  }

  width() {
    return Math.max(this.canvas.clientWidth - GAP.left - GAP.right, 1);
  }

  x(t) {
    return GAP.left + ((t - this.from) / (this.to - this.from)) * this.width();
  }

  /** The time at a distance in CSS pixels from the canvas's left edge, or null outside. */
  at(x) {
    if (x < GAP.left - 4 || x > GAP.left + this.width() + 4) return null;
    return this.from + ((x - GAP.left) / this.width()) * (this.to - this.from);
  }

  /** Time that one bar covers, ms. */
  span() {
    return ((this.to - this.from) / this.width()) * BAR;
  }

  /** Where the bar that holds `t` begins. The grid stands still while time goes on. */
  start(t) {
    const span = this.span();
    return Math.floor(t / span) * span;
  }

  /**
   * Draws. A series is {kind: "bars" | "area" | "line" | "dashes", color, points: [[t, value]]},
   * oldest first; bars show the largest value of each. One with `aside` does not set the scale,
   * and is not drawn where it is above the top. A mark is {t, color, solid}.
   */
  draw({ from, to, series, marks, cursor, colors }) {
    this.from = from;
    this.to = to;
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    const [w, h] = [canvas.clientWidth, canvas.clientHeight];
    if (w === 0 || h === 0) return;
    if (canvas.width !== Math.round(w * scale) || canvas.height !== Math.round(h * scale)) {
      canvas.width = Math.round(w * scale);
      canvas.height = Math.round(h * scale);
    }
    const g = canvas.getContext("2d");
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, w, h);
    g.font = `11px ${getComputedStyle(canvas).fontFamily}`;

    const height = h - GAP.top - GAP.bottom;
    let most = this.least;
    for (const s of series) {
      if (s.aside) continue;
      for (const [t, v] of s.points) if (t >= from && v > most) most = v;
    }
    const step = this.step(most / Math.max(Math.floor(height / TICK), 1));
    const top = Math.ceil(most / step) * step;
    const y = (v) => GAP.top + height * (1 - Math.min(Math.max(v / top, 0), 1));

    this.grid(g, { w, h, top, step, y, colors });
    g.save();
    g.beginPath();
    g.rect(GAP.left, 0, this.width(), h - GAP.bottom + 1);
    g.clip();
    for (const s of series) {
      this.one(g, s.aside ? { ...s, points: s.points.filter(([, v]) => v <= top) } : s, y);
    }
    g.restore();
    this.marks(g, marks, h, colors);
    if (cursor !== null && cursor >= from && cursor <= to) {
      g.strokeStyle = colors.text;
      g.lineWidth = 1;
      this.vertical(g, this.x(cursor), GAP.top, h - GAP.bottom);
    }
  }

  vertical(g, x, above, below) {
    g.beginPath();
    g.moveTo(Math.round(x) + 0.5, above);
    g.lineTo(Math.round(x) + 0.5, below);
    g.stroke();
  }

  grid(g, { w, h, top, step, y, colors }) {
    g.lineWidth = 1;
    g.strokeStyle = colors.grid;
    g.fillStyle = colors.muted;
    g.textBaseline = "middle";
    g.textAlign = "right";
    for (let v = 0; v <= top + step / 2; v += step) {
      const at = Math.round(y(v)) + 0.5;
      g.beginPath();
      g.moveTo(GAP.left, at);
      g.lineTo(w - GAP.right, at);
      g.stroke();
      g.fillText(this.write(v), GAP.left - 6, at);
    }
    const length = this.to - this.from;
    const steps = [10e3, 15e3, 30e3, 60e3, 120e3, 300e3];
    const room = this.width() / 78;
    const every = steps.find((s) => length / s <= room) ?? length;
    g.textBaseline = "alphabetic";
    for (let back = 0; back <= length; back += every) {
      const x = this.x(this.to - back);
      g.textAlign = back === 0 ? "right" : x < GAP.left + 20 ? "left" : "center";
      g.fillText(time(back), back === 0 ? w - GAP.right : x, h - 4);
    }
  }

  one(g, { kind, color, points }, y) {
    g.fillStyle = color;
    g.strokeStyle = color;
    if (kind === "bars") {
      const bars = new Map();
      for (const [t, v] of points) {
        const start = this.start(t);
        bars.set(start, Math.max(bars.get(start) ?? 0, v));
      }
      for (const [start, v] of bars) {
        // Never less than a pixel: a short stall is one.
        if (v > 0) g.fillRect(this.x(start), Math.min(y(v), y(0) - 1), BAR - 0.5, Math.max(y(0) - y(v), 1));
      }
      return;
    }
    if (points.length === 0) return;
    g.beginPath();
    points.forEach(([t, v], i) => (i === 0 ? g.moveTo(this.x(t), y(v)) : g.lineTo(this.x(t), y(v))));
    if (kind === "area") {
      g.lineTo(this.x(points[points.length - 1][0]), y(0));
      g.lineTo(this.x(points[0][0]), y(0));
      g.fill();
      return;
    }
    g.lineWidth = 1.5;
    g.setLineDash(kind === "dashes" ? [5, 3] : []);
    g.stroke();
    g.setLineDash([]);
  }

  /** Marks that would stand on each other are one; a solid one among them wins. */
  marks(g, marks, h, colors) {
    const places = new Map();
    for (const m of marks) {
      if (m.t < this.from || m.t > this.to) continue;
      const start = this.start(m.t);
      if (!places.get(start)?.solid) places.set(start, m);
    }
    let last = null;
    for (const m of [...places.values()].sort((a, b) => a.t - b.t)) {
      const x = this.x(m.t);
      g.strokeStyle = m.color;
      g.globalAlpha = 0.25;
      g.lineWidth = 1;
      this.vertical(g, x, 12, h - GAP.bottom);
      g.globalAlpha = 1;
      const near = last !== null && x - last.x < MARK;
      if (near && (last.solid || !m.solid)) continue;
      this.mark(g, x, m, colors);
      last = { x, solid: m.solid };
    }
  }

  mark(g, x, { color, solid }, colors) {
    g.beginPath();
    g.moveTo(x - 5, 3);
    g.lineTo(x + 5, 3);
    g.lineTo(x, 12);
    g.closePath();
    g.fillStyle = solid ? color : colors.card;
    g.fill();
    g.lineWidth = 1.5;
    g.stroke();
  }
}
