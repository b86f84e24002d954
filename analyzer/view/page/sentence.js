// What is seen, in words, and the command line that gives the same answer.
import { $, el, percent, quoted, refill, setText, times } from "./dom.js";
import { lift, lookOf, peakOf, pointsThere } from "./answers.js";
import { pairs } from "./maths.js";
import { givenTo } from "./words.js";
import { mean, sum } from "./lists.js";
import { peak } from "./scores.js";
import { compares, page, state } from "./state.js";

const bold = (text) => el("b", {}, text), hot = (text) => el("span", { className: "hot" }, text), patchName = (at) => ["Patch ", bold(at.join(", "))];
/** The model's own number of a head. */
export const headNumber = (view, { layer, head }) => (layer === null ? view.layers.find((each) => each.heads > head) : view.layers[layer]).head_numbers?.[head] ?? head;

/** The selection in words; where rows are kept by head and by time alone, a head answers for all of time, and this says so. */
function aside({ view, sel }) {
  const { times: groups, plan } = view.run.facts, layer = sel.layer === null ? null : view.layers[sel.layer].short, head = sel.head === null ? "" : `head ${headNumber(view, sel)}`;
  const who = layer ? [layer, head].filter(Boolean).join(", ") : head ? `${head} of every layer` : "all heads", blurred = head && plan.rows === "marginal" ? "; this file keeps a head's rows over all of time" : "";
  return el("span", { className: "aside" }, ` (${who}${sel.time === null ? "" : ` in time ${sel.time + 1} of ${groups}${blurred}`})`);
}

export function say(now) {
  const about = now.column ? aboutColumn : !now.ready ? () => ["Loading…"] : now.word !== null || !now.row ? withoutRow : now.view.terms ? aboutWords : compares() ? aboutBoth : aboutPatch, parts = about(now);
  refill($("sentence"), parts.map((part) => part.textContent ?? part).join(""), () => parts);
}

const withoutRow = (now) => ["This file keeps no rows of attention of ", bold(now.word !== null ? "this word" : now.sel.head === null ? "this view" : "this head"), "; maps and scores are whole.", aside(now)];

function aboutPatch(now) {
  const { view, sel, at, row, top } = now, strength = lift(row, top.value), [h, w] = view.ref_grid, y0 = Math.floor(top.token / w), x0 = top.token % w;
  if (strength < 3) return [...patchName(at), " looked nowhere in particular: its brightest token got ", bold(times(strength)), " an even share.", ...wholeShare(now), aside(now)];
  const near = sum(row.map((value, k) => (Math.hypot((Math.floor(k / w) - y0) / h, ((k % w) - x0) / w) <= 0.125 ? value : 0)));
  const all = pairs(view), heads = all.filter(([layer, head]) => pointsThere(view, lookOf(view, { ...sel, layer, head }, at), top)), places = [...new Set(heads.map(([layer]) => view.layers[layer].short))];
  return [...patchName(at), " looked ", hot("here"), ": ", bold(percent(near / sum(row))), " of its attention lies within an eighth of the side, and its brightest token got ", bold(times(strength)), " an even share.", ...wholeShare(now),
    ...(all.length > 1 ? [" ", bold(`${heads.length} of ${all.length}`), ` heads point there${places.length && places.length < 4 ? `, in ${places.join(" and ")}` : ""}.`] : []), aside(now)];
}

/** Where other tokens share the softmax: how much of it these got. */
function wholeShare({ view, row }) {
  return sum(row) < 0.9 && view.layers.every((layer) => layer.keys === view.tokens) ? [" The whole reference got ", bold(percent(sum(row))), " of its attention; the rest went to other tokens."] : [];
}

function aboutBoth(now) {
  const { sel, at, row, top } = now, other = lookOf(page.other, sel, at), far = peakOf(page.other, other);
  if (!far || !top) return aboutPatch(now);
  const apart = Math.hypot(far.y - top.y, far.x - top.x), place = apart < 0.07 ? [" looked at ", hot("the same place"), " in both runs: "] : [" looked ", hot(`${percent(apart)} of the side away`), " in B: its brightest token got "];
  return [...patchName(at), ...place, bold(times(lift(row, top.value))), " an even share in A, ", bold(times(lift(other, far.value))), " in B.", aside(now)];
}

function aboutColumn(now) {
  const { view, column: { values, grid }, token, word, wordView } = now, best = peak(values, grid), width = view.ref_grid?.[1], inside = view.inside(grid, state.frame);
  const what = token !== null ? ["Token ", bold(`${Math.floor(token / width)}, ${token % width}`), " of the reference"] : [wordView.words ? "" : "Token ", bold(wordView.terms[word].text)], where = [best.y, best.x].map((share, i) => Math.floor(share * view.latent[i])).join(", ");
  return [...what, ` was ${token !== null ? "looked at" : "attended to"} most by patch `, hot(where), ", which gave it ", bold(percent(best.value)), " of its attention",
    ...(inside ? ["; ", bold(percent(sum(values.map((value, i) => (inside[i] ? value : 0))) / sum(values))), " of all that it got came from inside the mask."] : ["."]), aside(now)];
}

function aboutWords(now) {
  const { wordView: view, wordSel, at } = now, terms = givenTo(view, wordSel, at), [first, ...rest] = terms.filter((term) => term.kind === "word").sort((a, b) => b.given - a.given);
  if (!first) return [...patchName(at), " has no words to look at.", aside(now)];
  const special = terms.reduce((total, term) => total + (term.kind === "token" ? term.given : 0), 0), name = ({ text }) => (view.words ? text : `token ${text}`);
  return [...patchName(at), " gave most to ", hot(name(first)), ": ", bold(percent(first.given)), " of its attention", ...rest.slice(0, 2).flatMap((term, i) => [i ? " and " : "; then to ", bold(name(term)), ` (${percent(term.given)})`]), ".",
    ...(special > 0.005 ? [" Tokens that are no words got ", bold(percent(special)), "."] : []), aside(now)];
}

/** The command line that gives what is in sight, exactly. */
export function command(now) {
  const { token, word, at } = now, view = word === null ? now.view : now.wordView, sel = word === null ? now.sel : now.wordSel, { facts, views } = { facts: view.run.facts, views: view.run.views };
  const words = ["i2am", "map", quoted(facts.trace.name ?? "run.zarr")], add = (option, value, wanted = true) => { if (wanted) words.push(`--${option}`, quoted(String(value))); };
  if (token !== null) { add("tokens", token + view.specials); add("recipe", "daam"); } else if (word !== null) addWord(view, word, add);
  else if (state.under === "r2g") words.push("--r2g"); else add("at", [...(facts.frames.length > 1 ? [facts.frames[sel.frame]] : []), ...at].join());
  add("group", view.group, view.role !== "text" ? token !== null || word !== null || views.some((each) => each.group !== view.group && each.role === view.role) : word === null || views.some((each) => each.group !== view.group && each.role === "text"));
  add("layers", sel.layer !== null && view.layers[sel.layer].index, sel.layer !== null);
  add("heads", sel.head !== null && headNumber(view, sel), sel.head !== null);
  if (sel.time !== null) { const [first, last] = view.run.stepsOf(sel.time); add("steps", `${first}:${last + 1}`); }
  add("sample", view.sample, view.sample);
  add("branch", view.branch, views.some((each) => each.branch !== view.branch));
  return words.join(" ");
}
function addWord({ terms, words }, word, add) {
  const { text, tokens, kind, probe } = terms[word], before = terms.filter((each, i) => each.kind === "word" && each.text === text && i <= word).length;
  if (words && kind !== "token") { add("word", before > 1 ? `${text}#${before}` : text); add("probe", probe, Boolean(probe)); } else { add("tokens", tokens.join()); add("recipe", "daam"); }
}

export function drawFoot(now, exact) {
  const { facts } = now.view.run, coarse = now.view.layers.find((layer) => layer.row_grid && `${layer.row_grid}` !== `${layer.grid}`), left = [...(facts.plan.dropped ?? []), ...(facts.notes ?? [])];
  setText($("command"), command(now));
  setText($("note"), exact ? "exact: this answer was read from the trace itself." : `Numbers here are from an overview: rows of P within 0.4 % of their peak, maps within 0.001 %. The command is exact.${coarse ? ` Of finer layers one patch in ${coarse.grid.map((n, axis) => Math.round(n / coarse.row_grid[axis])).join(" × ")} has its row; maps are whole.` : ""}`);
  $("left").hidden = !left.length;
  refill($("left").lastElementChild, left.join("\n"), () => left.map((text) => el("li", {}, text)));
}
