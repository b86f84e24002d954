// Asks the server of `i2am view` for what rests under the pointer; without a server nothing is ever asked.
import { $ } from "./dom.js";
import { columnName, lookName } from "./answers.js";
import { headNumber } from "./sentence.js";
import { page, state } from "./state.js";

const REST = 150;
let timer = null, asking = null;

const nameOf = ({ sel, at, token }) => (token !== null ? columnName(sel, token) : lookName(sel, at));

/** Whether what is in sight was read from the trace itself. */
export const isExact = (now) => Boolean(now.view.kept(`exact ${nameOf(now)}`));

/** Asks after a moment of rest; a newer question ends an older one. */
export function askWhenResting(now) {
  clearTimeout(timer);
  if ($("overview")?.dataset.src && now.ready && now.word === null && state.run !== "diff" && !isExact(now)) timer = setTimeout(() => ask(now), REST);
}

function question({ view, sel, at, token }) {
  const { frames } = view.run.facts, fields = { run: page.runs.indexOf(view.run) ? "b" : "a", view: view.number };
  if (token !== null) fields.token = token + view.specials; else fields.at = [...(frames.length > 1 ? [frames[sel.frame]] : []), ...at].join();
  if (sel.layer !== null) fields.layers = view.layers[sel.layer].index;
  if (sel.head !== null) fields.heads = headNumber(view, sel);
  if (sel.time !== null) fields.time = sel.time;
  return `exact?${new URLSearchParams(fields)}`;
}

async function ask(now) {
  const { view, token, sel } = now, size = token !== null ? view.latent[0] * view.latent[1] : view.tokens, name = nameOf(now);
  asking?.abort();
  asking = new AbortController();
  try {
    const response = await fetch(question(now), { signal: asking.signal });
    if (!response.ok) return;
    const { shape, steps } = JSON.parse(response.headers.get("X-I2AM")), sums = new Float32Array(await response.arrayBuffer()), from = shape.length > 2 ? sel.frame * size : 0;
    if (sums.length < from + size) return;
    const values = Float64Array.from(sums.subarray(from, from + size), (value) => value / steps);
    view.put(name, token !== null ? { values, grid: view.latent } : values);
    view.put(`exact ${name}`, true);
    page.draw();
  } catch (error) {
    if (error.name !== "AbortError") console.warn(`no exact answer: ${error.message}`);
  }
}
