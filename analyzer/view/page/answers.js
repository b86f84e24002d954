// Numbers of the selection in sight, kept with their view once they are worked out. Every panel asks here; nothing here draws.
import * as maths from "./maths.js";
import { known, mean, range, sum } from "./lists.js";
import { agreement, imacs, peak } from "./scores.js";
import { frameOf } from "./data.js";

/** What `make` gives; what is still loading is not kept, or it would stay missing. */
const once = (view, name, make) => (view.ready ? view.once(name, make) : make());
const code = ({ time, layer, head, frame }) => `${time} ${layer} ${head} ${frame}`;

/** Names under which an answer of the server takes the place of one from the overview. */
export const lookName = (sel, at) => `look ${at} ${code(sel)}`;
export const columnName = (sel, token) => `column ${token} ${code(sel)}`;

export const lookOf = (view, sel, at) => once(view, lookName(sel, at), () => maths.row(view, sel, at));
export const columnOf = (view, sel, token) => once(view, columnName(sel, token), () => maths.column(view, sel, [token]));
export const wordOf = (view, sel, word) => once(view, `word ${word} ${code(sel)}`, () => maths.wordMap(view, sel, word));
export const copyOf = (view, sel) => once(view, `copy ${code(sel)}`, () => maths.copy(view, sel));
export const mapOf = (view, name, sel) => once(view, `${name} ${code(sel)}`, () => maths.map(view, name, sel));
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
  const before = (n) => sum(view.layers.slice(0, n).map((each) => each.heads)), all = before(view.layers.length), names = view.run.facts.scores;
  const row = layer === null ? all + view.layers.length : head === null ? all + layer : before(layer) + head;
  return Object.fromEntries(names.map((name, k) => [name, view.scores[row * names.length + k]]));
}

/** Scores of every head, in order. */
export const headScores = (view) => once(view, "head scores", () => maths.pairs(view).map(([layer, head]) => ({ layer, head, ...knownScores(view, { time: null, layer, head }) })));

/** Scores of any selection: the analyzer's where it gave them, else worked out, if `now`; null while they are not. */
export function scoresOf(view, sel, now = false) {
  const name = `scores ${code(sel)}`;
  if (now) view.once(name, () => workOutScores(view, sel));
  return knownScores(view, sel) ?? view.kept(name) ?? null;
}

/** The scores of one frame of a selection, as the analyzer defines them; NaN where something that they need is not known. */
export function workOutScores(view, sel) {
  const out = { imacs_g: NaN, imacs_r: NaN, inside: NaN, leak: NaN, copy: NaN, evenness: meanMeasure(view, sel, "evenness") };
  const { mask, reference_mask: reference } = view.images, r2g = mapOf(view, "r2g", sel), g2r = mask && mapOf(view, "g2r_masked", sel);
  if (mask && r2g) {
    const inside = view.inside(view.latent, sel.frame);
    out.imacs_g = imacs(r2g, view.latent, view.bits("mask", sel.frame), [mask.height, mask.width]);
    out.inside = sum(r2g.filter((_, i) => inside[i])) / sum(r2g);
  }
  if (!view.ref_grid) return out;
  if (reference && g2r) out.imacs_r = imacs(g2r, view.ref_grid, view.bits("reference_mask", 0), [reference.height, reference.width], view.window);
  if (reference && g2r) out.leak = maths.leaked(view, sel);
  const finest = maths.weighedLayers(view, sel).reduce((best, { layer }) => (!best || layer.row_grid[0] * layer.row_grid[1] > best.row_grid[0] * best.row_grid[1] ? layer : best), null);
  const copied = finest && maths.copy(view, sel, finest.row_grid);
  if (copied) out.copy = agreement(copied.rgb, view.painted(finest, sel.frame), view.patches(finest, sel.frame));
  return out;
}

/** A measure of one call, of a step, layer and head. */
const measured = (view, l, s, h, measure) => { const { measures } = view.run.facts; return view.layers[l].stats?.[(s * view.layers[l].heads + h) * measures.length + measures.indexOf(measure)]; };
const knownMean = (values) => mean(values.filter(known));

/** The mean of a measure over the recorded calls of a selection. */
function meanMeasure(view, sel, measure) {
  const steps = range(view.run.timeOf.length).filter((s) => sel.time === null || view.run.timeOf[s] === sel.time);
  return knownMean(maths.pairs(view, sel).flatMap(([l, h]) => steps.map((s) => measured(view, l, s, h, measure))));
}

/** A measure at every recorded step of a layer: the mean over heads that have it, or one head. */
export function stepsOf(view, l, measure, head = null) {
  const heads = head === null ? range(view.layers[l].heads) : [head];
  return once(view, `steps ${l} ${measure} ${head}`, () => Array.from(view.run.timeOf, (_, s) => knownMean(heads.map((h) => measured(view, l, s, h, measure)))));
}

/** Measures of which anything is known in this view. */
export const measuresOf = (view) => once(view, "measures", () => view.run.facts.measures.filter((measure) => view.layers.some((_, l) => stepsOf(view, l, measure).some(known))));
