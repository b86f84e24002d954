// The keyboard: every state of the page can be reached from here or by native controls.
import { $, el, fill } from "./dom.js";
import { cellAt, change, point, page, sampled, state } from "./state.js";
import { enlarge, panelInUse } from "./save.js";
import { play } from "./time.js";
import { COLOURS } from "./draw.js";

const HELP = [
  ["← → ↑ ↓", "move the patch; on the reference, the token"], ["Enter", "on the reference: who looked where the patch looked"], ["J K", "next, previous layer"], ["L H", "next, previous head"], ["0", "all layers and heads"],
  ["[ ]", "earlier, later"], ["T", "all of time"], ["Space", "play"], ["C R P", "copy, R2G, picture"], ["1 2 3 4", "tiles: look, copy, R2G, G2R"], ["O", "heat or light"], ["S", "smooth or cells"], ["N", "each tile on its own scale"],
  ["M", "outlines of masks"], ["B", "the other run"], ["X", "difference of the runs"], ["F", "one panel full size"], ["D", "dark or light"], ["Esc", "let go"],
];
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** The next choice after one of `count`, with all (null) between the last and the first. */
const cycle = (value, by, count) => (value === null ? (by > 0 ? 0 : count - 1) : value + by < 0 || value + by >= count ? null : value + by);
const other = (value, a, b) => (value === a ? b : a);
const headsNow = () => (state.layer === null ? Math.max(...page.view.layers.map((layer) => layer.heads)) : page.view.layers[state.layer].heads);
const toLayer = (by) => { const layer = cycle(state.layer, by, page.view.layers.length); change({ layer, head: layer !== null && state.head >= page.view.layers[layer].heads ? null : state.head }); };

export const switchTheme = () => change({ theme: other(document.documentElement.dataset.theme, "dark", "light") });
const letGo = () => (state.panel ? change({ panel: null }) : change({ token: null, word: null, layer: null, head: null, time: null }));

const ACTS = {
  j: () => toLayer(1), k: () => toLayer(-1), l: () => change({ head: cycle(state.head, 1, headsNow()) }), h: () => change({ head: cycle(state.head, -1, headsNow()) }), 0: () => change({ layer: null, head: null }),
  "]": () => change({ time: cycle(state.time, 1, page.run.facts.times) }), "[": () => change({ time: cycle(state.time, -1, page.run.facts.times) }), t: () => change({ time: null }), " ": play,
  c: () => { if (page.view.colours) change({ under: other(state.under, "copy", "picture") }); }, r: () => change({ under: other(state.under, "r2g", "picture") }), p: () => change({ under: "picture" }),
  1: () => change({ tiles: "look" }), 2: () => { if (page.view.colours) change({ tiles: "copy" }); }, 3: () => change({ tiles: "r2g" }), 4: () => change({ tiles: "g2r" }),
  o: () => change({ lens: other(state.lens, "heat", "light") }), s: () => change({ cells: !state.cells }), n: () => change({ own: !state.own }), m: () => change({ outlines: !state.outlines }),
  b: () => { if (page.runs.length > 1) change({ run: other(state.run, "a", "b") }); }, x: () => { if (page.runs.length > 1 && !page.apart) change({ run: other(state.run, "diff", "a") }); },
  f: () => enlarge(state.panel ?? panelInUse()), d: switchTheme, "?": () => $("help").showModal(), Escape: letGo,
};

function move([down, across]) {
  const { view } = page, step = ([y, x], [h, w]) => [Math.min(h - 1, Math.max(0, y + down)), Math.min(w - 1, Math.max(0, x + across))];
  point();
  if (document.activeElement === $("ref") && state.token !== null) {
    const [y, x] = step([Math.floor(state.token / view.ref_grid[1]), state.token % view.ref_grid[1]], view.ref_grid);
    return change({ token: y * view.ref_grid[1] + x });
  }
  const cell = step(cellAt(view, state.at), view.cells);
  change({ at: sampled(view, cell.map((value, i) => Math.floor(((value + 0.5) * view.latent[i]) / view.cells[i]))), token: null, word: null });
}

export function mountKeys(topToken) {
  addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.metaKey || event.ctrlKey || event.altKey || target.closest?.("dialog") || target.matches?.("select, textarea, input:not([type=radio])")) return;
    const arrow = MOVES[key], pressing = target.closest?.("button, summary, label, input") && (key === " " || key === "Enter");
    if (pressing || (arrow && target.matches?.("input[type=radio]"))) return;
    if (target.id === "chart" && (key === "ArrowLeft" || key === "ArrowRight")) ACTS[key === "ArrowLeft" ? "[" : "]"]();
    else if (target.id === "ref" && key === "Enter") { if (page.view.ref_grid) change({ token: state.token === null ? topToken() : null, word: null }); }
    else if (arrow) move(arrow);
    else if (ACTS[key] ?? ACTS[key.toLowerCase()]) (ACTS[key] ?? ACTS[key.toLowerCase()])();
    else return;
    event.preventDefault();
  });
  mountHelp();
}

function mountHelp() {
  const colours = el("select", { id: "colours", onchange: (event) => change({ colours: event.target.value }) }, COLOURS.map((name) => el("option", { value: name }, name)));
  fill($("help").querySelector("dl"), HELP.flatMap(([keys, says]) => [el("dt", {}, keys.split(" ").flatMap((key) => [el("kbd", {}, key), " "])), el("dd", {}, says)]), el("dt", {}, el("label", { htmlFor: "colours" }, "Colours")), el("dd", {}, colours));
  $("keys").addEventListener("click", () => { colours.value = state.colours; $("help").showModal(); });
  for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
