// The prompt as text: point at a word for its map, at a patch and words swell by what it gave them. Tokens without places are shown alike.
import { $, el, on, percent, refill, setText } from "./dom.js";
import { look, write } from "./draw.js";
import { lookOf } from "./answers.js";
import { change, page, point, state } from "./state.js";

/** The view whose words are shown beside a view: its own, or the text of the same sample and branch. */
export const wordsBeside = (view) => (view.terms ? view : view.run.views.find((each) => each.words && each.role === "text" && each.sample === view.sample && each.branch === view.branch) ?? null);

/** The same selection in the view of the words, whose layers may be others. */
export function selectionBeside(view, beside, sel) {
  if (view === beside || sel.layer === null) return sel;
  const layer = beside.layers.findIndex((each) => each.index === view.layers[sel.layer].index);
  return layer < 0 ? { ...sel, layer: null, head: null } : { ...sel, layer };
}

/** Each word with how much of its attention a patch gave it, and its size beside the greatest; null for a probe, which the run never saw. */
export function givenTo(view, sel, at) {
  const row = view.ready ? lookOf(view, sel, at) : null, terms = view.terms.map((term) => ({ ...term, given: !row || term.kind === "probe" ? null : term.tokens.reduce((total, token) => total + (row[token] ?? 0), 0) }));
  const most = Math.max(1e-12, ...terms.filter(({ kind }) => kind === "word").map(({ given }) => given));
  return terms.map((term) => ({ ...term, size: Math.min(1, (term.given ?? 0) / most) }));
}

export function drawWords({ wordView: view, wordSel, word, at }) {
  const panel = $("words"), list = $("wordlist");
  panel.hidden = !view;
  if (!view) return;
  setText(panel.querySelector("h2"), view.role === "text" ? "Words" : "Tokens without a place");
  refill(list, `${view.id}`, () => view.terms.map(({ text, kind }, i) => el("button", { type: "button", className: kind, value: i }, text)));
  givenTo(view, wordSel, at).forEach(({ given, size, kind }, i) => {
    const button = list.children[i];
    button.style.setProperty("--given", size.toFixed(3));
    button.setAttribute("aria-pressed", String(word === i));
    button.title = given !== null ? `${percent(given)} of the patch's attention` : kind === "probe" ? "a probe: the run never saw it" : "";
  });
  list.style.minHeight = `${Math.max(parseFloat(list.style.minHeight) || 0, list.offsetHeight)}px`; // swelling moves nothing below
  setText(panel.querySelector("small"), `larger: more of patch ${at.join(", ")}'s attention`);
}

export function wordsPicture({ wordView: view, wordSel, at }) {
  const width = 560;
  let x = 0, y = 22;
  const placed = givenTo(view, wordSel, at).map(({ text, kind, given, size }) => {
    const points = kind === "token" ? 11 : 15 + 9 * size, wide = Math.max(given === null ? 0 : 38, 0.56 * points * text.length + 10);
    if (x + wide > width) { x = 0; y += 34; }
    x += wide;
    return { text, given, points, x: x - wide, y };
  });
  return { width, height: y + 24, paint: (pen) => placed.forEach((each) => { write(pen, each.text, each.x, each.y, { ink: look.ink, size: each.points }); if (each.given !== null) write(pen, percent(each.given), each.x, each.y + 16, { size: 9 }); }) };
}

export function mountWords() {
  const of = (e) => { const button = e.target.closest("button"); return button && Number(button.value); };
  on("wordlist", {
    pointerover: (e) => { const word = of(e); point(word === null ? {} : { word }); }, pointerleave: () => point(),
    click: (e) => { const word = of(e); if (word !== null) change({ word: state.word === word ? null : word, token: null }); },
  });
}
