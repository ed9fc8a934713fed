"use strict";
// The timeline: events of a history by time and lane, two axes, and a tip for one event.
//
// `history` is the answer of /page/history, `marks` maps the row of an event to its attention.

// None is close to the colour of attention. Each has a contrast of 3 on light and on dark.
const COLORS = [
  "#3b74d1", "#2a8f63", "#a05fb0", "#8f7d1a", "#6b7a8f", "#c0506a", "#1f8ba0", "#96694a",
];
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const TICK_STEPS = [
  1, 10, 100, SECOND, 5 * SECOND, 15 * SECOND, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR,
  6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY, 14 * DAY,
];
const TICK_MONTHS = [1, 3, 6, 12, 24, 60, 120, 240, 600, 1200];
const MONTH = 31 * DAY;
const TICK_WIDTH = 110;
const MARGIN = { left: 100, right: 14, top: 20, bottom: 42 };
const MAX_LANE_CHARACTERS = 13;
const MAX_POINTER_DISTANCE = 14;

function formatTime(ms) {
  return new Date(ms).toISOString().replace("T", " ").slice(0, 16);
}

function formatPercent(share) {
  return (100 * share).toPrecision(2) + " %";
}

// Returns {times, format}: round times between two, at most `most`, and how to write them.
function timeTicks(first, last, most) {
  const span = Math.max(1, last - first);
  const step = TICK_STEPS.find(ms => span / ms <= most);
  if (step === undefined) return monthTicks(first, last, most);
  const times = [];
  for (let time = Math.ceil(first / step) * step; time <= last; time += step) times.push(time);
  return { times, format: time => tickText(time, step) };
}

function monthTicks(first, last, most) {
  const longest = TICK_MONTHS[TICK_MONTHS.length - 1];
  const step = TICK_MONTHS.find(months => (last - first) / (months * MONTH) <= most) ?? longest;
  const start = new Date(first);
  const months = 12 * start.getUTCFullYear() + start.getUTCMonth();
  const times = [];
  for (let month = Math.floor(months / step) * step; ; month += step) {
    const time = Date.UTC(Math.floor(month / 12), month % 12);
    if (time > last) break;
    if (time >= first) times.push(time);
  }
  const characters = step < 12 ? 7 : 4;
  return { times, format: time => formatTime(time).slice(0, characters) };
}

function tickText(time, step) {
  if (step >= DAY) return formatTime(time).slice(0, 10);
  if (step >= MINUTE) return formatTime(time).slice(5);
  const digits = step >= SECOND ? 8 : 12;
  return new Date(time).toISOString().slice(11, 11 + digits);
}

class Timeline {
  constructor(canvas, cursor, tip) {
    this.canvas = canvas;
    this.cursor = cursor;
    this.tip = tip;
    this.history = null;
    this.marks = new Map();
    this.row = null;  // the event that the tip describes
    canvas.onpointermove = event => this.point(event);
    canvas.onpointerdown = event => this.point(event);
    // A finger leaves as soon as it is lifted.
    canvas.onpointerleave = event => event.pointerType === "touch" || this.hideTip();
    canvas.onkeydown = event => this.step(event);
    canvas.onfocus = () => this.showTip(this.row ?? this.numEvents - 1);
    canvas.onblur = () => this.hideTip();
  }

  get numEvents() {
    return this.history ? this.history.timestamps.length : 0;
  }

  show(history) {
    this.history = history;
    this.marks = new Map();
    this.row = null;
    this.hideTip();
    this.describe(null);
    this.draw();
  }

  mark(marks) {
    this.marks = marks;
    this.draw();
  }

  draw() {
    const started = performance.now();
    const { canvas } = this;
    const scale = window.devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    this.context = context;
    if (this.numEvents) this.drawPlot();
    if (!this.tip.hidden) this.showTip(this.row);
    canvas.dataset.ms = (performance.now() - started).toFixed(1);
  }

  drawPlot() {
    const { canvas, history } = this;
    const { left, right, top, bottom } = MARGIN;
    this.first = history.timestamps[0];
    this.last = history.timestamps[this.numEvents - 1];
    this.right = canvas.clientWidth - right;
    this.bottom = canvas.clientHeight - bottom;
    this.laneHeight = (this.bottom - top) / history.lanes.names.length;
    this.perMs = (this.right - left) / Math.max(1, this.last - this.first);
    this.drawTimeAxis();
    this.drawLanes();
    this.drawEvents();
    this.drawMarks();
  }

  x(ms) {
    return MARGIN.left + this.perMs * (ms - this.first);
  }

  y(lane) {
    return MARGIN.top + this.laneHeight * (lane + 0.5);
  }

  color(name) {
    return getComputedStyle(document.body).getPropertyValue(name);
  }

  drawTimeAxis() {
    const { context, bottom } = this;
    const width = this.right - MARGIN.left;
    const most = Math.max(1, Math.floor(width / TICK_WIDTH));
    const { times, format } = timeTicks(this.first, this.last, most);
    this.canvas.dataset.ticks = times.map(format).join(" ");
    for (const time of times) {
      context.fillStyle = this.color("--line");
      context.fillRect(this.x(time), MARGIN.top, 1, bottom - MARGIN.top + 5);
      this.drawTickText(format(time), this.x(time), bottom + 13);
    }
    this.drawTickText(this.timeTitle(), MARGIN.left + width / 2, bottom + 32);
  }

  // Returns the title of the time axis, without hours on a narrow screen.
  timeTitle() {
    const [first, last] = [this.first, this.last].map(formatTime);
    const title = `time (UTC): ${first} to ${last}`;
    const fits = this.context.measureText(title).width < this.canvas.clientWidth - 4;
    return fits ? title : `UTC: ${first.slice(0, 10)} to ${last.slice(0, 10)}`;
  }

  // Writes a text centred at x, moved as far as it needs to be seen whole.
  drawTickText(text, x, y) {
    const { context } = this;
    const half = context.measureText(text).width / 2;
    const rightmost = this.canvas.clientWidth - half - 2;
    context.fillStyle = this.color("--soft");
    context.textAlign = "center";
    context.fillText(text, Math.max(half + 2, Math.min(rightmost, x)), y);
  }

  drawLanes() {
    const { context, right, laneHeight } = this;
    const { feature, names } = this.history.lanes;
    const left = MARGIN.left;
    context.fillStyle = this.color("--soft");
    context.textAlign = "right";
    context.fillText(shorten(feature || "events"), left - 8, MARGIN.top / 2);
    context.fillRect(left - 1, MARGIN.top, 1, this.bottom - MARGIN.top);
    context.fillRect(left, this.bottom, right - left, 1);
    names.forEach((name, lane) => {
      context.fillStyle = this.color("--soft");
      if (feature) context.fillText(shorten(String(name)), left - 8, this.y(lane));
      context.fillStyle = this.color("--line");
      context.fillRect(left, MARGIN.top + laneHeight * (lane + 1) - 0.5, right - left, 0.5);
    });
  }

  // The most frequent kind is drawn first and faint, rarer ones over it and a little higher.
  drawEvents() {
    const { context, laneHeight } = this;
    const { timestamps, lanes, kinds } = this.history;
    const tall = Math.max(2, Math.min(12, laneHeight * 0.7));
    const wide = Math.max(1.2, Math.min(4, 300 / timestamps.length));
    const faint = timestamps.length > 2000 ? 0.45 : 0.8;
    for (let kind = 0; kind < kinds.names.length; kind++) {
      context.globalAlpha = kind ? 0.9 : faint;
      context.fillStyle = COLORS[kind % COLORS.length];
      const shift = tall / 2 + 2 * Math.min(kind, 3);
      for (let event = 0; event < timestamps.length; event++) {
        if (kinds.of[event] !== kind) continue;
        const left = this.x(timestamps[event]) - wide / 2;
        context.fillRect(left, this.y(lanes.of[event]) - shift, wide, tall);
      }
    }
    context.globalAlpha = 1;
  }

  // A ring around each explained event; its area grows with the attention.
  drawMarks() {
    const { context, history } = this;
    const largest = Math.max(0, ...this.marks.values());
    context.strokeStyle = this.color("--mark");
    context.lineWidth = 1.6;
    for (const [row, weight] of this.marks) {
      const radius = 2 + 9 * Math.sqrt(weight / largest);
      context.beginPath();
      context.arc(this.x(history.timestamps[row]), this.y(history.lanes.of[row]), radius, 0, 7);
      context.stroke();
    }
  }

  point(event) {
    const row = this.nearest(event.offsetX, event.offsetY);
    if (row === null) this.hideTip();
    else this.showTip(row);
  }

  // Returns the row of the event next to a point, null if none is close.
  nearest(x, y) {
    let nearest = null;
    let least = MAX_POINTER_DISTANCE ** 2;
    for (let row = 0; row < this.numEvents; row++) {
      const acrossX = this.x(this.history.timestamps[row]) - x;
      if (Math.abs(acrossX) > MAX_POINTER_DISTANCE) continue;
      const acrossY = this.y(this.history.lanes.of[row]) - y;
      const distance = acrossX ** 2 + acrossY ** 2;
      if (distance > least) continue;
      least = distance;
      nearest = row;
    }
    return nearest;
  }

  step(event) {
    if (event.key === "Escape") this.hideTip();
    const last = this.numEvents - 1;
    const row = this.row ?? last;
    const far = Math.max(1, Math.round(last / 20));
    const rows = {
      ArrowLeft: row - 1, ArrowDown: row - 1, PageDown: row - far, Home: 0,
      ArrowRight: row + 1, ArrowUp: row + 1, PageUp: row + far, End: last,
    };
    if (!(event.key in rows)) return;
    event.preventDefault();
    this.showTip(Math.max(0, Math.min(last, rows[event.key])));
  }

  showTip(row) {
    if (row < 0 || row >= this.numEvents) return;
    this.row = row;
    this.describe(row);
    const { cursor, tip } = this;
    tip.textContent = this.lines(row).join("\n");
    cursor.hidden = tip.hidden = false;
    const x = this.x(this.history.timestamps[row]);
    const y = this.y(this.history.lanes.of[row]);
    cursor.style.left = `${x}px`;
    cursor.style.top = `${y}px`;
    const rightmost = this.canvas.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(rightmost, x - tip.offsetWidth / 2))}px`;
    const above = y - tip.offsetHeight - 14;
    tip.style.top = `${above < 0 ? y + 14 : above}px`;
  }

  hideTip() {
    this.cursor.hidden = this.tip.hidden = true;
  }

  // Tells a screen reader which event it is at.
  describe(row) {
    const { canvas, numEvents } = this;
    canvas.setAttribute("aria-valuemin", Math.min(1, numEvents));
    canvas.setAttribute("aria-valuemax", numEvents);
    canvas.setAttribute("aria-valuenow", row === null ? numEvents : row + 1);
    const none = numEvents ? `${numEvents} events` : "no events";
    canvas.setAttribute("aria-valuetext", row === null ? none : this.lines(row).join(", "));
  }

  lines(row) {
    const { timestamps, items, lanes, kinds } = this.history;
    const lines = [`${formatTime(timestamps[row])} UTC`, `item ${items[row]}`];
    for (const { feature, names, of } of [lanes, kinds]) {
      if (feature) lines.push(`${feature}: ${names[of[row]]}`);
    }
    if (this.marks.has(row)) lines.push(`attention: ${formatPercent(this.marks.get(row))}`);
    return lines;
  }
}

function shorten(text) {
  return text.length > MAX_LANE_CHARACTERS ? text.slice(0, MAX_LANE_CHARACTERS - 1) + "…" : text;
}
