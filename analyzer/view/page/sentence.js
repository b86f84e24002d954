// What is seen, in words, and the command line that gives the same answer.
import { $, el, fill, ordinal, percent, quoted, setText, times } from "./dom.js";
import { lift, lookOf, ofOther, peakOf, pointsThere } from "./answers.js";
import { pairs } from "./maths.js";
import { givenTo } from "./words.js";
import { mean, peak } from "./scores.js";
import { compares, page, state } from "./state.js";

const bold = (text) => el("b", {}, text);
const hot = (text) => el("span", { className: "hot" }, text);

/** The selection in words; with rows by head and by time alone, a head in a time group answers for all of time, and this says so. */
function aside({ view, sel, run }) {
  const layer = sel.layer === null ? null : view.layers[sel.layer].short, number = sel.head === null ? null : headNumber(view, sel);
  const who = layer === null ? (number === null ? "all heads" : `head ${number} of every layer`) : number === null ? layer : `${layer}, head ${number}`;
  const blurred = sel.time !== null && sel.head !== null && run.facts.plan.rows === "marginal";
  return el("span", { className: "aside" }, ` (${who}${sel.time === null ? "" : ` in time ${sel.time + 1} of ${run.facts.times}${blurred ? "; this file keeps a head's rows over all of time" : ""}`})`);
}
const headNumber = (view, { layer, head }) => (layer === null ? view.layers.find((each) => each.heads > head) : view.layers[layer]).head_numbers?.[head] ?? head;

export function say(now) {
  const parts = now.column ? aboutColumn(now) : now.word !== null ? ["No row of this word is kept in this file."] : !now.ready && !now.row ? waiting(now) : !now.row ? withoutRow(now) : now.view.terms ? aboutWords(now) : compares() ? aboutBoth(now) : aboutPatch(now);
  const key = parts.map((part) => part.textContent ?? part).join("");
  if ($("sentence").dataset.key === key) return;
  $("sentence").dataset.key = key;
  fill($("sentence"), parts);
}

const waiting = () => ["Loading the rows of attention…"];
const withoutRow = (now) => ["This file keeps no rows of attention of ", bold(now.sel.head === null ? "this view" : "this head"), "; its maps and scores are whole.", aside(now)];

function aboutPatch(now) {
  const { view, sel, at, row, top } = now, strength = lift(row, top.value), who = ["Patch ", bold(at.join(", "))];
  if (strength < 3) return [...who, " looked nowhere in particular: its brightest token got ", bold(times(strength)), " an even share.", ...wholeShare(now), aside(now)];
  const [h, w] = view.ref_grid, near = row.reduce((total, value, k) => total + (Math.hypot((Math.floor(k / w) + 0.5) / h - (top.token - (top.token % w)) / w / h - 0.5 / h, ((k % w) - (top.token % w)) / w) <= 0.125 ? value : 0), 0);
  const all = pairs(view), heads = all.filter(([layer, head]) => pointsThere(view, lookOf(view, { ...sel, layer, head }, at), top)), places = [...new Set(heads.map(([layer]) => view.layers[layer].short))];
  const agree = all.length > 1 ? [" ", bold(`${heads.length} of ${all.length}`), ` heads point there${places.length && places.length < 4 ? `, in ${places.join(" and ")}` : ""}.`] : [];
  return [...who, " looked ", hot("here"), ": ", bold(percent(near / (mean(row) * row.length))), " of its attention lies within an eighth of the side, and its brightest token got ", bold(times(strength)), " an even share.", ...wholeShare(now), ...agree, aside(now)];
}

/** Where other tokens share the softmax: how much of it these got. */
function wholeShare({ view, row }) {
  const whole = mean(row) * row.length;
  return view.layers.every((layer) => layer.keys === view.tokens) && whole < 0.9 ? [" The whole reference got ", bold(percent(whole)), " of its attention; the rest went to other tokens."] : [];
}

function aboutBoth(now) {
  const { sel, at, row, top } = now, [other, far] = ofOther((each) => { const values = lookOf(each, sel, at); return [values, peakOf(each, values)]; });
  if (!far || !top) return aboutPatch(now);
  const apart = Math.hypot(far.y - top.y, far.x - top.x), strengths = [bold(times(lift(row, top.value))), " an even share in A, ", bold(times(lift(other, far.value))), " in B."];
  if (apart < 0.07) return ["Patch ", bold(at.join(", ")), " looked at ", hot("the same place"), " in both runs: ", ...strengths, aside(now)];
  return ["Patch ", bold(at.join(", ")), " looked ", hot(`${percent(apart)} of the side away`), " in B: its brightest token got ", ...strengths, aside(now)];
}

function aboutColumn(now) {
  const { view, column, token } = now, best = peak(column.values, column.grid), width = view.ref_grid?.[1], inside = view.inside(column.grid, state.frame);
  const total = mean(column.values) * column.values.length, within = inside && total > 0 ? column.values.reduce((sum, value, i) => sum + (inside[i] ? value : 0), 0) / total : null;
  const what = token !== null ? ["Token ", bold(`${Math.floor(token / width)}, ${token % width}`), " of the reference was looked at most by patch "] : [bold(now.wordView.terms[now.word].text), now.wordView.role === "text" ? " was attended to most by patch " : " (a token without a place) was looked at most by patch "];
  const where = [best.y, best.x].map((share, i) => Math.floor(share * view.latent[i])).join(", ");
  return [...what, hot(where), ", which gave it ", bold(percent(best.value)), " of its attention", within === null ? "" : "; ", within === null ? "" : bold(percent(within)), within === null ? "." : " of all that it got came from inside the mask.", aside(now)];
}

function aboutWords(now) {
  const { wordView: view, wordSel, at } = now, given = givenTo(view, wordSel, at), real = view.terms.some((each) => each.kind === "word");
  const ranked = view.terms.map((term, i) => ({ ...term, share: given[i] })).filter((term) => term.share !== null && (!real || term.kind !== "token")).sort((a, b) => b.share - a.share);
  const [first, ...rest] = ranked, special = real ? view.terms.reduce((total, term, i) => total + (term.kind === "token" ? given[i] ?? 0 : 0), 0) : 0;
  if (!first) return withoutRow(now);
  const then = rest.slice(0, 2).flatMap(({ text, share }, i) => [i ? " and " : "; then to ", bold(text), ` (${percent(share)})`]);
  return ["Patch ", bold(at.join(", ")), " gave most to ", hot(real ? first.text : `token ${first.text}`), ": ", bold(percent(first.share)), " of its attention", ...then, ".", ...(special > 0.005 ? [" Tokens that are no words got ", bold(percent(special)), "."] : []), aside(now)];
}

/** The command line that gives what is in sight, exactly. */
export function command(now) {
  const { run, view, sel } = now, video = run.facts.frames.length > 1, words = ["i2am", "map", quoted(run.facts.trace.name ?? "run.zarr")];
  if (now.token !== null) words.push("--tokens", String(now.token + view.specials), "--recipe", "daam");
  else if (now.word !== null) words.push(...wordOption(now));
  else if (state.under === "r2g") words.push("--r2g");
  else words.push("--at", [...(video ? [run.facts.frames[sel.frame]] : []), ...now.at].join());
  const [from, beside] = now.word !== null ? [now.wordSel, now.wordView] : [sel, view];
  if (beside.role !== "text" && (now.token !== null || run.facts.views.some((each) => each.group !== beside.group && each.role === beside.role))) words.push("--group", quoted(beside.group));
  if (from.layer !== null) words.push("--layers", String(beside.layers[from.layer].index));
  if (from.head !== null) words.push("--heads", String(headNumber(beside, from)));
  if (from.time !== null) { const [first, last] = run.stepsOf(from.time); words.push("--steps", `${first}:${last + 1}`); }
  if (beside.sample) words.push("--sample", String(beside.sample));
  if (run.facts.views.some((each) => each.branch !== beside.branch)) words.push("--branch", quoted(beside.branch));
  return words.join(" ");
}

function wordOption({ wordView: view, word }) {
  const { text, tokens, kind, probe } = view.terms[word];
  if (kind === "probe") return ["--word", quoted(text), ...(probe ? ["--probe", quoted(probe)] : [])];
  if (kind === "token" || view.role !== "text") return ["--tokens", tokens.join(), "--recipe", "daam", ...(view.role === "text" ? [] : ["--group", quoted(view.group)])];
  const same = view.terms.filter((each, i) => each.kind === "word" && each.text === text && i <= word).length;
  return ["--word", quoted(same > 1 ? `${text}#${same}` : text)];
}

export function drawFoot(now, exact) {
  const { run, view } = now, rows = view.layers.find((layer) => layer.row_grid && `${layer.row_grid}` !== `${layer.grid}`);
  setText($("command"), command(now));
  const sampled = rows ? ` Of finer layers rows are of every ${ordinal(Math.round(rows.grid[1] / rows.row_grid[1]))} patch each way; maps are whole.` : "";
  setText($("note"), exact ? "exact: this answer was read from the trace itself." : `Numbers here are from an overview: rows of P within 0.4 % of their peak, maps within 0.001 %. The command is exact.${sampled}`);
  const left = [...(run.facts.plan.dropped ?? []), ...(run.facts.notes ?? [])], node = $("left"), key = left.join("\n");
  node.hidden = !left.length;
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  setText(node.firstElementChild, `What to know about this file (${left.length})`);
  fill(node.lastElementChild, left.map((text) => el("li", {}, text)));
}

