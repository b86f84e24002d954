// The prompt as text: point at a word for its map, at a patch and words swell by what it gave them. Tokens without places are shown alike.
import { $, el, fill, percent, setText } from "./dom.js";
import { write } from "./draw.js";
import { lookOf } from "./answers.js";
import { change, page, point, state } from "./state.js";

/** The view whose words are shown beside a view: its own, or the text of the same sample and branch. */
export function wordsBeside(run, view) {
  if (view.terms) return view;
  return run.views.find((each) => each.terms && each.role === "text" && each.sample === view.sample && each.branch === view.branch) ?? null;
}

/** The same selection in the view of the words: its layers may be others. */
export function selectionBeside(view, beside, sel) {
  if (view === beside || sel.layer === null) return sel;
  const layer = beside.layers.findIndex((each) => each.index === view.layers[sel.layer].index);
  return { ...sel, layer: layer < 0 ? null : layer, head: layer < 0 ? null : sel.head };
}

/** How much of its attention a patch gave each word; null for a probe, which the run never saw, and where no row is kept. */
export function givenTo(view, sel, at) {
  const row = view.ready ? lookOf(view, sel, at) : null;
  return view.terms.map(({ tokens, kind }) => (!row || kind === "probe" ? null : tokens.reduce((total, token) => total + (row[token] ?? 0), 0)));
}

/** The words' shares as sizes: 1 for the greatest among real words. */
function sizes(terms, given) {
  const most = Math.max(...terms.map(({ kind }, i) => (kind === "token" && terms.some((each) => each.kind === "word") ? 0 : given[i] ?? 0)), 1e-12);
  return given.map((share) => (share === null ? 0 : Math.min(1, share / most)));
}

export function drawWords(now) {
  const { wordView: view } = now, panel = $("words");
  panel.hidden = !view;
  if (!view) return;
  const list = $("wordlist"), key = `${page.runs.indexOf(now.run)} ${view.number}`;
  setText($("wordstitle"), view.role === "text" ? "Words" : "Tokens without a place");
  if (list.dataset.key !== key) { list.dataset.key = key; list.style.minHeight = ""; fill(list, view.terms.map(wordButton)); }
  const given = givenTo(view, now.wordSel, now.at), size = sizes(view.terms, given);
  [...list.children].forEach((button, i) => {
    button.style.setProperty("--given", size[i].toFixed(3));
    button.setAttribute("aria-pressed", String(now.word === i));
    button.title = given[i] === null ? (view.terms[i].kind === "probe" ? "a probe: the run never saw it" : "") : `${percent(given[i])} of the patch's attention`;
  });
  list.style.minHeight = `${Math.max(parseFloat(list.style.minHeight) || 0, list.offsetHeight)}px`;
  setText($("wordshint"), given.some((each) => each !== null) ? `larger: more of patch ${now.at.join(", ")}'s attention` : "point at one for its map");
}

const wordButton = ({ text, kind }, i) => el("button", { type: "button", className: kind, value: i }, text);

export function wordsPicture(now) {
  const { wordView: view } = now, given = givenTo(view, now.wordSel, now.at), size = sizes(view.terms, given), width = 560, placed = [];
  let x = 0, y = 22;
  view.terms.forEach(({ text, kind }, i) => {
    const points = kind === "token" ? 11 : 15 + 9 * size[i], wide = 0.56 * points * text.length + 10;
    if (x + wide > width) { x = 0; y += 34; }
    placed.push({ text, x, y, points, given: given[i] });
    x += wide;
  });
  return { width, height: y + 24, paint: (pen) => { for (const each of placed) { write(pen, each.text, each.x, each.y, { look: page.look, ink: page.look.ink, size: each.points }); if (each.given !== null) write(pen, percent(each.given), each.x, each.y + 16, { look: page.look, size: 9 }); } } };
}

export function mountWords() {
  const list = $("wordlist"), of = (event) => (event.target.closest("button") ? Number(event.target.closest("button").value) : null);
  list.addEventListener("pointerover", (event) => { const word = of(event); point(word === null ? {} : { word }); });
  list.addEventListener("pointerleave", () => point());
  list.addEventListener("click", (event) => { const word = of(event); if (word !== null) change({ word: state.word === word ? null : word, token: null }); });
}
