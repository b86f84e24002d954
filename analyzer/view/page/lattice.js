// Layers from top to bottom, heads from left to right: a tile each, all on one scale. Where tiles would be too small, cells of a score.
import { $, el, on, refill, times } from "./dom.js";
import { block, css, dot, fit, frame, look, sheet, swatch, tile, write } from "./draw.js";
import { copyOf, headScores, lift, lookOf, mapOf, pointsThere } from "./answers.js";
import { column, pairs } from "./maths.js";
import { known, mean, range, span, strongest } from "./lists.js";
import { selectionBeside } from "./words.js";
import { change, compares, hover, page, point, state } from "./state.js";

const GAP = 4, BAR = 5, TOP = 18, SMALLEST = 24, LARGEST = 52, MANY = 24;
const open = new Set();

/** Rows of layers. Many are folded by block; a block opens by a click, or when a layer of it is chosen. */
function rowsOf(layers) {
  if (layers.length <= MANY || new Set(layers.map((layer) => layer.block)).size < 2) return layers.map((_, l) => ({ kind: "layer", l, layers: [l] }));
  const blocks = [];
  layers.forEach(({ block }, l) => { if (blocks.at(-1)?.block === block) blocks.at(-1).layers.push(l); else blocks.push({ kind: "block", block, layers: [l] }); });
  return blocks.flatMap((row) => (open.has(row.block) || row.layers.includes(state.layer) ? [{ ...row, kind: "title" }, ...row.layers.map((l) => ({ kind: "layer", l, layers: [l] }))] : [row]));
}

/** Where each row and tile lies. */
function layout({ layers }, available) {
  const rows = rowsOf(layers), folded = rows.some((row) => row.kind !== "layer"), names = layers.map(({ short, block }) => (folded ? `▸ ${block} (00)` : short).length), most = Math.max(...layers.map((layer) => layer.heads));
  const label = Math.min(150, 18 + 6.3 * Math.max(8, ...names)), room = Math.floor((available - label - 8 + GAP) / (most + 1)) - GAP, small = room < SMALLEST || layers.length > 40;
  const size = small ? Math.max(5, room + 3) : Math.min(room, state.panel === "heads" ? Math.max(LARGEST, (innerHeight - 260) / rows.length - GAP - BAR) : LARGEST), gap = small ? 1 : GAP;
  let y = TOP;
  for (const row of rows) { row.y = y; row.height = row.kind === "title" ? 16 : small ? 12 : size; y += row.height + (small || row.kind === "title" ? 1 : GAP + BAR); }
  const across = (h) => label + (h < 0 ? 0 : 8 + (h + 1) * (size + gap));
  return { rows, size, small, label, most, across, gap, width: across(most - 1) + size + 2, height: y + 2 };
}

/** What tiles show: `ask(layer, head)` gives values or colours on a grid; `high` is the scale that all share, `shape` the picture's. */
function content(now) {
  const { view, sel, at } = now, { generated, reference } = view.images, kept = new Map(), one = (layer, head) => ({ ...sel, layer, head });
  const made = (ask, more) => {
    const asked = (l, h) => { const key = `${l} ${h}`; if (!kept.has(key)) kept.set(key, ask(l, h)); return kept.get(key); };
    return { ask: asked, high: more.own ? 0 : pairs(view).reduce((high, [l, h]) => Math.max(high, strongest(asked(l, h)?.values ?? [0])), 0), ...more };
  };
  const grid = view.ref_grid ?? [1, view.tokens], on = (values, grid) => values && { values, grid };
  if (state.tiles === "look" && now.column) return made((l, h) => {
    const beside = selectionBeside(view, now.columnView, one(l, h));
    return beside.layer === null ? null : column(now.columnView, beside, now.tokens);
  }, { shape: generated, says: `Who looked at the ${now.token !== null ? "token" : "word"}` });
  if (state.tiles === "look" && compares()) return made((l, h) => {
    const mine = lookOf(view, one(l, h), at), other = mine && lookOf(page.other, one(l, h), at);
    return other && on(mine.map((value, i) => value - other[i]), grid);
  }, { signed: true, dots: true, shape: reference, says: "Where the patch looked, A less B" });
  if (state.tiles === "look") return made((l, h) => on(lookOf(view, one(l, h), at), grid), { dots: true, shape: reference, says: "Where the patch looked" });
  if (state.tiles === "copy") return made((l, h) => copyOf(view, one(l, h)), { own: true, shape: generated, says: "The picture it would copy: each patch in the mean colour of where it looked" });
  const given = state.tiles === "r2g", places = given ? view.latent : grid;
  return made((l, h) => on(mapOf(view, state.tiles, one(l, h)), places), { own: true, shape: given ? generated : reference, says: `What ${given ? "came from the reference" : "of the reference was used"}, each on its own scale` });
}

function paintTile(pen, box, { signed, own, high, shape }, found) {
  if (!found) return frame(pen, box, look.line, 1);
  const inner = found.grid[0] > 1 && shape ? fitted(box, shape) : box;
  if (found.rgb) return swatch(pen, inner, found.rgb, found.grid);
  const values = own ? found.values : found.values.map((value) => Math.sign(value) * Math.sqrt(Math.abs(value))), most = state.own ? strongest(values) : Math.sqrt(high);
  tile(pen, inner, values, found.grid, { range: own ? span(values) : [signed ? -most : 0, most], signed, cells: state.cells || found.grid[0] === 1 });
}

/** The largest box of a picture's shape in the middle of a square tile. */
function fitted(box, { width, height }) {
  const scale = box.width / Math.max(width, height);
  return { x: box.x + (box.width - width * scale) / 2, y: box.y + (box.height - height * scale) / 2, width: width * scale, height: height * scale };
}

/** The measure that colours cells and fills bars: the match of copied colours where it is known, else how uneven rows are. */
function scoreOf(view) {
  return view.once("lattice scores", () => {
    const scores = headScores(view), copies = scores.some((each) => known(each.copy)), by = new Map(scores.map((each) => [`${each.layer} ${each.head}`, copies ? each.copy : 1 - each.evenness]));
    return { of: (l, h) => by.get(`${l} ${h}`), known: [...by.values()].some(known), says: copies ? "match of copied and painted colours" : "how uneven rows are" };
  });
}

/** A row of cells, each coloured by the score of a head, or of the same head of several layers. */
function paintCells(pen, row, place, { layers }, score) {
  for (let h = -1; h < Math.max(...row.layers.map((l) => layers[l].heads)); h++) {
    const shares = row.layers.flatMap((l) => (h >= 0 ? [score.of(l, h)] : range(layers[l].heads).map((each) => score.of(l, each)))).filter(known);
    block(pen, shares.length ? css(look.table, mean(shares)) : look.line, place.across(h), row.y + (shares.length ? 0 : row.height / 2), place.size, shares.length ? row.height : 1);
  }
}

/** Names, tiles and bars: all that does not follow the pointer over them. */
function paintTiles(pen, now, place) {
  const { view } = now, made = now.ready && !place.small ? content(now) : null, score = now.ready && scoreOf(view);
  for (let h = -1; h < place.most; h++) if (h < 0 || place.size > 16 || h % 5 === 0) write(pen, h < 0 ? "mean" : String(numberOf(view, h)), place.across(h) + place.size / 2, 7, { align: "center" });
  for (const row of place.rows) {
    paintLabel(pen, row, view, place);
    if (row.kind === "title" || !now.ready) continue;
    if (!made || row.kind === "block") { paintCells(pen, row, place, view, score); continue; }
    for (let h = -1; h < view.layers[row.l].heads; h++) {
      const box = { x: place.across(h), y: row.y, width: place.size, height: place.size };
      paintTile(pen, box, made, made.ask(row.l, h < 0 ? null : h));
      if (h >= 0 && known(score.of(row.l, h))) paintBar(pen, box, score.of(row.l, h));
    }
  }
  return { made, score };
}

/** A dot on each head that points where the choice points, and frames around what is chosen and pointed at. */
function paintMarks(pen, { view, sel, at, top }, place, dots, hovered) {
  const chosen = (l, h, thick) => { const box = tileBox(l, h, place); if (box) frame(pen, { x: box.x - 1, y: box.y - 1, width: box.width + 2, height: box.height + 2 }, look.mark, thick); };
  if (dots && top) for (const [layer, head] of pairs(view)) {
    const box = pointsThere(view, lookOf(view, { ...sel, layer, head }, at), top) && tileBox(layer, head, place);
    if (box) { dot(pen, box.x + box.width - 6, box.y + 6, 4.2, "#fff"); dot(pen, box.x + box.width - 6, box.y + 6, 3.2, look.mark); }
  }
  if (state.layer !== null) chosen(state.layer, state.head, 2.5);
  else if (state.head !== null) view.layers.forEach((_, l) => chosen(l, state.head, 2.5));
  if (hovered && hover.layer !== undefined) chosen(hover.layer, hover.head, 1.5);
}
const numberOf = (view, h) => view.layers.find((layer) => layer.heads > h).head_numbers?.[h] ?? h;

function paintLabel(pen, row, { layers }, { label, small, size }) {
  const chosen = row.kind === "layer" && state.layer === row.l, { short, grid } = layers[row.layers[0]], two = size > SMALLEST && !small && row.kind === "layer", y = row.y + row.height / 2;
  const name = row.kind === "layer" ? short : row.kind === "title" ? `▾ ${row.block}` : `▸ ${row.block} (${row.layers.length})`, fits = Math.floor((label - 14) / 6);
  write(pen, name.length > fits ? `…${name.slice(1 - fits)}` : name, label - 12, y - (two ? 7 : 0), { ink: chosen ? look.mark : look.ink, bold: chosen, size: small ? 10.5 : 11.5, align: "right" });
  if (two) write(pen, grid.join(" × "), label - 12, y + 7, { size: 10.5, align: "right" });
}
function paintBar(pen, { x, y, width, height }, share) {
  block(pen, look.line, x, y + height + 2, width, 2.5);
  block(pen, look.ink, x, y + height + 2, width * Math.min(1, Math.max(0, share)), 2.5);
}

/** Where a layer's tile of a head, or of their mean, lies; null where it is folded or not there. */
function tileBox(l, h, { rows, across, size }) {
  const row = rows.find((each) => each.kind === "layer" && each.l === l);
  return row && h < page.view.layers[l].heads ? { x: across(h ?? -1), y: row.y, width: size, height: row.height } : null;
}
let place = null, drawn = { key: null };
/** Where a tile lies on the canvas now. */
export const tileAt = (layer, head) => tileBox(layer, head, place);

export function drawLattice(now) {
  const { view, sel, at, token, word, ready } = now, key = [view.id, sel.time, sel.frame, at, token, word, ready, state.tiles, state.cells, state.own, state.run, page.apart, state.layer, [...open], look.name, $("heads").clientWidth, innerHeight, state.panel, devicePixelRatio].join();
  if (drawn.key !== key) {
    place = layout(view, $("heads").clientWidth);
    drawn = { key, canvas: sheet(1, 1) };
    Object.assign(drawn, paintTiles(fit(drawn.canvas, place.width, place.height), now, place));
  }
  const { made, score } = drawn, pen = fit($("lattice"), place.width, place.height);
  pen.drawImage(drawn.canvas, 0, 0, place.width, place.height);
  paintMarks(pen, now, place, made?.dots, true);
  $("lattice").style.width = `${place.width}px`;
  $("tilekinds").hidden = place.small;
  document.querySelector("[name=tiles][value=copy]").disabled = !view.colours;
  document.querySelector("[name=tiles][value=look]").disabled = !view.rows;
  if (!score) return;
  const scale = !made || made.own ? "" : state.own ? ", each on its own scale" : `, one scale${made.dots && now.row && !made.signed ? ` to ${times(lift(now.row, made.high))} an even share` : ""}, as square roots`;
  const says = made ? made.says + scale : `Colour: ${score.says}. Point at a cell to see where it looked`, dots = made?.dots && now.top;
  refill($("headlegend"), `${says} ${score.says} ${dots}`, () => [el("span", {}, says), dots && el("span", {}, el("i", { className: "dot" }), "points where the choice points"), made && score.known && el("span", {}, el("i", { className: "bar" }), score.says)]);
}

export function latticePicture(now) {
  const place = layout(now.view, 424);
  return { width: place.width, height: place.height + 6, paint: (pen) => paintMarks(pen, now, place, paintTiles(pen, now, place).made?.dots, false) };
}

/** The layer and head, or the block, under the pointer. */
function tileUnder({ offsetX: x, offsetY: y }) {
  const { rows, across, size, gap } = place, row = rows.find((each) => y >= each.y - 1 && y < each.y + each.height + GAP), head = Math.floor((x - across(0)) / (size + gap));
  if (!row || row.kind !== "layer") return row ? { block: row.block } : null;
  return head < 0 ? { layer: row.l, head: null } : head < page.view.layers[row.l].heads ? { layer: row.l, head } : null;
}

export function mountLattice() {
  on("lattice", {
    pointermove: (e) => { const found = tileUnder(e); point(found && !found.block ? found : {}); }, pointerleave: () => point(),
    pointerdown: (e) => {
      const found = tileUnder(e);
      if (!found) return;
      if (found.block) { if (!open.delete(found.block)) open.add(found.block); return change({}); }
      change(state.layer === found.layer && state.head === found.head ? { layer: null, head: null } : found);
    },
  });
}
