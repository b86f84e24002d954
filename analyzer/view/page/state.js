// What is chosen, what is under the pointer, and the address that says so. Everything on the page follows from these.

const CHOICES = { lens: ["heat", "light"], under: ["picture", "r2g", "copy"], tiles: ["look", "copy", "r2g", "g2r"], run: ["a", "b", "diff"], panel: ["stage", "time", "heads", "numbers", "words"], theme: ["light", "dark"], colours: ["mako", "viridis", "cividis", "batlow"] };
const NUMBERS = { view: "view", frame: "frame", token: "token", word: "word", t: "time", l: "layer", h: "head" };
const SWITCHES = { cells: "cells", own: "own", outlines: "outlines" };

export const DEFAULTS = {
  view: 0, frame: 0, at: null, token: null, word: null, time: null, layer: null, head: null,
  lens: "heat", under: "picture", tiles: "look", run: "a", measure: null, cells: false, own: false, outlines: true, panel: null, theme: null, colours: "mako",
};

export const state = { ...DEFAULTS };
/** What is under the pointer: at, token, word, time, or layer with head. It previews what a click would pin. */
export const hover = {};
/** Runs, the run and view in sight, the page's colours, and how to draw anew. */
export const page = { runs: [], names: ["A", "B"], run: null, view: null, look: null, first: null, draw: () => {} };

export function change(fields) { Object.assign(state, fields); page.draw(); }

export function point(fields = {}) {
  const known = JSON.stringify(hover);
  for (const key of Object.keys(hover)) delete hover[key];
  Object.assign(hover, fields);
  if (JSON.stringify(hover) !== known) page.draw();
}

/** The selection in sight: what is chosen, and over it what is under the pointer. */
export function selection() {
  const tile = hover.layer !== undefined;
  return { time: hover.time ?? state.time, layer: tile ? hover.layer : state.layer, head: tile ? hover.head : state.head, frame: state.frame };
}

/** The patch in sight. */
export const patch = () => hover.at ?? state.at;
/** The token of the reference, or the word, that is looked into instead of a patch. */
export const token = () => hover.token ?? (hover.at || hover.word !== undefined ? null : state.token);
export const word = () => hover.word ?? (hover.at || hover.token !== undefined ? null : state.word);

export const compares = () => state.run === "diff" && page.runs.length > 1 && !page.apart;

/** The fragment of the address: defaults are left out. */
export function toFragment() {
  const parts = [];
  if (state.at && `${state.at}` !== `${page.first}`) parts.push(`at=${state.at}`);
  for (const [key, name] of Object.entries(NUMBERS)) if (state[name] !== DEFAULTS[name]) parts.push(`${key}=${state[name]}`);
  for (const name of Object.keys(CHOICES)) if (state[name] !== DEFAULTS[name]) parts.push(`${name}=${state[name]}`);
  for (const [key, name] of Object.entries(SWITCHES)) if (state[name] !== DEFAULTS[name]) parts.push(`${key}=${Number(state[name])}`);
  if (state.measure && state.measure !== page.measures?.[0]) parts.push(`measure=${encodeURIComponent(state.measure)}`);
  return parts.join("&");
}

/** Takes the state from a fragment; what it does not know, or the run does not have, is left as it is by default. */
export function fromFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, "")), found = { ...DEFAULTS };
  const whole = (text) => (/^\d{1,9}$/.test(text ?? "") ? Number(text) : null);
  for (const [key, name] of Object.entries(NUMBERS)) found[name] = whole(given.get(key)) ?? DEFAULTS[name];
  for (const [name, allowed] of Object.entries(CHOICES)) if (allowed.includes(given.get(name))) found[name] = given.get(name);
  for (const [key, name] of Object.entries(SWITCHES)) if (given.has(key)) found[name] = given.get(key) === "1";
  const at = (given.get("at") ?? "").split(",").map(whole);
  found.at = at.length === 2 && at.every((value) => value !== null) ? at : null;
  found.measure = given.get("measure");
  Object.assign(state, found);
}

/** Leaves out what the view in sight does not have, so that a link made for another run still opens. */
export function keepPossible(run, view) {
  const below = (name, most) => { if (state[name] !== null && state[name] >= most) state[name] = DEFAULTS[name]; };
  below("frame", run.facts.frames.length);
  below("token", view.ref_grid ? view.tokens : 0);
  below("word", view.terms?.length ?? 0);
  below("time", run.facts.times);
  below("layer", view.layers.length);
  below("head", state.layer === null ? Math.max(...view.layers.map((layer) => layer.heads)) : view.layers[state.layer].heads);
  if (!view.colours && state.under === "copy") state.under = "picture";
  if (page.runs.length < 2) state.run = "a";
  if (!state.at || state.at.some((value, i) => value >= view.latent[i])) state.at = page.first;
  state.at = sampled(view, state.at);
}

/** The patch whose row is kept that lies nearest: rows are of every n-th patch. */
export function sampled(view, at) {
  return at.map((value, i) => {
    const every = Math.floor(view.latent[i] / view.cells[i]) || 1, cell = Math.min(Math.floor((value * view.cells[i]) / view.latent[i]), view.cells[i] - 1);
    return Math.min(Math.floor((cell * view.latent[i]) / view.cells[i]) + Math.floor(every / 2), view.latent[i] - 1);
  });
}

/** The cell, on the grid of kept patches, that a patch of the latent grid lies in. */
export const cellAt = (view, at) => at.map((value, i) => Math.min(Math.floor((value * view.cells[i]) / view.latent[i]), view.cells[i] - 1));
