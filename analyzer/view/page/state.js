// What is chosen, what is under the pointer, and the address that says so. Everything on the page follows from these.

const CHOICES = { lens: ["heat", "light"], under: ["picture", "r2g", "copy"], tiles: ["look", "copy", "r2g", "g2r"], run: ["a", "b", "diff"], panel: ["stage", "time", "heads", "numbers", "words"], theme: ["light", "dark"] };
/** Fields of the address: the name of the state's field, and how its text is read; null for what it cannot be. */
const whole = (text) => (/^\d{1,9}$/.test(text) ? Number(text) : null);
const READ = {
  at: ["at", (text) => { const at = text.split(",").map(whole); return at.length === 2 && !at.includes(null) ? at : null; }],
  ...Object.fromEntries(Object.entries({ view: "view", frame: "frame", token: "token", word: "word", t: "time", l: "layer", h: "head" }).map(([key, name]) => [key, [name, whole]])),
  ...Object.fromEntries(Object.entries(CHOICES).map(([name, allowed]) => [name, [name, (text) => (allowed.includes(text) ? text : null)]])),
  ...Object.fromEntries(["cells", "own", "outlines"].map((name) => [name, [name, (text) => ({ true: true, false: false })[text] ?? null]])),
  measure: ["measure", String],
};

export const DEFAULTS = {
  view: 0, frame: 0, at: null, token: null, word: null, time: null, layer: null, head: null,
  lens: "heat", under: "picture", tiles: "look", run: "a", measure: null, cells: false, own: false, outlines: true, panel: null, theme: null,
};
export const state = { ...DEFAULTS };
/** What is under the pointer: at, token, word, time, or layer with head. It previews what a click would pin. */
export const hover = {};
/** The runs; of what is in sight the view, the same view of the other run, and why they cannot be compared; and how to draw. */
export const page = { runs: [], view: null, other: null, apart: null, draw: () => {} };

export function change(fields) { Object.assign(state, fields); page.draw(); }

export function point(fields = {}) {
  if (JSON.stringify(hover) === JSON.stringify(fields)) return;
  for (const key of Object.keys(hover)) delete hover[key];
  Object.assign(hover, fields);
  page.draw();
}

/** The selection in sight: what is chosen, and over it what is under the pointer. */
export function selection() {
  const { layer, head } = hover.layer === undefined ? state : hover;
  return { time: hover.time ?? state.time, layer, head, frame: state.frame };
}
export const patch = () => hover.at ?? state.at;
/** The token or the word that is looked into instead of a patch. */
export const token = () => hover.token ?? (hover.at || hover.word !== undefined ? null : state.token);
export const word = () => hover.word ?? (hover.at || hover.token !== undefined ? null : state.word);
export const compares = () => state.run === "diff" && page.other && !page.apart;

/** The fragment of the address: what is as it is by default is left out. */
export function toFragment() {
  const usual = { ...DEFAULTS, at: page.view.first, measure: page.measures?.[0] ?? null };
  return Object.entries(READ).filter(([, [name]]) => state[name] !== null && `${state[name]}` !== `${usual[name]}`).map(([key, [name]]) => `${key}=${typeof state[name] === "string" ? encodeURIComponent(state[name]) : state[name]}`).join("&");
}

/** Takes the state from a fragment; fields that it does not know, and what cannot be, are left out. */
export function fromFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  Object.assign(state, DEFAULTS);
  for (const [key, [name, read]] of Object.entries(READ)) if (given.has(key)) state[name] = read(given.get(key)) ?? DEFAULTS[name];
}

/** Leaves out what the view in sight does not have, so that a link made for another run still opens. */
export function keepPossible(view, words) {
  const heads = view.layers.map((layer) => layer.heads);
  const limits = { frame: view.run.facts.frames.length, token: view.ref_grid ? view.tokens : 0, word: words?.length ?? 0, time: view.run.facts.times, layer: heads.length };
  for (const [name, most] of Object.entries(limits)) if (state[name] >= most) state[name] = DEFAULTS[name];
  if (state.head >= (state.layer === null ? Math.max(...heads) : heads[state.layer])) state.head = null;
  if (!view.colours && state.under === "copy") state.under = "picture";
  if (!view.colours && state.tiles === "copy") state.tiles = "look";
  if (!view.rows && state.tiles !== "g2r") state.tiles = "r2g";
  state.at = sampled(view, state.at && state.at.every((value, i) => value < view.latent[i]) ? state.at : view.first);
}

/** The cell, on the grid of kept patches, that a patch of the latent grid lies in. */
export const cellAt = (view, at) => at.map((value, i) => Math.min(Math.floor((value * view.cells[i]) / view.latent[i]), view.cells[i] - 1));
/** The patch whose row is kept of a cell: rows are of every n-th patch. */
export const patchOf = (view, cell) => cell.map((value, i) => Math.floor((value * view.latent[i]) / view.cells[i]) + Math.floor(Math.floor(view.latent[i] / view.cells[i]) / 2));
export const sampled = (view, at) => patchOf(view, cellAt(view, at));
