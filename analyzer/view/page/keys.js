// The keyboard: every state of the page can be reached from here or by native controls.
import { $, el, on } from "./dom.js";
import { cellAt, change, patchOf, point, page, state } from "./state.js";
import { enlarge, panelInUse } from "./save.js";
import { play } from "./time.js";

const HELP = {
  "← → ↑ ↓": "move the patch; on the reference, the token", Enter: "on the reference: who looked where the patch looked", "J K": "next, previous layer", "L H": "next, previous head", "0 ": "all layers and heads", "[ ]": "earlier, later", T: "all of time", Space: "play",
  "C R P": "copy, R2G, picture", "1 2 3 4": "tiles: look, copy, R2G, G2R", O: "heat or light", S: "smooth or cells", N: "each tile on its own scale", M: "outlines of masks", B: "the other run", X: "difference of the runs", F: "one panel full size", D: "dark or light", Esc: "let go",
};
const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** The next choice of `count`, with all (null) between the last and the first. */
const cycle = (value, by, count) => { const next = value === null ? (by > 0 ? 0 : count - 1) : value + by; return next < 0 || next >= count ? null : next; };
const toggle = (name, a, b) => () => change({ [name]: state[name] === a ? b : a });
const step = (name, by, count) => () => change({ [name]: cycle(state[name], by, count()) });
const layers = () => page.view.layers.length, groups = () => page.view.run.facts.times;
const heads = () => (state.layer === null ? Math.max(...page.view.layers.map((layer) => layer.heads)) : page.view.layers[state.layer].heads);
const tiles = (name) => () => change({ tiles: name });

export const switchTheme = () => change({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" });

const ACTS = {
  j: step("layer", 1, layers), k: step("layer", -1, layers), l: step("head", 1, heads), h: step("head", -1, heads), 0: () => change({ layer: null, head: null }), "]": step("time", 1, groups), "[": step("time", -1, groups), t: () => change({ time: null }), " ": play,
  c: toggle("under", "copy", "picture"), r: toggle("under", "r2g", "picture"), p: () => change({ under: "picture" }), 1: tiles("look"), 2: tiles("copy"), 3: tiles("r2g"), 4: tiles("g2r"),
  o: toggle("lens", "heat", "light"), s: toggle("cells", true, false), n: toggle("own", true, false), m: toggle("outlines", true, false), b: toggle("run", "a", "b"), x: toggle("run", "diff", "a"),
  f: () => enlarge(state.panel ?? panelInUse()), d: switchTheme, "?": () => $("help").showModal(), escape: () => change(state.panel ? { panel: null } : { token: null, word: null, layer: null, head: null, time: null }),
};

/** Moves the token where the reference has the focus and one is chosen, else the patch. */
function move(by) {
  const { view } = page, onToken = document.activeElement === $("ref") && state.token !== null, grid = onToken ? view.ref_grid : view.cells;
  const from = onToken ? [Math.floor(state.token / grid[1]), state.token % grid[1]] : cellAt(view, state.at), to = from.map((value, i) => Math.min(grid[i] - 1, Math.max(0, value + by[i])));
  point();
  change(onToken ? { token: to[0] * grid[1] + to[1] } : { at: patchOf(view, to), token: null, word: null });
}

export function mountKeys(topToken) {
  addEventListener("keydown", (e) => {
    const { target, key } = e, arrow = MOVES[key], act = ACTS[key.toLowerCase()];
    const own = target.closest?.("dialog") || target.matches?.("select, input:not([type=radio])") || (arrow && target.matches?.("input")) || ((key === " " || key === "Enter") && target.closest?.("button, summary, input"));
    if (own || e.metaKey || e.ctrlKey || e.altKey) return;
    if (target.id === "chart" && arrow?.[1]) ACTS[arrow[1] < 0 ? "[" : "]"]();
    else if (target.id === "ref" && key === "Enter" && page.view.ref_grid) change({ token: state.token === null ? topToken() : null, word: null });
    else if (arrow) move(arrow);
    else if (act) act();
    else return;
    e.preventDefault();
  });
  $("help").querySelector("dl").append(...Object.entries(HELP).flatMap(([keys, says]) => [el("dt", {}, keys.trim().split(" ").map((key) => el("kbd", {}, key))), el("dd", {}, says)]));
  on("keys", { click: ACTS["?"] });
  for (const dialog of document.querySelectorAll("dialog")) dialog.addEventListener("click", (e) => { if (e.target === dialog) dialog.close(); });
}