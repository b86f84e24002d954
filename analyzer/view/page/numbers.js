// "Does it hold up": scores of the choice among those of all heads, and the same numbers as a table.
import { $, decimal, el, fill, percent, setText } from "./dom.js";
import { write } from "./draw.js";
import { headScores, knownScores, ofOther, scoresOf } from "./answers.js";
import { mean } from "./scores.js";
import { page } from "./state.js";

/** Title, note, range and how it is written, of each score that the page knows by name. */
const SCORES = {
  imacs_g: ["R2G agrees with the mask", "IMACS, −3 to 1", [-3, 1], decimal],
  imacs_r: ["G2R agrees with its mask", "IMACS, −3 to 1", [-3, 1], decimal],
  inside: ["R2G inside the mask", "", [0, 1], percent],
  leak: ["Leaks off the reference's mask", "of the masked patches' attention", [0, 1], percent],
  copy: ["Copied colours match the painted", "correlation; our own measure", [-1, 1], decimal],
  evenness: ["Rows are even", "1: looked nowhere in particular", [0, 1], decimal],
};
const WIDTH = 130;
const share = (value, [low, high]) => Math.min(Math.max((value - low) / (high - low), 0), 1);

/** Scores of which any head, or the choice, has a number: what is not known has no line. */
function shownScores(now) {
  const all = headScores(now.view), chosen = scoresOf(now.view, now.sel), whole = knownScores(now.view, { time: null, layer: null, head: null });
  return Object.keys(SCORES).filter((key) => [chosen, whole, ...all].some((each) => each && Number.isFinite(each[key])));
}

function noteOf(key, view) {
  if (key !== "inside" || !view.images.mask) return SCORES[key][1];
  return `the mask is ${percent(mean(view.inside(view.latent).map(Number)))} of the picture`;
}

const NS = "http://www.w3.org/2000/svg";
function svg(name, attributes) { const node = document.createElementNS(NS, name); for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value); return node; }

/** A line with a tick for every head. */
function drawTicks(node, key, all) {
  const range = SCORES[key][2], x = (value) => (WIDTH * share(value, range)).toFixed(1), marks = all.map((each) => each[key]).filter(Number.isFinite).map((value) => `M${x(value)} 4V10`).join("");
  node.replaceChildren(svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: 7, y2: 7 }), svg("path", { class: "tick", d: marks || "M0 0" }),
    ...(range[0] < 0 ? [svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 1, y2: 13 })] : []), svg("circle", { class: "then", r: 4, cy: 7 }), svg("circle", { class: "now", r: 4.5, cy: 7 }));
}

export function drawNumbers(now) {
  const { view } = now, keys = shownScores(now), body = $("scores"), name = `${page.runs.indexOf(now.run)} ${view.number} ${keys}`;
  $("numbers").hidden = !keys.length;
  if (body.dataset.key !== name) {
    body.dataset.key = name;
    fill(body, keys.map((key) => {
      const ticks = svg("svg", { viewBox: `0 0 ${WIDTH} 14`, "aria-hidden": "true" });
      drawTicks(ticks, key, headScores(view));
      return el("tr", {}, el("th", { scope: "row" }, SCORES[key][0], el("small", {}, noteOf(key, view))), el("td", { className: "ticks" }, ticks), el("td", { className: "num" }));
    }));
    if ($("tabledetails").open) drawTable(view);
  }
  const chosen = scoresOf(view, now.sel), other = page.runs.length > 1 && !page.apart ? ofOther((each) => scoresOf(each, now.sel)) : null;
  keys.forEach((key, i) => {
    const row = body.rows[i], set = (name, value) => { const dot = row.querySelector(name), known = Number.isFinite(value); dot.setAttribute("visibility", known ? "visible" : "hidden"); if (known) dot.setAttribute("cx", WIDTH * share(value, SCORES[key][2])); };
    setText(row.cells[2], chosen ? (Number.isFinite(chosen[key]) ? SCORES[key][3](chosen[key]) : "–") : "…");
    set(".now", chosen?.[key]);
    set(".then", other?.[key]);
  });
}

/** Scores of every head, layer and of all, as a table. */
function drawTable(view) {
  const keys = Object.keys(SCORES).filter((key) => headScores(view).some((each) => Number.isFinite(each[key]))), cell = (value, key) => el("td", {}, Number.isFinite(value) ? SCORES[key][3](value) : "–");
  const line = (layer, head, scores) => el("tr", {}, el("th", { scope: "row" }, layer), el("td", {}, head), keys.map((key) => cell(scores[key], key)));
  fill($("table"), el("table", {}, el("thead", {}, el("tr", {}, ["layer", "head", ...keys].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, tableRows(view).map((row) => line(...row)))));
}

const rowsOf = (view, layer) => [[view.layers[layer].short, "mean", knownScores(view, { time: null, layer, head: null })], ...headScores(view).filter((each) => each.layer === layer).map((each) => [view.layers[layer].short, String(view.layers[layer].head_numbers?.[each.head] ?? each.head), each])];
/** Layer, head and scores, of all and then of each layer and its heads. */
export const tableRows = (view) => (view.scores ? [["all", "mean", knownScores(view, { time: null, layer: null, head: null })], ...view.layers.flatMap((_, l) => rowsOf(view, l))] : []);

/** The table for a spreadsheet. */
export function tableText(view) {
  const keys = page.run.facts.scores, field = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = tableRows(view).map(([layer, head, scores]) => [field(layer), head, ...keys.map((key) => (Number.isFinite(scores[key]) ? scores[key] : ""))].join());
  return [["layer", "head", ...keys].join(), ...lines].join("\n") + "\n";
}

export function numbersPicture(now) {
  const keys = shownScores(now), all = headScores(now.view), chosen = scoresOf(now.view, now.sel, true), width = 440;
  return { width, height: 34 * keys.length + 4, paint: (pen) => keys.forEach((key, i) => {
    const { look } = page, y = 34 * i + 14, left = 250, [title, , range, text] = SCORES[key];
    write(pen, title, 0, y - 4, { look, ink: look.ink, size: 12 }); write(pen, noteOf(key, now.view), 0, y + 11, { look, size: 10.5 });
    pen.fillStyle = look.line; pen.fillRect(left, y, WIDTH, 1);
    for (const each of all) if (Number.isFinite(each[key])) { pen.fillStyle = look.soft; pen.fillRect(left + WIDTH * share(each[key], range) - 0.5, y - 3, 1, 6); }
    if (!Number.isFinite(chosen[key])) return;
    pen.fillStyle = look.mark; pen.beginPath(); pen.arc(left + WIDTH * share(chosen[key], range), y, 4.5, 0, 2 * Math.PI); pen.fill();
    write(pen, text(chosen[key]), width, y, { look, ink: look.ink, size: 12, bold: true, align: "right" });
  }) };
}

export function mountNumbers() {
  $("tabledetails").addEventListener("toggle", () => { if ($("tabledetails").open) drawTable(page.view); });
  $("trust").addEventListener("click", () => $("about").showModal());
}
