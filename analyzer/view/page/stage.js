// The generated picture and its reference, side by side: what a patch looked at, and who looked at a token.
import { $, cellUnder, el, fill, percent, setText, times } from "./dom.js";
import { drawLines, drawPicture, edges, fit, mark, overlay, ramp, swatch, table, write } from "./draw.js";
import { pictureFrame } from "./data.js";
import { copyOf, lift, lookOf, mapOf, ofOther, peakOf } from "./answers.js";
import { greatest, mean, span, strongest } from "./scores.js";
import { cellAt, change, compares, page, point, sampled, state } from "./state.js";

const minus = (a, b) => a.map((value, i) => value - b[i]);
const shares = (values) => { const even = mean(values); return values.map((value) => value / even); };
const outlines = new WeakMap();

/** The outline of a mask, found once. */
function outlineOf(view, role, frame) {
  const mask = view.images[role], key = pictureFrame(page.run, mask, frame);
  if (!outlines.has(mask)) outlines.set(mask, new Map());
  if (!outlines.get(mask).has(key)) outlines.get(mask).set(key, edges(view.bits(role, key), mask.height, mask.width));
  return outlines.get(mask).get(key);
}

/** A legend: what is at each end of the scale, and what it counts. */
export const legendOf = (low, high, unit, colours = page.look.table) => ({ low, high, unit, colours });

/** What lies on the generated picture now: values on a grid with their range, copied colours, or nothing. */
export function onPicture(now) {
  const { view, sel } = now;
  if (now.column) {
    const most = greatest(now.column.values), what = now.word !== null ? "of a patch's attention goes to this" : "of a patch's attention goes to this token";
    return { ...now.column, range: [0, most], legend: legendOf("0", percent(most), what) };
  }
  if (state.under === "copy") {
    const copied = now.ready && copyOf(view, sel);
    return copied ? { rgb: copied.rgb, grid: copied.grid, legend: { unit: "each patch in the mean colour of where it looked" } } : null;
  }
  if (state.under !== "r2g") return null;
  const values = view.maps && mapOf(view, "r2g", sel);
  if (!values) return view.maps ? { legend: { unit: "R2G of single heads was left out of this file" } } : null;
  if (compares()) {
    const change = minus(shares(values), shares(ofOther((other) => mapOf(other, "r2g", sel)) ?? values)), most = strongest(change);
    return { values: change, grid: view.latent, range: [-most, most], signed: true, legend: legendOf(`−${times(most)}`, `+${times(most)}`, "an even share of R2G, A less B", table("balance")) };
  }
  const [low, high] = span(values), even = mean(values);
  return { values, grid: view.latent, range: [low, high], legend: legendOf(times(low / even), times(high / even), "an even share of R2G") };
}

export function paintGenerated(pen, box, now) {
  const { view, at } = now, { look } = page, picture = view.images.generated, frame = pictureFrame(page.run, picture, state.frame), shown = onPicture(now);
  if (shown?.values) overlay(pen, box, picture, frame, shown.values, shown.grid, { lens: state.lens, range: shown.range, look, cells: state.cells, signed: shown.signed });
  else if (shown?.rgb) swatch(pen, box, shown.rgb, shown.grid);
  else drawPicture(pen, box, picture, frame, look);
  if (state.outlines && view.images.mask) drawLines(pen, box, outlineOf(view, "mask", state.frame), [["rgba(0,0,0,.4)", 2.6], ["#ffffff", 1.2]]);
  if (!now.column) mark(pen, "cell", patchBox(view, at, box), look.mark);
  return shown;
}

/** Where a patch lies on a box; one of a coarse grid of kept rows as large as what it stands for. */
export function patchBox(view, at, box) {
  const [y, x] = cellAt(view, at), [h, w] = view.cells;
  return { x: box.x + (x / w) * box.width, y: box.y + (y / h) * box.height, width: box.width / w, height: box.height / h };
}

/** What lies on the reference now, and its legend. */
function onReference(now) {
  const { view, sel, at, row } = now;
  if (!row || !view.ref_grid) return null;
  if (now.column) return { values: null };
  if (compares()) {
    const other = ofOther((each) => lookOf(each, sel, at)), change = minus(shares(row), shares(other ?? row)), most = strongest(change);
    return { values: change, range: [-most, most], signed: true, legend: legendOf(`−${times(most)}`, `+${times(most)}`, "an even share, A less B", table("balance")) };
  }
  return { values: row, range: [0, greatest(row)], legend: legendOf("0", times(lift(row, greatest(row))), "an even share") };
}

export function paintReference(pen, box, now) {
  const { view, at, top } = now, { look } = page, picture = view.images.reference, shown = onReference(now);
  const place = ({ y, x }) => ({ x: box.x + x * box.width, y: box.y + y * box.height });
  if (shown?.values) overlay(pen, box, picture, 0, shown.values, view.ref_grid, { lens: state.lens, range: shown.range, look, cells: state.cells, signed: shown.signed, covers: view.window });
  else drawPicture(pen, box, picture, 0, look);
  if (state.outlines && view.images.reference_mask) drawLines(pen, box, outlineOf(view, "reference_mask", 0), [["rgba(0,0,0,.35)", 2.6], ["#ffffff", 1.1]]);
  if (now.token !== null) mark(pen, "cell", tokenBox(view, now.token, box), look.mark);
  if (now.column || !top) return shown;
  const truth = truthOf(now);
  if (truth) mark(pen, "cross", { ...place(truth), width: 5 }, "#fff", "#000");
  if (compares()) { const other = ofOther((each) => peakOf(each, lookOf(each, now.sel, at))); if (other) mark(pen, "ring", { ...place(other), width: 11 }, look.other); }
  mark(pen, "ring", { ...place(top), width: 11 }, look.mark);
  return shown;
}

export const truthOf = ({ view, at }) => view.truthOf?.(state.frame, at, view.latent) ?? null;

function tokenBox({ ref_grid: [h, w], window: [top, left, bottom, right] }, token, box) {
  const tall = ((bottom - top) * box.height) / h, broad = ((right - left) * box.width) / w;
  return { x: box.x + left * box.width + (token % w) * broad, y: box.y + top * box.height + Math.floor(token / w) * tall, width: broad, height: tall };
}

export function drawStage(now) {
  const { view } = now, generated = sizeOf("gen", view.images.generated);
  drawLegend($("genlegend"), paintGenerated(fit($("gen"), generated.width, generated.height), generated, now)?.legend);
  setText($("genhint"), now.column ? "who looked there" : "point at a patch");
  for (const input of document.querySelectorAll("[name=under][value=copy]")) input.disabled = !view.colours || !now.ready;
  if (!view.images.reference) return hideLink();
  const reference = sizeOf("ref", view.images.reference), shown = paintReference(fit($("ref"), reference.width, reference.height), reference, now);
  drawLegend($("reflegend"), shown?.legend);
  const truth = !now.column && now.top && truthOf(now);
  setText($("refhint"), truth ? "× truth" : view.ref_grid ? "point: who looked there" : "");
  if (now.column || !now.top) hideLink(); else drawLink(patchBox(view, now.at, generated), now.top, reference);
}

function sizeOf(id, picture) {
  const width = $(id).parentElement.clientWidth;
  return { x: 0, y: 0, width, height: Math.round((width * picture.height) / picture.width) };
}

/** A legend as elements: low end, colours, high end, unit. */
export function drawLegend(node, legend) {
  const key = legend ? `${legend.low} ${legend.high} ${legend.unit} ${page.look.name}` : "";
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  if (!legend) return fill(node);
  const colours = legend.colours && el("canvas", { width: 220, height: 16, "aria-hidden": "true" });
  if (colours) ramp(colours.getContext("2d"), { x: 0, y: 0, width: 220, height: 16 }, legend.colours);
  fill(node, legend.low && el("span", {}, legend.low), colours, legend.high && el("span", {}, legend.high), el("span", {}, legend.unit));
}

/** The same on a pen, for saved pictures. */
export function paintLegend(pen, x, y, legend) {
  const { look } = page;
  if (!legend) return;
  if (!legend.colours) return write(pen, legend.unit, x, y, { look });
  write(pen, legend.low, x, y, { look });
  const from = x + 8 + 6.2 * legend.low.length;
  ramp(pen, { x: from, y: y - 4, width: 110, height: 8 }, legend.colours);
  write(pen, `${legend.high}  ${legend.unit}`, from + 118, y, { look });
}

/** The curve from the patch to where it looked most. */
function curve(from, to) {
  const bend = Math.max(40, (to.x - from.x) / 2.4);
  return [from.x, from.y, from.x + bend, from.y, to.x - bend, to.y, to.x, to.y];
}
function drawLink(cell, top, reference) {
  const stage = $("stage").getBoundingClientRect(), a = $("gen").getBoundingClientRect(), b = $("ref").getBoundingClientRect();
  const c = curve({ x: a.left - stage.left + cell.x + cell.width, y: a.top - stage.top + cell.y + cell.height / 2 }, { x: b.left - stage.left + top.x * reference.width - 13, y: b.top - stage.top + top.y * reference.height });
  $("link").firstElementChild.setAttribute("d", `M${c[0]} ${c[1]} C${c.slice(2).join(" ")}`);
}
const hideLink = () => $("link").firstElementChild.setAttribute("d", "M0 0");

/** The whole panel on one pen, for saving. */
export function stagePicture(now) {
  const side = 460, gap = 56, { view } = now, { generated, reference } = view.images, tall = (picture) => Math.round((side * picture.height) / picture.width);
  const left = { x: 0, y: 24, width: side, height: tall(generated) }, right = reference && { x: side + gap, y: 24, width: side, height: tall(reference) };
  const paint = (pen) => {
    const { look } = page;
    write(pen, "Generated", 0, 9, { look, ink: look.ink, bold: true, size: 12 });
    paintLegend(pen, 0, left.y + left.height + 14, paintGenerated(pen, left, now)?.legend);
    if (!right) return;
    write(pen, "Reference", right.x, 9, { look, ink: look.ink, bold: true, size: 12 });
    paintLegend(pen, right.x, right.y + right.height + 14, paintReference(pen, right, now)?.legend);
    if (now.column || !now.top) return;
    const cell = patchBox(view, now.at, left), c = curve({ x: cell.x + cell.width, y: cell.y + cell.height / 2 }, { x: right.x + now.top.x * right.width - 13, y: right.y + now.top.y * right.height });
    pen.strokeStyle = look.mark; pen.lineWidth = 1.6; pen.beginPath(); pen.moveTo(c[0], c[1]); pen.bezierCurveTo(...c.slice(2)); pen.stroke();
  };
  return { width: right ? 2 * side + gap : side, height: 28 + Math.max(left.height, right?.height ?? 0) + 24, paint };
}

export function mountStage() {
  const tokenUnder = (event) => { const { view } = page; if (!view.ref_grid) return null; const [y, x] = cellUnder(event, view.ref_grid, view.window); return y * view.ref_grid[1] + x; };
  const patchUnder = (event) => sampled(page.view, cellUnder(event, page.view.latent));
  $("gen").addEventListener("pointermove", (event) => point({ at: patchUnder(event) }));
  $("gen").addEventListener("pointerdown", (event) => change({ at: patchUnder(event), token: null, word: null }));
  $("ref").addEventListener("pointermove", (event) => { const token = tokenUnder(event); if (token !== null) point({ token }); });
  $("ref").addEventListener("pointerdown", (event) => { const token = tokenUnder(event); if (token !== null) change({ token: state.token === token ? null : token, word: null }); });
  for (const id of ["gen", "ref"]) $(id).addEventListener("pointerleave", () => point());
  mountFrames();
}

/** A video's shown frames as a strip of radio buttons. */
function mountFrames() {
  $("frames").addEventListener("change", (event) => change({ frame: Number(event.target.value) }));
}
export function drawFrames() {
  const { run, view, look } = page, { frames } = run.facts, strip = $("frames"), key = `${page.runs.indexOf(run)} ${view.number} ${look.name}`;
  strip.hidden = frames.length < 2;
  if (strip.hidden) return;
  if (strip.dataset.key !== key) {
    strip.dataset.key = key;
    const picture = view.images.generated;
    fill(strip, frames.map((number, i) => {
      const canvas = el("canvas", { width: Math.round((108 * picture.width) / picture.height), height: 108, "aria-hidden": "true" });
      drawPicture(canvas.getContext("2d"), { x: 0, y: 0, width: canvas.width, height: canvas.height }, picture, pictureFrame(run, picture, i), look);
      return el("label", {}, el("input", { type: "radio", name: "frame", value: i, "aria-label": `frame ${number}` }), canvas, String(number));
    }));
  }
  for (const input of strip.querySelectorAll("input")) input.checked = Number(input.value) === state.frame;
}
