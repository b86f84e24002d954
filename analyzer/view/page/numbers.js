// "Does it hold up": scores of the choice among those of all heads, and the same numbers as a table.
import { $, decimal, el, on, percent, refill, setText } from "./dom.js";
import { block, dot, look, write } from "./draw.js";
import { headScores, knownScores, scoresOf } from "./answers.js";
import { known, mean } from "./lists.js";
import { page } from "./state.js";

/** Title, note, range and how it is written, of each score that the page knows by name. */
const SCORES = {
  imacs_g: ["R2G agrees with the mask", "IMACS, −3 to 1", [-3, 1], decimal],
  imacs_r: ["G2R agrees with its mask", "IMACS, −3 to 1", [-3, 1], decimal],
  inside: ["R2G inside the mask", "share of the whole", [0, 1], percent],
  leak: ["Leaks off the reference's mask", "of the masked patches' attention", [0, 1], percent],
  copy: ["Copied colours match the painted", "correlation; our own measure", [-1, 1], decimal],
  evenness: ["Rows are even", "1: looked nowhere in particular", [0, 1], decimal],
};
const WIDTH = 130, LAYER = { time: null, layer: null, head: null };
const along = (value, [low, high]) => WIDTH * Math.min(Math.max((value - low) / (high - low), 0), 1);
const written = (key, value) => (known(value) ? SCORES[key][3](value) : "–");

/** Scores of which any head, or the choice, has a number: what is not known has no line. */
function shownScores({ view, sel }) {
  const all = [...headScores(view), scoresOf(view, sel), knownScores(view, LAYER)];
  return Object.keys(SCORES).filter((key) => all.some((each) => known(each?.[key])));
}
const noteOf = (key, view) => (key === "inside" && view.inside(view.latent) ? `the mask is ${percent(mean(view.inside(view.latent).map(Number)))} of the picture` : SCORES[key][1]);

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A score's row: its name, a line with a tick for every head, and the number. */
function scoreRow(key, view) {
  const range = SCORES[key][2], marks = headScores(view).map((each) => each[key]).filter(known).map((value) => `M${along(value, range).toFixed(1)} 4V10`);
  const ticks = svg("svg", { viewBox: `0 0 ${WIDTH} 14`, "aria-hidden": "true" }, svg("path", { class: "axis", d: `M0 7H${WIDTH}${range[0] < 0 ? `M${along(0, range)} 1V13` : ""}` }),
    svg("path", { class: "tick", d: marks.join("") || "M0 0" }), svg("circle", { class: "then", r: 4, cy: 7 }), svg("circle", { class: "now", r: 4.5, cy: 7 }));
  return el("tr", {}, el("th", { scope: "row" }, SCORES[key][0], el("small", {}, noteOf(key, view))), el("td", { className: "ticks" }, ticks), el("td", { className: "num" }));
}

export function drawNumbers(now) {
  const { view, sel } = now, keys = now.ready ? shownScores(now) : [], name = `${view.id} ${keys}`, other = page.other && !page.apart && now.ready ? scoresOf(page.other, sel) : null, chosen = scoresOf(view, sel);
  $("numbers").hidden = !keys.length;
  refill($("scores"), name, () => keys.map((key) => scoreRow(key, view)));
  if ($("tabledetails").open) refill($("table"), name, () => scoreTable(view));
  setText($("tickhint"), `each tick is a head${other ? "; ring: the other run" : ""}`);
  keys.forEach((key, i) => {
    const row = $("scores").rows[i];
    setText(row.cells[2], chosen ? written(key, chosen[key]) : "…");
    for (const [dot, value] of [[".now", chosen?.[key]], [".then", other?.[key]]]) {
      const node = row.querySelector(dot);
      node.setAttribute("visibility", known(value) ? "visible" : "hidden");
      if (known(value)) node.setAttribute("cx", along(value, SCORES[key][2]));
    }
  });
}

/** Scores of all, of each layer and of each of its heads. */
function scoreTable(view) {
  const heads = headScores(view), keys = Object.keys(SCORES).filter((key) => heads.some((each) => known(each[key])));
  const line = (layer, head, scores) => el("tr", {}, el("th", { scope: "row" }, layer), el("td", {}, String(head)), keys.map((key) => el("td", {}, written(key, scores[key]))));
  const rows = view.scores ? [line("all", "mean", knownScores(view, LAYER)), ...view.layers.flatMap(({ short, head_numbers: numbers }, l) => [line(short, "mean", knownScores(view, { ...LAYER, layer: l })), ...heads.filter((each) => each.layer === l).map((each) => line(short, numbers?.[each.head] ?? each.head, each))])] : [];
  return el("table", {}, el("thead", {}, el("tr", {}, ["layer", "head", ...keys].map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows));
}

export function numbersPicture(now) {
  const keys = shownScores(now), chosen = scoresOf(now.view, now.sel, true), width = 440, left = 250;
  return { width, height: 34 * keys.length, paint: (pen) => keys.forEach((key, i) => {
    const y = 34 * i + 14, [title, , range] = SCORES[key];
    write(pen, title, 0, y - 4, { ink: look.ink, size: 12 }); write(pen, noteOf(key, now.view), 0, y + 11, { size: 10.5 });
    write(pen, written(key, chosen[key]), width, y, { ink: look.ink, size: 12, bold: true, align: "right" });
    block(pen, look.line, left, y, WIDTH, 1);
    for (const each of headScores(now.view)) if (known(each[key])) block(pen, look.soft, left + along(each[key], range) - 0.5, y - 3, 1, 6);
    if (known(chosen[key])) dot(pen, left + along(chosen[key], range), y, 4.5, look.mark);
  }) };
}

export function mountNumbers() {
  on("tabledetails", { toggle: page.draw });
  on("trust", { click: () => $("about").showModal() });
}
