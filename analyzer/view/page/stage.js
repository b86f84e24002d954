// The generated picture and its reference, side by side: what a patch looked at, and who looked at a token.
import { $, cellUnder, decimal, el, on, percent, refill, setText, times } from "./dom.js";
import { drawLines, drawPicture, edges, fit, look, mark, overlay, ramp, swatch, table, write } from "./draw.js";
import { frameOf } from "./data.js";
import { copyOf, lookOf, mapOf, peakOf, scoresOf } from "./answers.js";
import { greatest, known, mean, span, strongest } from "./lists.js";
import { cellAt, change, compares, page, point, sampled, state } from "./state.js";

/** A map as times an even share, and one less another. */
const evened = (values) => { const even = mean(values); return values.map((value) => value / even); };
const less = (a, b) => { const other = evened(b); return evened(a).map((value, i) => value - other[i]); };

/** The difference of two maps and its scale, red against blue. */
function contrast(values, other, unit) {
  const change = less(values, other ?? values), most = strongest(change);
  return { values: change, range: [-most, most], signed: true, legend: { low: `−${times(most)}`, high: `+${times(most)}`, unit: `${unit}, A less B`, colours: table("balance") } };
}

/** What lies on the generated picture: values with their range, or copied colours, or nothing. */
function onPicture({ view, sel, column, word, ready }) {
  const { table: colours } = look;
  if (column) { const most = greatest(column.values); return { ...column, range: [0, most], legend: { low: "0", high: percent(most), unit: `of a patch's attention goes to this ${word === null ? "token" : "word"}`, colours } }; }
  const copied = state.under === "copy" && ready && copyOf(view, sel);
  const match = copied && scoresOf(view, sel)?.copy;
  if (copied) return { ...copied, legend: { unit: `each patch in the mean colour of where it looked${known(match) ? `; match with the painted colours ${decimal(match)} (our measure)` : ""}` } };
  if (state.under !== "r2g" || !view.maps) return null;
  const values = mapOf(view, "r2g", sel);
  if (!values) return { legend: { unit: "R2G of single heads was left out of this file" } };
  if (compares()) return { ...contrast(values, mapOf(page.other, "r2g", sel), "an even share of R2G"), grid: view.latent };
  const [low, high] = span(values), even = mean(values);
  return { values, grid: view.latent, range: [low, high], legend: { low: times(low / even), high: times(high / even), unit: "an even share of R2G", colours } };
}

/** What lies on the reference. */
function onReference({ view, sel, at, row, column }) {
  if (!row || !view.ref_grid || column) return null;
  if (compares()) return contrast(row, lookOf(page.other, sel, at), "an even share");
  const most = greatest(row);
  return { values: row, range: [0, most], legend: { low: "0", high: times(most / mean(row)), unit: "an even share", colours: look.table } };
}

function outline(pen, box, view, role, frame) {
  const mask = view.images[role];
  if (!mask || !state.outlines) return;
  drawLines(pen, box, view.once(`edges ${role} ${frame}`, () => edges(view.bits(role, frame), mask.height, mask.width)), [["rgba(0,0,0,.4)", 2.6], ["#ffffff", 1.2]]);
}

export function paintGenerated(pen, box, now) {
  const { view, at } = now, picture = view.images.generated, frame = frameOf(view.run, picture, state.frame), shown = onPicture(now);
  if (shown?.values) overlay(pen, box, picture, frame, shown.values, shown.grid, { ...shown, lens: state.lens, cells: state.cells });
  else if (shown?.rgb) swatch(pen, box, shown.rgb, shown.grid);
  else drawPicture(pen, box, picture, frame);
  outline(pen, box, view, "mask", state.frame);
  if (!now.column) mark(pen, "cell", patchBox(view, at, box), look.mark);
  return shown?.legend;
}

/** Where a patch lies on a box; of a coarse grid of kept rows, as large as what it stands for. */
export function patchBox(view, at, box) {
  const [y, x] = cellAt(view, at), [h, w] = view.cells;
  return { x: box.x + (x / w) * box.width, y: box.y + (y / h) * box.height, width: box.width / w, height: box.height / h };
}

export function paintReference(pen, box, now) {
  const { view, sel, at, top, token } = now, shown = onReference(now), put = (kind, { y, x }, width, ...colours) => mark(pen, kind, { x: box.x + x * box.width, y: box.y + y * box.height, width }, ...colours);
  if (shown) overlay(pen, box, view.images.reference, 0, shown.values, view.ref_grid, { ...shown, lens: state.lens, cells: state.cells, covers: view.window });
  else drawPicture(pen, box, view.images.reference, 0);
  outline(pen, box, view, "reference_mask", 0);
  if (token !== null) mark(pen, "cell", tokenBox(view, token, box), look.mark);
  if (now.column || !top) return shown?.legend;
  const truth = truthOf(now), other = compares() && peakOf(page.other, lookOf(page.other, sel, at));
  if (truth) put("cross", truth, 5, "#fff", "#000");
  if (other) put("ring", other, 15, look.other);
  put("ring", top, 11, look.mark);
  return shown?.legend;
}
const truthOf = ({ view, at }) => view.truthOf?.(state.frame, at, view.latent) ?? null;

function tokenBox({ ref_grid: [h, w], window: [top, left, bottom, right] }, token, box) {
  const tall = ((bottom - top) * box.height) / h, broad = ((right - left) * box.width) / w;
  return { x: box.x + left * box.width + (token % w) * broad, y: box.y + top * box.height + Math.floor(token / w) * tall, width: broad, height: tall };
}

/** The curve from a patch to where it looked most: start, two handles, end. */
function curve(view, at, left, top, right) {
  const cell = patchBox(view, at, left), x1 = cell.x + cell.width, y1 = cell.y + cell.height / 2, x2 = right.x + top.x * right.width - 13, y2 = right.y + top.y * right.height, bend = Math.max(40, (x2 - x1) / 2.4);
  return [x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2];
}

/** A canvas's box, in the coordinates of the whole stage. */
function boxOf(id, picture) {
  const width = $(id).parentElement.clientWidth, stage = $("stage").getBoundingClientRect(), own = $(id).getBoundingClientRect();
  return { x: own.left - stage.left, y: own.top - stage.top, width, height: Math.round((width * picture.height) / picture.width) };
}

export function drawStage(now) {
  const { view, column, top } = now, { generated, reference } = view.images, onCanvas = (id, box, paint, legend) => drawLegend($(legend), paint(fit($(id), box.width, box.height), { ...box, x: 0, y: 0 }, now));
  const left = boxOf("gen", generated), right = reference && boxOf("ref", reference);
  onCanvas("gen", left, paintGenerated, "genlegend");
  if (right) onCanvas("ref", right, paintReference, "reflegend");
  document.querySelector("[name=under][value=copy]").disabled = !view.colours;
  setText($("genhint"), column ? "who looked there" : "point at a patch");
  setText($("refhint"), !column && top && truthOf(now) ? "× truth" : view.ref_grid ? "point: who looked there" : "");
  const [x, y, ...rest] = right && top && !column ? curve(view, now.at, left, top, right) : [0, 0, 0, 0, 0, 0, 0, 0];
  $("link").firstElementChild.setAttribute("d", `M${x} ${y} C${rest.join(" ")}`);
}

/** A legend as elements: low end, colours, high end, unit. */
function drawLegend(node, legend) {
  refill(node, [legend?.low, legend?.high, legend?.unit, look.name].join(), () => {
    if (!legend) return null;
    const { low, high, unit, colours } = legend, canvas = colours && el("canvas", { width: 220, height: 16, "aria-hidden": "true" });
    if (canvas) ramp(canvas.getContext("2d"), { x: 0, y: 0, width: 220, height: 16 }, colours);
    return [low, canvas, high, unit].map((part) => (typeof part === "string" ? el("span", {}, part) : part));
  });
}

/** The same on a pen. */
function paintLegend(pen, x, y, { low = "", high = "", unit, colours } = { unit: "" }) {
  const from = colours ? x + 8 + 6.2 * low.length : x;
  write(pen, low, x, y);
  if (colours) ramp(pen, { x: from, y: y - 4, width: 110, height: 8 }, colours);
  write(pen, `${high}  ${unit}`.trim(), colours ? from + 118 : x, y);
}

/** The whole panel on one pen, for saving. */
export function stagePicture(now) {
  const side = 460, { view } = now, { generated, reference } = view.images, box = (x, picture) => picture && { x, y: 24, width: side, height: Math.round((side * picture.height) / picture.width) };
  const left = box(0, generated), right = box(side + 56, reference);
  const paint = (pen) => {
    for (const [title, at, draw] of [["Generated", left, paintGenerated], ["Reference", right, paintReference]]) if (at) {
      write(pen, title, at.x, 9, { ink: look.ink, bold: true, size: 12 });
      paintLegend(pen, at.x, at.y + at.height + 14, draw(pen, at, now));
    }
    if (!right || now.column || !now.top) return;
    const [x, y, ...rest] = curve(view, now.at, left, now.top, right);
    pen.strokeStyle = look.mark; pen.lineWidth = 1.6; pen.beginPath(); pen.moveTo(x, y); pen.bezierCurveTo(...rest); pen.stroke();
  };
  return { width: right ? 2 * side + 56 : side, height: 52 + Math.max(left.height, right?.height ?? 0), paint };
}

export function mountStage() {
  const tokenUnder = (e) => { const { view } = page; if (!view.ref_grid) return null; const [y, x] = cellUnder(e, view.ref_grid, view.window); return y * view.ref_grid[1] + x; };
  const patchUnder = (e) => sampled(page.view, cellUnder(e, page.view.latent)), away = () => point();
  on("gen", { pointermove: (e) => point({ at: patchUnder(e) }), pointerdown: (e) => change({ at: patchUnder(e), token: null, word: null }), pointerleave: away });
  on("ref", {
    pointermove: (e) => { const token = tokenUnder(e); if (token !== null) point({ token }); }, pointerleave: away,
    pointerdown: (e) => { const token = tokenUnder(e); if (token !== null) change({ token: state.token === token ? null : token, word: null }); },
  });
  on("frames", { change: (e) => change({ frame: Number(e.target.value) }) });
}

/** A video's shown frames as a strip of radio buttons. */
export function drawFrames({ view }) {
  const { frames } = view.run.facts, strip = $("frames"), picture = view.images.generated;
  strip.hidden = frames.length < 2;
  if (strip.hidden) return;
  refill(strip, `${view.id} ${look.name}`, () => frames.map((number, i) => {
    const canvas = el("canvas", { width: Math.round((108 * picture.width) / picture.height), height: 108, "aria-hidden": "true" });
    drawPicture(canvas.getContext("2d"), { x: 0, y: 0, width: canvas.width, height: canvas.height }, picture, frameOf(view.run, picture, i));
    return el("label", {}, el("input", { type: "radio", name: "frame", value: i, "aria-label": `frame ${number}` }), canvas, String(number));
  }));
  strip.querySelectorAll("input")[state.frame].checked = true;
}
