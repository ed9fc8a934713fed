// Requests, tables and legends of the page. Ids are texts: JSON numbers of a browser lose digits.
const NUM_EXPLAINED = 20;

let textIds = [];
let shown = null;        // the user's history, as /page/history gave it
let scores = null;       // scores of the candidates, as /rank gave them
let whatif = null;       // scores with one more event
let chosen = null;       // place of the explained one among the candidates
let running = new AbortController();  // of the work that was started last

const $ = id => document.getElementById(id);
const timeline = new Timeline($("timeline"), $("cursor"), $("tip"));

async function fetchJson(path, body) {
  const headers = {};
  if ($("token").value) headers.Authorization = "Bearer " + $("token").value;
  const options = { headers, signal: running.signal };
  if (body !== undefined) {
    options.method = "POST";
    options.body = body;
    headers["Content-Type"] = "application/json";
  }
  const response = await fetch(path, options);
  if (response.status === 401) $("locked").hidden = false;
  const text = await response.text();
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = { error: text.slice(0, 200) };
  }
  if (!response.ok) throw new Error(content.error || response.status);
  return content;
}

// Returns an event handler that shows errors on the page. It ends the work before it, so an
// answer that comes late never replaces a later one.
function showErrors(work) {
  return async event => {
    if (event) event.preventDefault();
    running.abort();
    const own = new AbortController();
    running = own;
    $("error").textContent = "";
    $("main").setAttribute("aria-busy", "true");
    try {
      await work(event);
    } catch (error) {
      if (!own.signal.aborted) $("error").textContent = error.message;
    }
    if (own === running) $("main").removeAttribute("aria-busy");
  };
}

function parseIds(text) {
  return text.split(/[\s,;]+/).filter(Boolean);
}

function checkInteger(text, name) {
  if (!/^-?\d+$/.test(text)) throw new Error(`${name} should be a whole number: ${text}`);
  return text;
}

// Returns an id that the log has, or throws: names in a log with text ids, else digits.
function checkId(text, kind) {
  if (!text) throw new Error(`no ${kind}`);
  return textIds.includes(kind) ? text : checkInteger(text, kind);
}

// Returns an id as JSON. "#" and digits is the number behind a text id.
function idJson(text, kind) {
  const id = checkId(text, kind);
  if (!textIds.includes(kind)) return id;
  return /^#-?\d+$/.test(id) ? id.slice(1) : JSON.stringify(id);
}

function formatDifference(difference) {
  if (difference === 0) return "0";
  const sign = difference > 0 ? "+" : "\u2212";
  const size = Math.abs(difference);
  return sign + (size < 0.001 ? size.toExponential(1) : size.toFixed(4));
}

// Returns the request time in ms; a time without a zone is in UTC.
function requestTime() {
  const text = $("time").value.trim();
  if (!text) return Date.now();
  if (/^-?\d+$/.test(text)) return Number(text);
  const hasZone = /Z|[+-]\d\d:?\d\d$/.test(text);
  const ms = Date.parse(hasZone ? text : text + "Z");
  if (Number.isNaN(ms)) {
    throw new Error("request time should be ISO 8601 or milliseconds: " + text);
  }
  return ms;
}

function addElement(parent, name, text, className) {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  parent.append(element);
  return element;
}

// Adds a cell with a value and a bar; `share` is 1 for the longest bar.
function addMeasure(row, text, share, className) {
  const measure = addElement(addElement(row, "td", ""), "div", "", "measure");
  addElement(measure, "span", text, "value");
  const bar = addElement(addElement(measure, "span", "", "track"), "span", "", "bar");
  if (className) bar.classList.add(className);
  bar.style.width = `${Math.max(1, 100 * share)}%`;
  return measure;
}

function addHead(row, text) {
  const head = addElement(row, "th", text);
  head.scope = "col";
  return head;
}

// Adds the head of a column of bars, with the ends of their scale.
function addScale(row, text, largest) {
  const measure = addElement(addHead(row, ""), "div", "", "measure");
  addElement(measure, "span", text, "value");
  const track = addElement(measure, "span", "", "track");
  addElement(track, "span", "0");
  addElement(track, "span", largest);
}

async function showUser() {
  const user = checkId($("user").value.trim(), "user");
  const candidates = parseIds($("candidates").value);
  candidates.forEach(id => checkId(id, "item"));
  const length = $("length").value.trim();
  const time = requestTime();
  const query = new URLSearchParams({ user_id: user, request_time: time });
  if (length) query.set("length", checkInteger(length, "length"));
  const found = await fetchJson("./page/history?" + query);
  shown = { user, time, length, ...found };
  scores = null;
  whatif = null;
  chosen = null;
  showHistory();
  await rank(candidates);
}

function showHistory() {
  const { lanes, kinds, timestamps } = shown;
  $("facts").textContent = shown.user_known ? "" : "unknown user: ranked with an empty history";
  $("kind").replaceChildren(...kinds.choices.map(name => new Option(name, name)));
  $("kindlabel").hidden = !kinds.choices.length;
  showLegend();
  timeline.show(shown);
  const numEvents = timestamps.length.toLocaleString("en");
  $("drawn").textContent = timestamps.length
    ? `${numEvents} events by ${lanes.feature || "time"}`
    : "no events";
  for (const id of ["heads", "scores", "event-heads", "events"]) $(id).replaceChildren();
  $("ranked").textContent = "";
  $("explained").textContent = "No candidate is chosen.";
}

function showLegend() {
  const { kinds } = shown;
  const legend = $("kinds");
  legend.replaceChildren();
  if (kinds.feature) addElement(legend, "li", `colour is ${kinds.feature}:`);
  kinds.names.forEach((name, kind) => {
    addKey(legend, name || "event").style.background = COLORS[kind % COLORS.length];
  });
  addKey(legend, "ring: attention of the chosen candidate, larger for more").className = "ring";
}

function addKey(legend, text) {
  const key = document.createElement("i");
  addElement(legend, "li", text).prepend(key);
  return key;
}

// Returns the beginning of a JSON body, written as text: numbers keep all of their digits.
function bodyStart(candidateField) {
  const length = shown.length ? `,"length":${shown.length}` : "";
  const user = idJson(shown.user, "user");
  return `{"user_id":${user},${candidateField},"request_time":${shown.time}${length}`;
}

function candidatesField(candidates) {
  const ids = candidates.map(id => idJson(id, "item"));
  return `"candidates":[${ids}]`;
}

async function rank(candidates) {
  const started = performance.now();
  const answer = await fetchJson("./rank", bodyStart(candidatesField(candidates)) + "}");
  const ms = performance.now() - started;
  scores = { candidates, tasks: Object.keys(answer.scores), byTask: answer.scores };
  const facts = [
    `version ${answer.model_version}`,
    `${answer.history_length.toLocaleString("en")} events`,
    `${ms.toFixed(0)} ms`,
  ];
  if (answer.degraded) facts.push("degraded: the feature store cannot be read");
  if (answer.unknown_candidates) facts.push(`${answer.unknown_candidates} unknown`);
  $("ranked").textContent = facts.join(", ");
  showScores();
}

function showScores() {
  const { tasks, byTask, candidates } = scores;
  const first = byTask[tasks[0]];
  scores.largest = tasks.map(task => Math.max(...byTask[task]));
  $("heads").replaceChildren();
  addHead($("heads"), "item");
  tasks.forEach((task, place) => addScale($("heads"), task, scores.largest[place].toPrecision(2)));
  if (whatif) addHead($("heads"), "change");
  $("change-legend").hidden = !whatif;
  const order = candidates.map((_, place) => place).sort((a, b) => first[b] - first[a]);
  $("scores").replaceChildren(...order.map(scoreRow));
  markChosen();
}

function scoreRow(place) {
  const { tasks, byTask, candidates, largest } = scores;
  const row = document.createElement("tr");
  row.dataset.place = place;
  addElement(addElement(row, "td", ""), "button", candidates[place]).type = "button";
  tasks.forEach((task, column) => {
    const score = byTask[task][place];
    const share = largest[column] ? score / largest[column] : 0;
    addMeasure(row, score.toFixed(4), share).title = `${task}: ${score}`;
  });
  if (whatif) {
    const difference = whatif[tasks[0]][place] - byTask[tasks[0]][place];
    const direction = difference > 0 ? "up" : difference < 0 ? "down" : "";
    addElement(row, "td", formatDifference(difference), direction).title = String(difference);
  }
  // The click of the button arrives here too.
  row.onclick = showErrors(() => explain(place));
  return row;
}

// Marks the row of the chosen candidate. The Tab key stops at this row alone, or at the first.
function markChosen() {
  const rows = [...$("scores").rows];
  const isChosen = row => Number(row.dataset.place) === chosen;
  const stop = chosen === null ? rows[0] : rows.find(isChosen);
  for (const row of rows) {
    const button = row.querySelector("button");
    row.className = isChosen(row) ? "chosen" : "";
    button.setAttribute("aria-pressed", isChosen(row));
    button.tabIndex = row === stop ? 0 : -1;
  }
}

// Moves between the candidates with the arrow keys.
function moveFocus(event) {
  const buttons = [...$("scores").querySelectorAll("button")];
  const place = buttons.indexOf(document.activeElement);
  const last = buttons.length - 1;
  const places = { ArrowUp: place - 1, ArrowDown: place + 1, Home: 0, End: last };
  if (place < 0 || !(event.key in places)) return;
  event.preventDefault();
  const next = buttons[Math.max(0, Math.min(last, places[event.key]))];
  buttons[place].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

async function explain(place) {
  const item = scores.candidates[place];
  chosen = place;
  markChosen();
  const body = bodyStart(`"candidate":${idJson(item, "item")}`);
  const { attention } = await fetchJson("./explain", body + `,"top":${NUM_EXPLAINED}}`);
  const marks = new Map();
  for (const head of attention) {
    for (const { row, weight } of head.events) {
      marks.set(row, (marks.get(row) || 0) + weight / attention.length);
    }
  }
  const heads = `mean of ${attention.length} heads`;
  $("explained").textContent = marks.size
    ? `For item ${item}, ${heads}.`
    : `For item ${item} there are no events.`;
  timeline.mark(marks);
  showEvents([...marks].sort((a, b) => b[1] - a[1]).slice(0, NUM_EXPLAINED));
}

function showEvents(top) {
  const { lanes, kinds } = shown;
  const largest = top.length ? top[0][1] : 1;
  $("event-heads").replaceChildren();
  if (top.length) addScale($("event-heads"), "attention", formatPercent(largest));
  const names = ["time (UTC)", "item", lanes.feature, kinds.feature];
  if (top.length) names.filter(Boolean).forEach(name => addHead($("event-heads"), name));
  $("events").replaceChildren(...top.map(([row, weight]) => eventRow(row, weight, largest)));
}

function eventRow(place, weight, largest) {
  const { timestamps, items, lanes, kinds } = shown;
  const row = document.createElement("tr");
  addMeasure(row, formatPercent(weight), weight / largest, "attention").title = String(weight);
  addElement(row, "td", formatTime(timestamps[place]));
  addElement(row, "td", items[place]);
  for (const { feature, names, of } of [lanes, kinds]) {
    if (feature) addElement(row, "td", names[of[place]] ?? "");
  }
  return row;
}

async function addEvent() {
  if (!scores) throw new Error("show a user first");
  const { tasks, byTask, candidates } = scores;
  const item = $("item").value.trim();
  const kind = $("kind").value ? `,"kind":${JSON.stringify($("kind").value)}` : "";
  const start = bodyStart(candidatesField(candidates));
  const body = start + `,"item_id":${idJson(item, "item")}${kind}}`;
  whatif = (await fetchJson("./page/whatif", body)).scores;
  showScores();
  const task = tasks[0];
  const change = place => whatif[task][place] - byTask[task][place];
  const differences = candidates.map((id, place) => [id, change(place)]);
  differences.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const [id, difference] = differences[0];
  $("changed").textContent =
    `With item ${item} as the newest event, ${id} moves most: ${formatDifference(difference)}.`;
}

async function loadExamples() {
  const { users, moment, candidates, text_ids } = await fetchJson("./page/examples");
  textIds = text_ids;
  $("users").replaceChildren(...users.map(userOption));
  fillEmpty("user", users.length ? users[0].user_id : "");
  fillEmpty("time", moment ? new Date(moment).toISOString() : "");
  fillEmpty("candidates", candidates.join(" "));
  fillEmpty("item", candidates.length ? candidates[0] : "");
}

// What the reader wrote stays.
function fillEmpty(id, value) {
  if (!$(id).value) $(id).value = value;
}

function userOption(user) {
  return new Option(`${user.history_length.toLocaleString("en")} events`, user.user_id);
}

// Ranks an example, so that the page says something before it is asked.
async function start() {
  await loadExamples();
  if ($("user").value && $("candidates").value) {
    await showUser();
  } else {
    $("facts").textContent = "There are no examples here: enter a user and item ids.";
  }
}

function submitOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("query").requestSubmit();
}

$("query").onsubmit = showErrors(async () => {
  if (!$("candidates").value) await loadExamples();
  await showUser();
});
$("candidates").onkeydown = submitOnEnter;
$("scores").onkeydown = moveFocus;
$("add").onsubmit = showErrors(addEvent);
$("token").onchange = showErrors(start);
window.onresize = () => timeline.draw();
matchMedia("(prefers-color-scheme: dark)").onchange = () => timeline.draw();
showErrors(start)();
