// Time: a strip of what each time group shows, and a line of every step for each layer. Dragging over either scrubs.
import { $, el, on, refill, setText } from "./dom.js";
import { block, drawPicture, fit, frame, look, overlay, sheet, write } from "./draw.js";
import { frameOf } from "./data.js";
import { columnOf, lookOf, mapOf, measuresOf, stepsOf, wordOf } from "./answers.js";
import { greatest, known, span } from "./lists.js";
import { change, page, point, state } from "./state.js";

/** What each measure is called, and its range where it is not that of its values; one that is not listed goes by its own name. */
const MEASURES = {
  copy: ["Copied colours match the painted (correlation inside the mask)", [-1, 1]],
  share: ["Attention on these tokens (share of the whole softmax)", [0, 1]],
  evenness: ["How even the rows are (1: looked nowhere in particular)", [0, 1]],
  leak: ["Off the reference's mask (share of the masked patches' attention)", [0, 1]],
  inside: ["R2G inside the mask (share of the whole)", [0, 1]],
  peak: ["Brightest token of a row (share of the row)"],
};
const ORDER = Object.keys(MEASURES), CHART = { left: 30, right: 112, top: 8, bottom: 20 };
const chartHeight = () => (state.panel === "time" ? Math.max(200, innerHeight - 440) : 200);

/** Sizes of the strip: pairs where there is room and a reference with places, else R2G alone. */
function stripPlan(view, width) {
  const { times: groups } = view.run.facts, { generated, reference } = view.images, paired = Boolean(reference && view.ref_grid) && (width - 2) / groups > 110, band = Math.min((width - 2) / groups, paired ? 250 : 116);
  const pane = Math.max(16, Math.min(92, paired ? (band - 16) / 2 : band - 8)), shape = (picture) => ({ width: pane, height: Math.round((pane * picture.height) / picture.width) });
  const left = shape(generated), right = paired ? shape(reference) : null, tall = Math.max(left.height, right?.height ?? 0);
  return { groups, band, left, right, tall, wide: paired ? 2 * pane + 4 : pane, height: groups > 1 ? tall + 22 : 0 };
}

/** A map over its picture, small. */
function small(pen, box, picture, frame, values, grid, range, covers) {
  overlay(pen, box, picture, frame, values, grid, { range, cells: state.cells, covers, side: 80 });
}

/** R2G of a time group over the picture, drawn once. */
function thumb({ view }, sel, { width, height }) {
  return view.once(["thumb", ...Object.values(sel), look.name, state.cells, width].join(), () => {
    const values = mapOf(view, "r2g", sel), picture = view.images.generated, frame = frameOf(view.run, picture, sel.frame), canvas = sheet(2 * width, 2 * height), box = { x: 0, y: 0, width: canvas.width, height: canvas.height };
    if (values) small(canvas.getContext("2d"), box, picture, frame, values, view.latent, span(values)); else drawPicture(canvas.getContext("2d"), box, picture, frame);
    return canvas;
  });
}

function paintStrip(pen, now, plan) {
  const { view, sel, at, token, word } = now, { generated, reference } = view.images;
  for (let t = 0; t < plan.groups; t++) {
    const x = 1 + t * plan.band, one = { ...sel, time: t }, box = { x, y: 0, ...plan.left }, chosen = sel.time === t;
    const column = token !== null ? columnOf(view, one, token) : word !== null ? wordOf(now.columnView, { ...now.columnSel, time: t }, word) : null, row = plan.right && lookOf(view, one, at);
    if (column) small(pen, box, generated, frameOf(view.run, generated, sel.frame), column.values, column.grid, [0, greatest(column.values)]);
    else { pen.imageSmoothingEnabled = true; pen.drawImage(thumb(now, one, plan.left), x, 0, box.width, box.height); }
    if (row) small(pen, { x: x + plan.wide - plan.right.width, y: 0, ...plan.right }, reference, 0, row, view.ref_grid, [0, greatest(row)], view.window);
    if (chosen) frame(pen, { x, y: 1, width: plan.wide, height: plan.tall - 2 }, look.mark, 2.5);
    write(pen, stepsName(view.run, t, plan.band), x, plan.tall + 13, { ink: chosen ? look.mark : look.soft });
  }
}

export function stepsName(run, t, room = 200) {
  const [first, last] = run.stepsOf(t), range = first === last ? `${first}` : `${first}–${last}`;
  return room > 84 ? `step${first === last ? "" : "s"} ${range}` : range;
}

/** Lines of every step, each layer's name at its end; of a chosen layer a thin line for each head. */
function paintChart(pen, { view, sel }, width, top) {
  const steps = view.run.timeOf.length, lines = view.layers.map((_, l) => stepsOf(view, l, state.measure)), all = lines.flat().filter(known), ends = [];
  const [low, high] = MEASURES[state.measure]?.[1] ?? [Math.min(0, ...all), Math.max(0.01, ...all)], right = width - CHART.right, base = top + chartHeight() - CHART.bottom, roof = top + CHART.top;
  const X = (s) => CHART.left + ((s + 0.5) / steps) * (right - CHART.left), Y = (value) => base - ((value - low) / (high - low)) * (base - roof), line = (values, ink, thick) => paintLine(pen, values, X, Y, ink, thick);
  if (sel.time !== null) { const [a, b] = view.run.stepsOf(sel.time); block(pen, look.wash, X(a - 0.5), roof, X(b + 0.5) - X(a - 0.5), base - roof); }
  for (const value of [low, (low + high) / 2, high]) {
    block(pen, look.line, CHART.left, Y(value) - 0.5, right - CHART.left, 1);
    write(pen, String(Number(value.toPrecision(2))).replace("-", "−"), CHART.left - 6, Y(value), { size: 10.5, align: "right" });
  }
  lines.forEach((values, l) => {
    const end = values.findLast(known);
    if (end !== undefined) ends.push({ l, y: Y(end), name: view.layers[l].short });
    if (l !== sel.layer) line(values, sel.layer === null ? look.ink : look.soft, sel.layer === null ? 1.1 : 0.7);
  });
  if (sel.layer !== null) {
    for (let h = 0; h < view.layers[sel.layer].heads; h++) line(stepsOf(view, sel.layer, state.measure, h), look.mark, sel.head === h ? 2.6 : 0.6);
    if (sel.head === null) line(lines[sel.layer], look.mark, 2.6);
  }
  for (const { l, y, name } of spaced(ends, sel.layer, roof, base + 4)) write(pen, name.length > 17 ? `…${name.slice(-16)}` : name, right + 8, y, { size: 10.5, ink: l === sel.layer ? look.mark : look.soft, bold: l === sel.layer });
  write(pen, "noise", CHART.left, base + 12, { size: 10.5 });
  write(pen, "picture", right, base + 12, { size: 10.5, align: "right" });
}

/** A line over the steps that are known, broken where they are not. */
function paintLine(pen, values, X, Y, ink, thick) {
  pen.strokeStyle = ink; pen.lineWidth = thick; pen.beginPath();
  values.forEach((value, s) => { if (known(value)) pen[known(values[s - 1]) ? "lineTo" : "moveTo"](X(s), Y(value)); });
  pen.stroke();
}

/** Names at line ends that do not cover each other; of too many, every n-th and the chosen one. */
function spaced(ends, chosen, top, bottom) {
  const every = Math.ceil(ends.length / Math.floor((bottom - top) / 12.5)), shown = ends.sort((a, b) => a.y - b.y).filter((end, i) => i % every === 0 || end.l === chosen);
  for (let i = 0, least = top; i < shown.length; i++) { shown[i].y = Math.max(shown[i].y, least); least = shown[i].y + 12.5; }
  for (let i = shown.length - 1, most = bottom; i >= 0; i--) { shown[i].y = Math.min(shown[i].y, most); most = shown[i].y - 12.5; }
  return shown;
}

/** Measures of the view in sight, the most telling first. */
export const measuresIn = (view) => [...measuresOf(view)].sort((a, b) => ORDER.indexOf(a) - ORDER.indexOf(b));

let chartDrawn = "";
export function drawTime(now) {
  const { view, sel, word, token } = now, { facts } = view.run, width = $("time").clientWidth, measures = now.ready ? measuresIn(view) : [], chart = $("chart");
  page.measures = measures;
  if (now.ready && !measures.includes(state.measure)) state.measure = measures[0] ?? null;
  $("time").hidden = facts.steps < 2;
  if (facts.steps < 2) return;
  $("strip").hidden = facts.times < 2;
  const plan = stripPlan(view, width), key = [view.id, width, look.name, state.measure, sel.time, sel.layer, sel.head, now.ready, chartHeight(), devicePixelRatio].join();
  if (view.maps && facts.times > 1) paintStrip(fit($("strip"), width, plan.height), now, plan);
  chart.hidden = $("measure").hidden = now.ready && !measures.length;
  if (chartDrawn !== key) { chartDrawn = key; const pen = fit(chart, width, chartHeight()); if (measures.length) paintChart(pen, now, width, 0); }
  refill($("measure"), measures.join(), () => measures.map((name) => el("option", { value: name }, MEASURES[name]?.[0] ?? name)));
  $("measure").value = state.measure;
  setText($("timehint"), facts.times < 2 ? "" : word !== null ? "who looked at the word" : token !== null ? "who looked at the token" : plan.right ? "R2G, and where the patch looked" : "R2G");
  for (const [name, value] of Object.entries({ valuemax: facts.times, valuenow: sel.time === null ? 0 : sel.time + 1, valuetext: sel.time === null ? "all of time" : stepsName(view.run, sel.time) })) chart.setAttribute(`aria-${name}`, value);
}

export function timePicture(now) {
  const width = 760, plan = stripPlan(now.view, width);
  return { width, height: plan.height + 24 + chartHeight(), paint: (pen) => {
    if (plan.groups > 1) paintStrip(pen, now, plan);
    if (!state.measure) return;
    write(pen, MEASURES[state.measure]?.[0] ?? state.measure, 0, plan.height + 12, { ink: look.ink, bold: true });
    paintChart(pen, now, width, plan.height + 22);
  } };
}

export function mountTime() {
  const inStrip = ({ offsetX: x }) => { const { band, groups } = stripPlan(page.view, $("time").clientWidth), t = Math.floor((x - 1) / band); return t >= 0 && t < groups ? t : null; };
  const inChart = ({ offsetX: x }) => { const { timeOf } = page.view.run; return timeOf[Math.floor(((x - CHART.left) / ($("time").clientWidth - CHART.right - CHART.left)) * timeOf.length)] ?? null; };
  for (const [id, under] of [["strip", inStrip], ["chart", inChart]]) {
    let from = null;
    on(id, {
      pointerdown: (e) => { const t = under(e); from = state.time; e.target.setPointerCapture(e.pointerId); point(); change({ time: from === t ? null : t }); },
      pointermove: (e) => { const t = under(e); if (!e.buttons) point(t === null ? {} : { time: t }); else if (t !== from && t !== state.time) change({ time: t }); },
      pointerleave: () => point(),
    });
  }
  on("measure", { change: (e) => change({ measure: e.target.value }) });
}

let playing = null;
/** Plays the time groups one after the other, then all of time. */
export function play() {
  if (playing) { clearInterval(playing); playing = null; return; }
  playing = setInterval(() => change({ time: state.time === null ? 0 : state.time + 1 >= page.view.run.facts.times ? null : state.time + 1 }), 700);
}
