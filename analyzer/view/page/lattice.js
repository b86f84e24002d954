// Layers from top to bottom, heads from left to right: a tile each, all on one scale. Where tiles would be too small, cells of a score.
import { $, el, fill, times } from "./dom.js";
import { css, fit, swatch, tile, write } from "./draw.js";
import { copyOf, headScores, lift, lookOf, mapOf, ofOther, pointsThere } from "./answers.js";
import { column, pairs } from "./maths.js";
import { greatest, span, strongest } from "./scores.js";
import { selectionBeside } from "./words.js";
import { change, compares, hover, page, point, state } from "./state.js";

const GAP = 4, BAR = 5, TOP = 18, SMALLEST = 24, LARGEST = 52, FOLDED = 24;
const open = new Set();

/** Where each row and tile lies. Many layers are folded by block; a block opens by a click, or when its layer is chosen. */
function layout(view, available) {
  const most = Math.max(...view.layers.map((layer) => layer.heads)), label = Math.min(150, Math.max(70, 14 + 6.3 * Math.max(...view.layers.map((layer) => layer.short.length))));
  const room = Math.floor((available - label - 8 + GAP) / (most + 1)) - GAP, small = room < SMALLEST || view.layers.length > 40;
  const size = small ? Math.max(5, room + 3) : Math.min(LARGEST, room), gap = small ? 1 : GAP, step = small ? 13 : size + GAP + BAR;
  const fold = view.layers.length > FOLDED && new Set(view.layers.map((layer) => layer.block)).size > 1, rows = [];
  view.layers.forEach((layer, l) => {
    const last = rows.at(-1), opened = open.has(layer.block) || state.layer === l || view.layers[state.layer]?.block === layer.block;
    if (!fold) rows.push({ kind: "layer", l, layers: [l] });
    else if (last?.block === layer.block && last.kind === "block") last.layers.push(l);
    else if (!last || last.block !== layer.block) rows.push({ kind: opened ? "title" : "block", block: layer.block, layers: [l] }, ...(opened ? [{ kind: "layer", l, layers: [l], block: layer.block }] : []));
    else rows.push({ kind: "layer", l, layers: [l], block: layer.block });
  });
  let y = TOP;
  for (const row of rows) { row.y = y; row.height = row.kind === "title" ? 16 : small ? 12 : size; y += row.kind === "title" ? 18 : row.kind === "block" && !small ? size + GAP + BAR : step; }
  const across = (h) => label + (h < 0 ? 0 : 8 + (h + 1) * (size + gap));
  return { rows, size, small, label, most, across, gap, width: across(most - 1) + size + 2, height: y + 2 };
}

/** What the tiles of one layer's heads show, and the scale that they share. */
function content(now) {
  const { view, sel, at } = now, one = (l, h) => ({ time: sel.time, layer: l, head: h, frame: sel.frame });
  const shared = (ask) => pairs(view).reduce((high, [l, h]) => { const found = ask(l, h); return found ? Math.max(high, greatest(found.values)) : high; }, 0);
  if (now.column && state.tiles === "look") {
    const tokens = now.tokens, beside = (l, h) => selectionBeside(view, now.columnView, one(l, h)), ask = (l, h) => { const from = beside(l, h); return from.layer === null ? null : column(now.columnView, from, tokens); };
    return { ask, high: shared(ask), root: true, shape: view.images.generated, says: now.token !== null ? "Who looked at the token" : "Who looked at the word" };
  }
  if (state.tiles === "look") {
    const grid = view.ref_grid ?? [1, view.tokens], ask = (l, h) => { const values = lookOf(view, one(l, h), at); return values && { values, grid }; };
    if (!compares()) return { ask, high: shared(ask), root: true, dots: true, shape: view.images.reference, says: "Where the patch looked" };
    const differ = (l, h) => { const mine = ask(l, h), other = mine && ofOther((each) => lookOf(each, one(l, h), at)); return other && { values: mine.values.map((value, i) => value - other[i]), grid }; };
    return { ask: differ, high: pairs(view).reduce((high, [l, h]) => Math.max(high, strongest(differ(l, h)?.values ?? [0])), 0), root: true, signed: true, dots: true, shape: view.images.reference, says: "Where the patch looked, A less B" };
  }
  if (state.tiles === "copy") return { ask: (l, h) => { const found = copyOf(view, one(l, h)); return found && { rgb: found.rgb, grid: found.grid }; }, shape: view.images.generated, says: "The picture it would copy: each patch in the mean colour of where it looked" };
  const grid = state.tiles === "r2g" ? view.latent : view.ref_grid ?? [1, view.tokens];
  const ask = (l, h) => { const values = mapOf(view, state.tiles, one(l, h)); return values && { values, grid }; };
  return { ask, own: true, shape: state.tiles === "r2g" ? view.images.generated : view.images.reference, says: state.tiles === "r2g" ? "What came from the reference, each on its own scale" : "What of the reference was used, each on its own scale" };
}

const root = (values) => values.map((value) => Math.sign(value) * Math.sqrt(Math.abs(value)));

function paintTile(pen, box, made, found) {
  const { look } = page;
  if (!found) { pen.strokeStyle = look.line; pen.lineWidth = 1; pen.strokeRect(box.x + 0.5, box.y + 0.5, box.width - 1, box.height - 1); return; }
  if (found.rgb) return swatch(pen, fitted(box, made.shape, found.grid), found.rgb, found.grid);
  const values = made.root ? root(found.values) : found.values, own = state.own || made.own, most = own ? strongest(values) : Math.sqrt(made.high);
  const range = made.signed ? [-most, most] : made.own ? span(values) : [0, most];
  tile(pen, fitted(box, made.shape, found.grid), values, found.grid, { range, look, signed: made.signed, cells: state.cells || found.grid[0] === 1 });
}

/** The largest box of its picture's shape in the middle of a square tile. */
function fitted(box, picture, [rows]) {
  if (rows === 1 || !picture) return box;
  const w = picture.width, h = picture.height, scale = Math.min(box.width / w, box.height / h);
  return { x: box.x + (box.width - w * scale) / 2, y: box.y + (box.height - h * scale) / 2, width: w * scale, height: h * scale };
}

/** The measure that colours cells and fills bars: the match of copied colours where it is known, else how uneven rows are. */
function scoreOf(view) {
  const scores = headScores(view), copies = scores.some((each) => Number.isFinite(each.copy));
  const value = (each) => (copies ? each.copy : Number.isFinite(each.evenness) ? 1 - each.evenness : NaN);
  const by = new Map(scores.map((each) => [`${each.layer} ${each.head}`, value(each)]));
  return { of: (l, h) => by.get(`${l} ${h}`) ?? NaN, known: scores.some((each) => Number.isFinite(value(each))), says: copies ? "match of copied and painted colours" : "how uneven rows are" };
}
const average = (values) => { const known = values.filter(Number.isFinite); return known.length ? known.reduce((a, b) => a + b, 0) / known.length : NaN; };

function paintCells(pen, row, place, view, score) {
  const { look } = page, heads = Math.max(...row.layers.map((l) => view.layers[l].heads));
  for (let h = -1; h < heads; h++) {
    const share = average(row.layers.flatMap((l) => (h >= 0 ? [score.of(l, h)] : [...Array(view.layers[l].heads).keys()].map((each) => score.of(l, each)))));
    pen.fillStyle = Number.isFinite(share) ? css(look.table, share) : look.line;
    const empty = !Number.isFinite(share);
    pen.fillRect(place.across(h), row.y + (empty ? row.height / 2 : 0), place.size, empty ? 1 : row.height);
  }
}

/** All rows on a pen. */
export function paintLattice(pen, now, place, hovered = true) {
  const { view, top } = now, { look } = page, made = !place.small && view.maps && (now.ready || state.tiles === "r2g" || state.tiles === "g2r") ? content(now) : null, score = scoreOf(view);
  write(pen, "mean", place.across(-1) + place.size / 2, 7, { look, align: "center" });
  for (let h = 0; h < place.most; h++) if (place.size > 13 || h % 5 === 0) write(pen, String(headNumber(view, h)), place.across(h) + place.size / 2, 7, { look, align: "center" });
  for (const row of place.rows) {
    paintLabel(pen, row, view, place);
    if (row.kind === "title") continue;
    if (place.small || row.kind === "block") { paintCells(pen, row, place, view, score); continue; }
    if (!made) continue;
    for (let h = -1; h < view.layers[row.l].heads; h++) {
      const box = { x: place.across(h), y: row.y, width: place.size, height: place.size }, head = h < 0 ? null : h;
      paintTile(pen, box, made, made.ask(row.l, head));
      if (h >= 0 && made.dots && top && pointsThere(view, lookOf(view, { ...now.sel, layer: row.l, head }, now.at), top)) paintDot(pen, box);
      if (h >= 0 && Number.isFinite(score.of(row.l, h))) paintBar(pen, box, score.of(row.l, h));
    }
  }
  paintChoice(pen, view, place, hovered);
  return { made, score };
}
const headNumber = (view, h) => view.layers.find((layer) => layer.head_numbers?.length > h)?.head_numbers[h] ?? h;

function paintLabel(pen, row, view, { label, small, size }) {
  const { look } = page, chosen = row.l !== undefined && state.layer === row.l, layer = view.layers[row.layers[0]];
  if (row.kind !== "layer") return write(pen, `${row.kind === "title" ? "▾" : "▸"} ${row.block}${row.kind === "block" ? ` (${row.layers.length})` : ""}`, label - 12, row.y + row.height / 2, { look, ink: look.ink, size: 11.5, align: "right" });
  write(pen, layer.short, label - 12, row.y + row.height / 2 - (size > 24 && !small ? 7 : 0), { look, ink: chosen ? look.mark : look.ink, bold: chosen, size: small ? 10.5 : 11.5, align: "right" });
  if (size > 24 && !small) write(pen, layer.grid.join(" × "), label - 12, row.y + row.height / 2 + 7, { look, size: 10.5, align: "right" });
}
function paintDot(pen, { x, y, width }) {
  pen.fillStyle = page.look.mark; pen.strokeStyle = "#fff"; pen.lineWidth = 1.5;
  pen.beginPath(); pen.arc(x + width - 6, y + 6, 3.4, 0, 2 * Math.PI); pen.fill(); pen.stroke();
}
function paintBar(pen, { x, y, width, height }, share) {
  pen.fillStyle = page.look.line; pen.fillRect(x, y + height + 2, width, 2.5);
  pen.fillStyle = page.look.ink; pen.fillRect(x, y + height + 2, width * Math.min(1, Math.max(0, share)), 2.5);
}

function paintChoice(pen, view, place, hovered) {
  const frame = (l, h, thick) => {
    const row = place.rows.find((each) => each.kind === "layer" && each.l === l);
    if (!row || h >= view.layers[l].heads) return;
    pen.strokeStyle = page.look.mark; pen.lineWidth = thick; pen.strokeRect(place.across(h) - 1, row.y - 1, place.size + 2, row.height + 2);
  };
  if (state.layer !== null) frame(state.layer, state.head ?? -1, 2.5);
  else if (state.head !== null) view.layers.forEach((_, l) => frame(l, state.head, 2.5));
  if (hovered && hover.layer !== undefined) frame(hover.layer, hover.head ?? -1, 1.5);
}

let place = null;
export function drawLattice(now) {
  place = layout(now.view, $("heads").clientWidth);
  const canvas = $("lattice"), shown = paintLattice(fit(canvas, place.width, place.height), now, place);
  canvas.style.width = `${place.width}px`;
  for (const input of document.querySelectorAll("[name=tiles]")) input.disabled = (input.value === "copy" && !now.view.colours) || place.small;
  drawHeadLegend(now, shown);
}

function drawHeadLegend(now, { made, score }) {
  const even = made?.dots && now.row ? times(lift(now.row, made.high)) : null;
  const says = place.small ? `Colour: ${score.says}. Point at a cell to see where it looked` : made && `${made.says}${made.own || !made.root ? "" : state.own ? ", each on its own scale" : `, one scale${even && !made.signed ? ` to ${even} an even share` : ""}, as square roots`}`;
  const key = `${says} ${score.known} ${made?.dots}`;
  if ($("headlegend").dataset.key === key) return;
  $("headlegend").dataset.key = key;
  fill($("headlegend"), says && el("span", {}, says), made?.dots && now.top && el("span", {}, el("i", { className: "dot" }), "points where the choice points"),
    score.known && !place.small && el("span", {}, el("i", { className: "bar" }), score.says));
}

export function latticePicture(now) {
  const made = layout(now.view, 424);
  return { width: made.width, height: made.height + 6, paint: (pen) => paintLattice(pen, now, made, false) };
}

/** The layer and head, or the block, under the pointer. */
function under(event) {
  const { offsetX: x, offsetY: y } = event, row = place.rows.find((each) => y >= each.y - 1 && y < each.y + each.height + (place.small ? 1 : GAP + BAR));
  if (!row) return null;
  if (row.kind !== "layer") return { block: row.block };
  if (x < place.across(0) - 4) return { layer: row.l, head: null };
  const head = Math.floor((x - place.across(0)) / (place.size + place.gap));
  return head >= 0 && head < page.view.layers[row.l].heads ? { layer: row.l, head } : null;
}

export function mountLattice() {
  const canvas = $("lattice");
  canvas.addEventListener("pointermove", (event) => { const found = under(event); point(found && !found.block ? found : {}); });
  canvas.addEventListener("pointerleave", () => point());
  canvas.addEventListener("pointerdown", (event) => {
    const found = under(event);
    if (!found) return;
    if (found.block) { if (!open.delete(found.block)) open.add(found.block); return change({}); }
    const same = state.layer === found.layer && state.head === found.head;
    change(same ? { layer: null, head: null } : found);
  });
}
