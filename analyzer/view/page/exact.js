// Asks the server of `i2am view` for what rests under the pointer; without a server nothing is ever asked.
import { $ } from "./dom.js";
import { columnName, lookName, putExact } from "./answers.js";
import { page, state } from "./state.js";

const REST = 150;
const answered = new Set();
let timer = null, asking = null;

const served = () => Boolean($("overview")?.dataset.src);
const which = (now) => (now.token !== null ? columnName(now.sel, now.token) : lookName(now.sel, now.at));
const keyOf = (now) => `${page.runs.indexOf(now.run)} ${now.view.number} ${which(now)}`;

/** Whether what is in sight was read from the trace itself. */
export const isExact = (now) => answered.has(keyOf(now));

/** Asks after a moment of rest; a newer question ends an older one. */
export function askWhenResting(now) {
  clearTimeout(timer);
  if (!served() || !now.ready || now.word !== null || state.run === "diff" || isExact(now)) return;
  timer = setTimeout(() => ask(now), REST);
}

function question({ run, view, sel, at, token }) {
  const fields = { run: page.runs.indexOf(run) ? "b" : "a", view: view.number };
  if (token !== null) fields.token = token + view.specials;
  else fields.at = [...(run.facts.frames.length > 1 ? [run.facts.frames[sel.frame]] : []), ...at].join();
  if (sel.layer !== null) fields.layers = view.layers[sel.layer].index;
  if (sel.head !== null) fields.heads = (sel.layer === null ? view.layers.find((layer) => layer.heads > sel.head) : view.layers[sel.layer]).head_numbers?.[sel.head] ?? sel.head;
  if (sel.time !== null) fields.time = sel.time;
  return `exact?${new URLSearchParams(fields)}`;
}

async function ask(now) {
  asking?.abort();
  asking = new AbortController();
  try {
    const response = await fetch(question(now), { signal: asking.signal });
    if (!response.ok) return;
    const facts = JSON.parse(response.headers.get("X-I2AM")), sums = new Float32Array(await response.arrayBuffer()), [h, w] = now.view.latent, size = now.token !== null ? h * w : now.view.tokens;
    if (facts.shape.reduce((a, b) => a * b, 1) !== sums.length || sums.length < size) return;
    const first = now.token !== null && facts.shape.length === 3 ? now.sel.frame * size : 0, values = Float64Array.from(sums.subarray(first, first + size), (value) => value / facts.steps);
    putExact(which(now), now.view, now.token !== null ? { values, grid: now.view.latent } : values, page.runs.indexOf(now.run));
    answered.add(keyOf(now));
    page.draw();
  } catch (error) {
    if (error.name !== "AbortError") console.warn(`no exact answer: ${error.message}`);
  }
}
