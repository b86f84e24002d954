// Time: a strip of what each time group shows, and a line of every step for each layer. Dragging over either scrubs.
import { $, el, fill, setText } from "./dom.js";
import { drawPicture, fit, overlay, sheet, write } from "./draw.js";
import { pictureFrame } from "./data.js";
import { columnOf, lookOf, mapOf, measuresOf, stepsOf, wordOf } from "./answers.js";
import { greatest, span } from "./scores.js";
import { change, page, point, state } from "./state.js";

/** What each measure is called, what its ends mean, and its range; one that is not listed goes by its own name, from its data's range. */
const MEASURES = {
  copy: ["Copied colours match the painted", "correlation inside the mask", [-1, 1]],
  evenness: ["How even the rows are", "1: looked nowhere in particular", [0, 1]],
  leak: ["Attention off the reference's mask", "share of the masked patches'", [0, 1]],
  inside: ["R2G inside the mask", "share of the whole", [0, 1]],
  share: ["Attention on these tokens", "share of the whole softmax", [0, 1]],
  peak: ["Brightest token of a row", "share of the row, mean over patches", null],
};
const FIRST = ["copy", "share", "evenness", "leak", "inside", "peak"];
const SIDES = { left: 26, right: 112, top: 8, bottom: 20, height: 190 };
export const measuresIn = (view) => measuresOf(view).sort((a, b) => FIRST.indexOf(a) - FIRST.indexOf(b));

/* the strip */

const thumbs = new Map();
/** R2G of a time group, drawn once. */
function thumb(now, sel, size) {
  const { run, view } = now, { look } = page, key = [page.runs.indexOf(run), view.number, Object.values(sel), look.name, state.cells, size.width].join();
  if (thumbs.has(key)) return thumbs.get(key);
  const values = mapOf(view, "r2g", sel), picture = view.images.generated, canvas = sheet(2 * size.width, 2 * size.height), box = { x: 0, y: 0, width: canvas.width, height: canvas.height };
  if (values) overlay(canvas.getContext("2d"), box, picture, pictureFrame(run, picture, sel.frame), values, view.latent, { range: span(values), look, cells: state.cells, side: 96 });
  else drawPicture(canvas.getContext("2d"), box, picture, pictureFrame(run, picture, sel.frame), look);
  if (thumbs.size > 300) thumbs.clear();
  thumbs.set(key, canvas);
  return canvas;
}

/** Sizes of the strip: pairs where there is room and a reference with places, else R2G alone. */
function stripPlan(view, run, width) {
  const groups = run.facts.times, paired = Boolean(view.images.reference && view.ref_grid && view.ready) && (width - 2) / groups > 110, band = Math.min((width - 2) / groups, paired ? 250 : 116);
  const pane = Math.max(18, Math.min(92, paired ? (band - 16) / 2 : band - 8)), shape = (picture) => ({ width: pane, height: Math.round((pane * picture.height) / picture.width) });
  const left = shape(view.images.generated), right = paired ? shape(view.images.reference) : null;
  return { groups, band, pane, left, right, height: Math.max(left.height, right?.height ?? 0) + 22 };
}

export function paintStrip(pen, now, width, y = 0) {
  const { run, view, sel, at } = now, { look } = page, plan = stripPlan(view, run, width), chosen = now.sel.time;
  for (let t = 0; t < plan.groups; t++) {
    const x = 1 + t * plan.band, one = { ...sel, time: t }, box = { x, y, ...plan.left };
    const column = now.token !== null ? view.ready && columnOf(view, one, now.token) : now.word !== null ? wordOf(now.columnView, { ...now.columnSel, time: t }, now.word) : null;
    if (column) overlay(pen, box, view.images.generated, pictureFrame(run, view.images.generated, sel.frame), column.values, column.grid, { range: [0, greatest(column.values)], look, cells: state.cells, side: 64 });
    else if (view.maps) { pen.imageSmoothingEnabled = true; pen.drawImage(thumb(now, one, plan.left), box.x, box.y, box.width, box.height); }
    const row = plan.right && lookOf(view, one, at);
    if (row) overlay(pen, { x: x + plan.pane + 4, y, ...plan.right }, view.images.reference, 0, row, view.ref_grid, { range: [0, greatest(row)], look, cells: state.cells, covers: view.window, side: 64 });
    if (chosen === t) { pen.strokeStyle = look.mark; pen.lineWidth = 2.5; pen.strokeRect(x, y + 1, (plan.right ? 2 * plan.pane + 4 : plan.pane), Math.max(plan.left.height, plan.right?.height ?? 0) - 2); }
    write(pen, stepsName(run, t, plan.band), x, y + plan.height - 8, { look, ink: chosen === t ? look.mark : look.soft });
  }
  return plan;
}

export function stepsName(run, t, room = 200) {
  const [first, last] = run.stepsOf(t), range = first === last ? `${first}` : `${first}–${last}`;
  return room > 84 ? `${first === last ? "step" : "steps"} ${range}` : range;
}

/* the lines */

export function paintChart(pen, now, width, top = 0) {
  const { run, view, sel } = now, { look } = page, steps = run.facts.steps, [low, high] = rangeOf(view, state.measure);
  const right = width - SIDES.right, base = top + SIDES.height - SIDES.bottom;
  const X = (s) => SIDES.left + ((s + 0.5) / steps) * (right - SIDES.left), Y = (value) => top + SIDES.top + (1 - (value - low) / (high - low)) * (base - top - SIDES.top);
  if (sel.time !== null) { const [a, b] = run.stepsOf(sel.time); pen.fillStyle = look.wash; pen.fillRect(X(a - 0.5), top + SIDES.top, X(b + 0.5) - X(a - 0.5), base - top - SIDES.top); }
  for (const value of ticks(low, high)) {
    pen.strokeStyle = look.line; pen.lineWidth = 1; pen.beginPath(); pen.moveTo(SIDES.left, Y(value)); pen.lineTo(right, Y(value)); pen.stroke();
    write(pen, String(value).replace("-", "−"), SIDES.left - 6, Y(value), { look, size: 10.5, align: "right" });
  }
  const line = (values, ink, thick) => paintLine(pen, values, X, Y, ink, thick), ends = [];
  view.layers.forEach((layer, l) => {
    if (!layer.stats) return;
    const values = stepsOf(view, l, state.measure), end = values.findLast(Number.isFinite);
    if (end === undefined) return;
    ends.push({ l, y: Y(end), name: layer.short });
    if (l !== sel.layer) line(values, sel.layer === null ? look.ink : look.soft, sel.layer === null ? 1.1 : 0.7);
  });
  if (sel.layer !== null && view.layers[sel.layer].stats) paintLayer(line, view, sel, look);
  for (const end of spaced(ends, sel.layer, top + SIDES.top, base + 4)) write(pen, shortened(end.name), right + 8, end.y, { look, size: 10.5, ink: end.l === sel.layer ? look.mark : look.soft, bold: end.l === sel.layer });
  write(pen, steps > 1 ? "noise" : "the only step", SIDES.left, base + 12, { look, size: 10.5 });
  if (steps > 1) write(pen, "picture", right, base + 12, { look, size: 10.5, align: "right" });
}

function paintLayer(line, view, sel, look) {
  const heads = [...Array(view.layers[sel.layer].heads).keys()];
  for (const h of heads) line(stepsOf(view, sel.layer, state.measure, h), look.mark, sel.head === h ? 2.6 : 0.6);
  if (sel.head === null) line(stepsOf(view, sel.layer, state.measure), look.mark, 2.6);
}

/** A line over the steps that are known; one step is a dot. */
function paintLine(pen, values, X, Y, ink, thick) {
  pen.strokeStyle = ink; pen.lineWidth = thick; pen.beginPath();
  values.forEach((value, s) => { if (Number.isFinite(value)) pen[Number.isFinite(values[s - 1]) ? "lineTo" : "moveTo"](X(s), Y(value)); });
  pen.stroke();
  pen.fillStyle = ink;
  values.forEach((value, s) => { if (Number.isFinite(value) && !Number.isFinite(values[s - 1]) && !Number.isFinite(values[s + 1])) { pen.beginPath(); pen.arc(X(s), Y(value), thick + 1, 0, 2 * Math.PI); pen.fill(); } });
}

function rangeOf(view, measure) {
  if (MEASURES[measure]?.[2]) return MEASURES[measure][2];
  const all = view.layers.flatMap((layer, l) => (layer.stats ? stepsOf(view, l, measure) : [])).filter(Number.isFinite), [low, high] = all.length ? span(all) : [0, 1];
  return low >= 0 ? [0, nice(high)] : [-nice(-low), nice(Math.max(high, 0.1))];
}
const nice = (value) => { const power = 10 ** Math.floor(Math.log10(value || 1)); return Number((Math.ceil((value || 1) / power) * power).toPrecision(3)); };
const ticks = (low, high) => (low < 0 ? [low, 0, high] : [low, Number(((low + high) / 2).toPrecision(3)), high]);
const shortened = (name) => (name.length > 17 ? `…${name.slice(-16)}` : name);

/** Names at line ends that do not cover each other; of too many, the chosen one and as many as fit, from the top. */
function spaced(ends, chosen, top, bottom) {
  const room = Math.floor((bottom - top) / 12.5) + 1, sorted = ends.sort((a, b) => a.y - b.y), every = Math.ceil(sorted.length / room);
  const shown = every < 2 ? sorted : sorted.filter((end, i) => i % every === 0 || end.l === chosen).filter((end, i, all) => all.length <= room || i % 2 === 0 || end.l === chosen);
  for (let i = 0, least = top; i < shown.length; i++) { shown[i].y = Math.max(shown[i].y, least); least = shown[i].y + 12.5; }
  for (let i = shown.length - 1, most = bottom; i >= 0; i--) { shown[i].y = Math.min(shown[i].y, most); most = shown[i].y - 12.5; }
  return shown;
}

/* the panel */

let drawn = "";
export function drawTime(now) {
  const { run, view } = now, width = $("time").clientWidth, plan = stripPlan(view, run, width), measures = measuresIn(view);
  page.measures = measures;
  if (!measures.includes(state.measure)) state.measure = measures[0] ?? null;
  $("strip").hidden = run.facts.times < 2;
  if (run.facts.times > 1) paintStrip(fit($("strip"), width, plan.height), now, width);
  const known = Boolean(state.measure), key = [page.runs.indexOf(run), view.number, width, page.look.name, state.measure, now.sel.time, now.sel.layer, now.sel.head, devicePixelRatio].join();
  $("chart").hidden = $("measure").hidden = !known;
  if (known && drawn !== key) { drawn = key; paintChart(fit($("chart"), width, SIDES.height), now, width); }
  drawControls(now, measures);
}

function drawControls({ run, view, sel, word, token }, measures) {
  const select = $("measure"), key = measures.join();
  if (select.dataset.key !== key) { select.dataset.key = key; fill(select, measures.map((name) => el("option", { value: name }, MEASURES[name] ? `${MEASURES[name][0]} (${MEASURES[name][1]})` : name))); }
  select.value = state.measure;
  const pairs = view.images.reference && view.ref_grid;
  setText($("timehint"), run.facts.times < 2 ? "" : word !== null ? "who looked at the word" : token !== null ? "who looked at the token" : pairs ? "R2G, and where the patch looked" : "R2G");
  const chart = $("chart"), value = sel.time === null ? "all of time" : `time ${sel.time + 1} of ${run.facts.times}, ${stepsName(run, sel.time)}`;
  chart.setAttribute("aria-valuemax", run.facts.times); chart.setAttribute("aria-valuenow", sel.time === null ? 0 : sel.time + 1); chart.setAttribute("aria-valuetext", value);
}

export function timePicture(now) {
  const width = 760, plan = stripPlan(now.view, now.run, width), strip = now.run.facts.times > 1 ? plan.height + 8 : 0;
  return { width, height: strip + 18 + SIDES.height, paint: (pen) => {
    if (strip) paintStrip(pen, now, width);
    if (!state.measure) return;
    write(pen, MEASURES[state.measure] ? `${MEASURES[state.measure][0]} (${MEASURES[state.measure][1]})` : state.measure, 0, strip + 6, { look: page.look, ink: page.look.ink, bold: true });
    paintChart(pen, now, width, strip + 16);
  } };
}

export function mountTime() {
  const inStrip = (event) => { const plan = stripPlan(page.view, page.run, $("time").clientWidth), t = Math.floor((event.offsetX - 1) / plan.band); return t >= 0 && t < plan.groups ? t : null; };
  const inChart = (event) => { const right = $("time").clientWidth - SIDES.right, s = ((event.offsetX - SIDES.left) / (right - SIDES.left)) * page.run.facts.steps; return s < 0 || s >= page.run.facts.steps ? null : page.run.timeOf[Math.floor(s)]; };
  for (const [id, under] of [["strip", inStrip], ["chart", inChart]]) {
    const canvas = $(id);
    let from = null;
    canvas.addEventListener("pointerdown", (event) => { const t = under(event); from = state.time; canvas.setPointerCapture(event.pointerId); point(); change({ time: from === t ? null : t }); });
    canvas.addEventListener("pointermove", (event) => { const t = under(event); if (event.buttons) { if (t !== from && t !== state.time) change({ time: t }); } else point(t === null ? {} : { time: t }); });
    canvas.addEventListener("pointerleave", () => point());
  }
  $("measure").addEventListener("change", (event) => change({ measure: event.target.value }));
}

let playing = null;
/** Plays the time groups one after the other, then all of time. */
export function play() {
  if (playing) { clearInterval(playing); playing = null; return; }
  playing = setInterval(() => change({ time: state.time === null ? 0 : state.time + 1 >= page.run.facts.times ? null : state.time + 1 }), 700);
}
