// Numbers of the selection in sight, kept once they are worked out. Every panel asks here; nothing here draws.
import * as maths from "./maths.js";
import { agreement, imacs, mean, peak } from "./scores.js";
import { page } from "./state.js";
import { pictureFrame } from "./data.js";

const kept = new Map();
const MOST = 1500;

/** What `make` gives, kept under a key for the run and view in sight. */
function once(name, view, make) {
  if (!view.ready) return make(); // what is still loading would be kept as missing
  const key = `${page.runs.indexOf(page.run)} ${view.number} ${name}`;
  if (!kept.has(key)) { if (kept.size > MOST) kept.clear(); kept.set(key, make()); }
  return kept.get(key);
}
const code = ({ time, layer, head, frame }) => `${time} ${layer} ${head} ${frame}`;

/** Puts an answer of the server in the place of one from the overview; the page then says that it is exact. */
export function putExact(name, view, value) { kept.set(`${page.runs.indexOf(page.run)} ${view.number} ${name}`, value); }
export const lookName = (sel, at) => `look ${at} ${code(sel)}`;
export const columnName = (sel, token) => `column ${token} ${code(sel)}`;

/** Answers of the other run, under the same selection. */
export function ofOther(ask) {
  const { run, view } = page;
  page.run = page.runs[run === page.runs[0] ? 1 : 0];
  page.view = page.run.views[view.number];
  try { return ask(page.view); } finally { page.run = run; page.view = view; }
}

export const lookOf = (view, sel, at) => once(lookName(sel, at), view, () => maths.look(view, sel, at));
export const columnOf = (view, sel, token) => once(columnName(sel, token), view, () => maths.column(view, sel, [token]));
export const wordOf = (view, sel, word) => once(`word ${word} ${code(sel)}`, view, () => maths.wordMap(view, sel, word));
export const copyOf = (view, sel) => once(`copy ${code(sel)}`, view, () => maths.copy(view, sel));
export const mapOf = (view, name, sel) => once(`${name} ${code(sel)}`, view, () => maths.map(view, name, sel));
export const peakOf = (view, values) => (values && view.ref_grid ? peak(values, view.ref_grid, view.window) : null);

/** Times an even share of the attention that goes to these tokens. */
export const lift = (values, value) => value / (mean(values) || 1);

/** Whether a head points where the selection points: its peak tells itself apart, and lies within an eighth of the side. */
export function pointsThere(view, values, top) {
  const own = peakOf(view, values);
  return Boolean(own && top) && lift(values, own.value) > 3 && Math.hypot(own.y - top.y, own.x - top.x) <= 0.125;
}

/** The analyzer's scores over all of time, of one head, one layer or all; null where it did not work them out. */
export function knownScores(view, { time, layer, head }) {
  if (time !== null || !view.scores || (layer === null && head !== null)) return null;
  const heads = view.layers.map((each) => each.heads), before = (n) => heads.slice(0, n).reduce((total, each) => total + each, 0), all = before(heads.length);
  const row = layer === null ? all + heads.length : head === null ? all + layer : before(layer) + head, names = page.run.facts.scores;
  return Object.fromEntries(names.map((name, k) => [name, view.scores[row * names.length + k]]));
}

/** Scores of every head, in order. */
export const headScores = (view) => once("head scores", view, () => maths.pairs(view).map(([layer, head]) => ({ layer, head, ...knownScores(view, { time: null, layer, head }) })));

/** Scores of any selection: the analyzer's where it gave them, else worked out here; null while that has to wait for idle time. */
export function scoresOf(view, sel, now = false) {
  const name = `scores ${code(sel)}`, known = knownScores(view, sel);
  if (known) return known;
  if (!now && !kept.has(`${page.runs.indexOf(page.run)} ${view.number} ${name}`)) return null;
  return once(name, view, () => workOutScores(view, sel));
}

/** The scores of one frame of a selection, as the analyzer defines them; NaN where something that they need is not known. */
export function workOutScores(view, sel) {
  const out = { imacs_g: NaN, imacs_r: NaN, inside: NaN, leak: NaN, copy: NaN, evenness: meanMeasure(view, sel, "evenness") };
  const { mask, reference_mask: reference } = view.images, r2g = mapOf(view, "r2g", sel), g2r = mask && mapOf(view, "g2r_masked", sel);
  if (mask && r2g) {
    const inside = view.inside(view.latent, sel.frame);
    out.imacs_g = imacs(r2g, view.latent, view.bits("mask", pictureFrame(page.run, mask, sel.frame)), [mask.height, mask.width]);
    out.inside = r2g.reduce((total, value, i) => total + (inside[i] ? value : 0), 0) / r2g.reduce((total, value) => total + value, 0);
  }
  if (!view.ref_grid) return out;
  if (reference && g2r) out.imacs_r = imacs(g2r, view.ref_grid, view.bits("reference_mask"), [reference.height, reference.width], view.window);
  if (reference && g2r) out.leak = maths.leaked(view, sel);
  const finest = maths.weighedLayers(view, sel).reduce((best, { layer }) => (!best || layer.row_grid[0] * layer.row_grid[1] > best.row_grid[0] * best.row_grid[1] ? layer : best), null);
  const copied = finest && view.colours && maths.copy(view, sel, finest.row_grid);
  if (copied) out.copy = agreement(copied.rgb, view.painted(finest, sel.frame), view.patches(finest, sel.frame));
  return out;
}

/** The mean of a measure over the recorded calls of a selection. */
function meanMeasure(view, sel, measure) {
  const { facts, timeOf } = page.run, k = facts.measures.indexOf(measure), values = [];
  for (const [l, h] of maths.pairs(view, sel)) {
    const { stats, heads } = view.layers[l];
    for (let s = 0; stats && s < facts.steps; s++) if (sel.time === null || timeOf[s] === sel.time) values.push(stats[(s * heads + h) * facts.measures.length + k]);
  }
  const known = values.filter(Number.isFinite);
  return known.length ? mean(known) : NaN;
}

/** One measure of every recorded step of a layer: the mean over heads that have it, or one head. */
export function stepsOf(view, l, measure, head = null) {
  const layer = view.layers[l], names = page.run.facts.measures, k = names.indexOf(measure), heads = head === null ? [...Array(layer.heads).keys()] : [head];
  return once(`steps ${l} ${measure} ${head}`, view, () => Array.from({ length: page.run.facts.steps }, (_, s) => {
    const values = heads.map((h) => layer.stats[(s * layer.heads + h) * names.length + k]).filter(Number.isFinite);
    return values.length ? mean(values) : NaN;
  }));
}

/** Measures of which anything is known in this view. */
export const measuresOf = (view) => once("measures", view, () => page.run.facts.measures.filter((_, k) => view.layers.some(({ stats }) => stats && stats.some((value, i) => i % page.run.facts.measures.length === k && Number.isFinite(value)))));
