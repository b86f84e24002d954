// Rows of P, maps and colours of a selection of an overview. No DOM: `sram`, `r2g`, `g2r` and `token_map` of the analyzer are its measure.
//
// A selection is {time, layer, head, frame}: a time group, a layer's place in the view's list, a head's place in its layer (each null
// for all), and a shown frame. Means weigh every recorded call alike, so a look is `sram` over its number of steps.
import { product, range, sum, under } from "./lists.js";
import { resize } from "./resample.js";

const SQUARES = Float64Array.from({ length: 256 }, (_, i) => (i / 255) ** 2);

/** Layers of a selection, by their place in the list. */
export function chosenLayers(view, { layer, head }) {
  return range(view.layers.length).filter((l) => (layer === null || l === layer) && (head === null || head < view.layers[l].heads));
}

/** Heads of a layer in a selection. */
const headsOf = (layer, head) => (head === null ? range(layer.heads) : [head]);
/** Every (layer, head) of a selection. */
export const pairs = (view, sel = { layer: null, head: null }) => chosenLayers(view, sel).flatMap((l) => headsOf(view.layers[l], sel.head).map((h) => [l, h]));

const timesOf = (layer, time) => (time === null ? range(layer.calls.length) : [time]).filter((t) => layer.calls[t] > 0);

/**
 * Stored rows whose weighted sum one layer's mean is; empty where none are kept.
 * `full` keeps each (time, head). `marginal` keeps heads over all of time and times over all heads: a head then answers for all of time.
 */
export function blocks(layer, { time, head }) {
  const times = timesOf(layer, time), calls = sum(times.map((t) => layer.calls[t]));
  if (layer.rows) {
    const heads = headsOf(layer, head);
    return times.flatMap((t) => heads.map((h) => ({ store: layer.rows, block: t * layer.heads + h, weight: layer.calls[t] / calls / heads.length })));
  }
  if (head === null && layer.rows_times) return times.map((t) => ({ store: layer.rows_times, block: t, weight: layer.calls[t] / calls }));
  const place = layer.row_heads ? layer.row_heads.indexOf(head) : head;
  return layer.rows_heads && place >= 0 && head !== null ? [{ store: layer.rows_heads, block: place, weight: 1 }] : [];
}

/** Layers of a selection that have rows, with the share of the calls that each brings to the mean. */
export function weighedLayers(view, sel) {
  const found = chosenLayers(view, sel).map((l) => {
    const layer = view.layers[l], calls = sum(timesOf(layer, sel.time).map((t) => layer.calls[t]));
    return { l, layer, parts: blocks(layer, sel), weight: calls * (sel.head === null ? layer.heads : 1) };
  }).filter(({ parts, weight }) => parts.length && weight);
  const whole = sum(found.map(({ weight }) => weight));
  return found.map((each) => ({ ...each, weight: each.weight / whole }));
}

/** The row of a layer's kept grid that answers for a patch of the latent grid. */
function cellOf(view, layer, at) {
  return at.map((i, axis) => under(under(i, view.latent[axis], layer.grid[axis]), layer.grid[axis], layer.row_grid[axis]));
}

function addRow({ data, max, tokens }, row, weight, out) {
  const scale = weight * max[row], from = row * tokens;
  for (let k = 0; k < tokens; k++) out[k] += scale * SQUARES[data[from + k]];
}

/** Where a patch looked: its row of P, mean over the calls of the selection, on the reference grid. Null where no row is kept. */
export function row(view, sel, at) {
  const out = new Float64Array(view.tokens);
  const layers = weighedLayers(view, sel);
  for (const { layer, parts, weight } of layers) {
    const alike = layer.keys === view.tokens, own = alike ? out : new Float64Array(layer.keys), [y, x] = cellOf(view, layer, at);
    for (const part of parts) addRow(part.store, part.block * part.store.rows + rowIn(layer, sel.frame, y, x), weight * part.weight, own);
    if (!alike) toReference(view, layer, own).forEach((value, k) => { out[k] += value; });
  }
  return layers.length ? out : null;
}

const rowIn = (layer, frame, y, x) => (frame * layer.row_grid[0] + y) * layer.row_grid[1] + x;

/** A layer's keys on the view's grid of the reference, as maps are brought there; tokens without places as far as all layers have them. */
function toReference(view, layer, values) {
  return view.ref_grid ? resize(values, layer.key_grid, view.ref_grid, true) : values.subarray(0, view.tokens);
}

/** A layer's own key under a token of the view's reference grid. */
function keyOf(view, layer, token) {
  if (!view.ref_grid || layer.keys === view.tokens) return token;
  const [H, W] = view.ref_grid, [h, w] = layer.key_grid;
  return Math.floor(((Math.floor(token / W) + 0.5) * h) / H) * w + Math.floor((((token % W) + 0.5) * w) / W);
}

/** One layer's column of P over its kept patches: who looked at a token. */
export function layerColumn(view, layer, sel, token) {
  const [n, m] = layer.row_grid, out = new Float64Array(n * m), key = keyOf(view, layer, token);
  for (const { store, block, weight } of blocks(layer, sel)) for (let i = 0; i < out.length; i++) {
    const row = block * store.rows + sel.frame * n * m + i;
    out[i] += weight * store.max[row] * SQUARES[store.data[row * store.tokens + key]];
  }
  return out;
}

/** Who looked at some tokens, mean over them, on the grid of patches that a layer keeps or, of several, on the finest. */
export function column(view, sel, tokens) {
  const layers = weighedLayers(view, sel);
  if (!layers.length) return null;
  const grid = sel.layer === null ? view.cells : layers[0].layer.row_grid, out = new Float64Array(grid[0] * grid[1]);
  for (const { layer, weight } of layers) for (const token of tokens) {
    const own = layerColumn(view, layer, sel, token);
    spread(grid, layer.row_grid, (to, from) => { out[to] += (weight * own[from]) / tokens.length; });
  }
  return { values: out, grid };
}

/** Visits the cells of a grid with the cells of a coarser one under them. */
function spread([H, W], [h, w], visit) {
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) visit(y * W + x, under(y, H, h) * w + under(x, W, w));
}

/** Sums over stored rows of P times the reference's colours, and of P alone: (red, green, blue, mass) a row. Made once. */
function paints(view, layer, store) {
  if (store.paints) return store.paints;
  const colours = view.colours(layer.key_grid), count = store.max.length, out = new Float32Array(4 * count), { data, max, tokens } = store;
  for (let row = 0; row < count; row++) {
    let r = 0, g = 0, b = 0, mass = 0;
    for (let k = 0, at = row * tokens; k < tokens; k++, at++) {
      const p = SQUARES[data[at]];
      mass += p; r += p * colours[3 * k]; g += p * colours[3 * k + 1]; b += p * colours[3 * k + 2];
    }
    out.set([r * max[row], g * max[row], b * max[row], mass * max[row]], 4 * row);
  }
  return (store.paints = out);
}

/** The picture that attention would copy: each kept patch in the mean colour of where it looked. RGB, 0 to 255. */
export function copy(view, sel, grid = null) {
  const layers = weighedLayers(view, sel);
  if (!layers.length || !view.colours) return null;
  const to = grid ?? (sel.layer === null ? view.cells : layers[0].layer.row_grid), total = new Float64Array(4 * to[0] * to[1]);
  for (const { layer, parts, weight } of layers) for (const part of parts) {
    const made = paints(view, layer, part.store), first = part.block * part.store.rows + rowIn(layer, sel.frame, 0, 0);
    spread(to, layer.row_grid, (cell, own) => { for (let c = 0; c < 4; c++) total[4 * cell + c] += weight * part.weight * made[4 * (first + own) + c]; });
  }
  const rgb = new Float32Array(3 * to[0] * to[1]);
  for (let i = 0; i < to[0] * to[1]; i++) for (let c = 0; c < 3; c++) rgb[3 * i + c] = total[4 * i + c] / (total[4 * i + 3] || 1);
  return { rgb, grid: to };
}

/**
 * R2G, G2R or G2R in the mask, in the recipe's order: resample and clamp, add over time, mean over (layer, head) pairs.
 * R2G is one frame's, on the latent grid. Null where heads were dropped and one is asked for.
 */
export function map(view, name, sel) {
  const onImage = name === "r2g", target = onImage ? view.latent : view.ref_grid ?? [1, view.tokens], out = new Float64Array(target[0] * target[1]);
  let count = 0;
  for (const { layer, kept, share, blocks: parts } of storedMaps(view, name, sel)) {
    if (!parts) return null;
    const grid = onImage ? layer.grid : gridOf(view, kept.cells);
    for (const block of parts) addMap(kept, block, onImage ? sel.frame : 0, grid, target, share, out);
    count += parts.length ? share * (sel.head === null ? kept.heads : 1) : 0;
  }
  return count ? out.map((value) => value / count) : null;
}

/** The grid of a layer's own keys, which maps keep where rows have sums of them: of the reference's shape. */
function gridOf({ ref_grid: grid }, cells) {
  const rows = grid ? Math.round(Math.sqrt((cells * grid[0]) / grid[1])) : 1;
  return [rows, cells / rows];
}

/** Of each layer of a selection its stored maps, and for how many heads each stands; no blocks where one head is asked for and only means are kept. */
function storedMaps(view, name, sel) {
  return chosenLayers(view, sel).map((l) => view.layers[l]).filter((layer) => layer[name]).map((layer) => {
    const kept = layer[name], share = layer.heads / kept.heads, heads = sel.head === null ? range(kept.heads) : [sel.head];
    return { layer, kept, share, blocks: share > 1 && sel.head !== null ? null : timesOf(layer, sel.time).flatMap((t) => heads.map((h) => t * kept.heads + h)) };
  });
}

function addMap({ data, max, cells }, block, frame, grid, target, share, out) {
  const size = product(grid), from = block * cells + frame * size, scale = (share * max[block]) / 65535, own = Float64Array.from(data.subarray(from, from + (grid[0] > 1 ? size : out.length)), (value) => value * scale);
  (grid[0] > 1 ? resize(own, grid, target, true) : own).forEach((value, i) => { out[i] += value; });
}

/** Share of what masked patches give the reference that falls outside its mask. */
export function leaked(view, sel) {
  let off = 0, whole = 0;
  for (const { kept, share, blocks: parts } of storedMaps(view, "g2r_masked", sel)) {
    if (!parts) return NaN;
    const outside = view.outside(gridOf(view, kept.cells));
    for (const block of parts) for (let k = 0; k < kept.cells; k++) {
      const value = share * kept.max[block] * kept.data[block * kept.cells + k];
      whole += value;
      if (outside[k]) off += value;
    }
  }
  return off / whole;
}

/** Where a word is attended to, mean over heads, on the latent grid; of one head from the kept rows, on their grid. */
export function wordMap(view, sel, word) {
  const { tokens, kind } = view.terms[word];
  if (sel.head !== null || !view.words) return kind === "probe" ? null : column(view, sel, tokens.filter((token) => token < view.tokens));
  const out = new Float64Array(product(view.latent));
  let calls = 0;
  for (const layer of chosenLayers(view, sel).map((l) => view.layers[l]).filter((each) => each.words)) {
    const grid = layer.word_grid ?? layer.grid, size = product(grid);
    for (const t of timesOf(layer, sel.time)) {
      const block = t * view.words.length + word, from = block * layer.words.cells + sel.frame * size, weight = layer.calls[t] * layer.heads;
      resize(Float64Array.from(layer.words.data.subarray(from, from + size), (byte) => weight * layer.words.max[block] * SQUARES[byte]), grid, view.latent, true).forEach((value, i) => { out[i] += value; });
      calls += weight;
    }
  }
  return calls ? { values: out.map((value) => value / calls), grid: view.latent } : null;
}
