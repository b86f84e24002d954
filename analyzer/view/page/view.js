// The page: from the state to what is in sight, panel by panel. Start here.
import { $, el, on, plural, refill, setText } from "./dom.js";
import { differences, loadView, openRun, overviewIn } from "./data.js";
import { look, setLook } from "./draw.js";
import { mean, range, sum } from "./lists.js";
import { columnOf, copyOf, lookOf, mapOf, peakOf, scoresOf, wordOf, workOutScores } from "./answers.js";
import { change, fromFragment, hover, keepPossible, page, patch, patchOf, point, selection, state, toFragment, token, word } from "./state.js";
import { drawFrames, drawStage, mountStage, stagePicture } from "./stage.js";
import { drawLattice, latticePicture, mountLattice, tileAt } from "./lattice.js";
import { drawTime, mountTime, timePicture } from "./time.js";
import { drawNumbers, mountNumbers, numbersPicture } from "./numbers.js";
import { drawWords, mountWords, selectionBeside, wordsBeside, wordsPicture } from "./words.js";
import { drawPanels, mountPanels } from "./save.js";
import { command, drawFoot, say } from "./sentence.js";
import { askWhenResting, isExact } from "./exact.js";
import { mountKeys, switchTheme } from "./keys.js";

const timings = { first: null, ready: null, render: [], frame: [] }, darkness = matchMedia("(prefers-color-scheme: dark)"), AXES = { group: "Tokens", sample: "Picture", branch: "Branch" };
let queued = false, now = null, idle = null;

/* what is in sight */

/** Finds the view in sight and the same one of the other run, and has them loaded. */
function chooseView() {
  const [a, b] = page.runs, inB = state.run === "b" && b;
  if (!b) state.run = "a";
  if (!(inB ? b : a).views[state.view]) state.view = 0;
  page.view = (inB ? b : a).views[state.view];
  page.other = (b && (inB ? a : b).views[state.view]) ?? null;
  page.apart = b ? differences(a.views[state.view], b.views[state.view]) : null;
  if (page.apart && state.run === "diff") state.run = "a";
  page.view.first ??= firstPatch(page.view);
  return [page.view, page.other, wordsBeside(page.view)].filter(Boolean).map(load);
}
function load(view) {
  if (!view.loading) loadView(view).then(page.draw, fail);
  return view.loading;
}

/** The patch of the mask that lies nearest to its middle, or the middle of the picture. */
function firstPatch(view) {
  const [h, w] = view.cells, inside = view.inside(view.cells), all = range(h * w).map((i) => [Math.floor(i / w), i % w]), masked = all.filter((_, i) => inside?.[i]), cells = masked.length ? masked : all;
  const middle = [0, 1].map((axis) => mean(cells.map((cell) => cell[axis]))), far = ([y, x]) => Math.hypot(y - middle[0], x - middle[1]);
  return patchOf(view, cells.reduce((a, b) => (far(b) < far(a) ? b : a)));
}

/** All that panels draw: view, selection, patch, its row and peak; or the token or word in its place, and the column of who looked at it. */
function inSight() {
  chooseView();
  const { view, other } = page, wordView = wordsBeside(view);
  keepPossible(view, wordView?.terms);
  const sel = selection(), at = patch(), ready = Boolean(view.ready && (!other || page.apart || other.ready)), seen = { view, sel, at, ready, wordView, token: token(), word: word() }, onWord = seen.word !== null;
  seen.wordSel = wordView && selectionBeside(view, wordView, sel);
  [seen.columnView, seen.columnSel] = onWord ? [wordView, seen.wordSel] : [view, sel];
  seen.tokens = onWord ? wordView.terms[seen.word].tokens.filter((each) => each < wordView.tokens) : [seen.token];
  seen.row = ready ? lookOf(view, sel, at) : null;
  seen.top = peakOf(view, seen.row);
  seen.column = onWord ? wordView.ready && wordOf(wordView, seen.wordSel, seen.word) : ready && seen.token !== null ? columnOf(view, sel, seen.token) : null;
  return seen;
}

/* drawing */

page.draw = () => {
  if (queued || !page.runs.length) return;
  const began = window.event?.timeStamp ?? performance.now();
  queued = true;
  requestAnimationFrame(() => {
    const from = performance.now();
    queued = false;
    draw();
    timings.render.push(performance.now() - from);
    requestAnimationFrame(() => timings.frame.push(performance.now() - began));
  });
};

function draw() {
  const theme = state.theme ?? (darkness.matches ? "dark" : "light");
  if (look.name !== theme) { document.documentElement.dataset.theme = theme; setLook(theme); }
  now = inSight();
  for (const each of [drawPanels, drawHeader, drawFrames, say]) each(now);
  for (const [name, each] of Object.entries({ stage: drawStage, words: drawWords, heads: drawLattice, time: drawTime, numbers: drawNumbers })) if (!state.panel || state.panel === name) each(now);
  drawFoot(now, isExact(now));
  for (const input of document.querySelectorAll("[data-choice] input")) input.checked = state[input.name] === input.value;
  if (now.ready && !Object.keys(hover).length) writeAddress();
  workWhenIdle();
  askWhenResting(now);
}

function drawHeader({ view, wordView }) {
  const { trace } = view.run.facts, { reference } = view.images, heads = sum(view.layers.map((layer) => layer.heads));
  const keys = view.ref_grid ? `${view.group} ${view.ref_grid.join(" × ")} tokens` : `${view.group} ${plural(view.tokens, "token")}`, steps = trace.planned > trace.steps ? `${trace.steps} of ${trace.planned} steps` : plural(trace.steps, "step");
  setText($("what"), [trace.model, trace.name, steps, `${plural(view.layers.length, "layer")}, ${plural(heads, "head")}`, keys, `trace ${trace.id.slice(0, 8)}`, trace.status === "complete" ? "" : trace.status].filter(Boolean).join(" · "));
  document.title = `${trace.name ?? trace.model}, i2am`;
  $("stage").classList.toggle("text", !reference);
  $("stage").parentElement.classList.toggle("withtext", !reference && Boolean(wordView));
  setText($("reffigure").querySelector("h2"), view.role === "self" ? "The picture itself" : "Reference");
  $("runs").hidden = page.runs.length < 2;
  $("runs").querySelector("[value=diff]").disabled = Boolean(page.apart);
  $("apart").hidden = !page.apart;
  setText($("apart"), page.apart ? `A and B cannot be laid over each other: ${page.apart}.` : "");
  drawChoices(view);
}

/** A select for each of group, sample and branch of which there are several. */
function drawChoices(view) {
  const node = $("choices"), { views } = view.run, axes = Object.keys(AXES).filter((axis) => new Set(views.map((each) => each[axis])).size > 1);
  node.hidden = !axes.length;
  refill(node, `${view.run.id} ${axes}`, () => axes.map((axis) => el("label", {}, AXES[axis], el("select", { name: axis, onchange: (e) => chooseAxis(axis, e.target.value) }, [...new Set(views.map((each) => String(each[axis])))].map((value) => el("option", { value }, value))))));
  for (const select of node.querySelectorAll("select")) select.value = String(view[select.name]);
}
function chooseAxis(axis, value) {
  const found = page.view.run.views.filter((view) => String(view[axis]) === value), alike = found.find((view) => Object.keys(AXES).every((each) => each === axis || view[each] === page.view[each]));
  change({ view: (alike ?? found[0]).number, layer: null, head: null, token: null, word: null });
}

function writeAddress() {
  const fragment = toFragment();
  if (fragment === location.hash.slice(1)) return;
  try { history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search); } catch { /* a frame without an address of its own */ }
}

/** Scores of a new selection take tens of milliseconds at full size: worked out when nothing else is asked. */
function workWhenIdle() {
  const { view, sel, ready } = now, missing = ready ? [view, page.apart ? null : page.other].filter((each) => each && !scoresOf(each, sel)) : [];
  clearTimeout(idle);
  if (missing.length) idle = setTimeout(() => (window.requestIdleCallback ?? setTimeout)(() => { scoresOf(missing[0], sel, true); page.draw(); }), 60);
}

/* start */

function fail(error) {
  $("sentence").className = "error";
  refill($("sentence"), "error", () => `This overview cannot be shown: ${error.message}.`);
  document.documentElement.dataset.ready = "failed";
  page.runs = [];
  console.error(error);
}

/** The JSON document that an element carries, or says where to fetch. */
async function documentIn(id) {
  const node = $(id), source = node?.dataset.src;
  if (!source) return node?.textContent;
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${source}: ${response.status} ${await response.text()}`);
  return response.text();
}

/** Another exported page as run B; one that cannot be read is said so, and run A stays. */
async function compareWith(file) {
  if (!file) return;
  try {
    page.runs = [page.runs[0], await openRun(overviewIn(await file.text()))];
    change({ run: "b" });
  } catch (error) {
    $("apart").hidden = false;
    setText($("apart"), `${file.name} cannot be compared with: ${error.message}.`);
  }
}

/** Makes the radio buttons of each choice: its name, then its values, each with a text where that is another. */
function mountChoices() {
  for (const group of document.querySelectorAll("[data-choice]")) {
    const [name, ...values] = group.dataset.choice.split(" ");
    group.append(...values.map((each) => { const [value, text = value] = each.split(":"); return el("label", {}, el("input", { type: "radio", name, value, onchange: () => change({ [name]: value }) }), text); }));
  }
}

function copies(id, text) {
  on(id, { click: async ({ target }) => {
    const says = target.textContent;
    try { await navigator.clipboard.writeText(text()); target.textContent = "Copied"; } catch { target.textContent = "The browser did not allow it"; }
    setTimeout(() => { target.textContent = says; }, 1400);
  } });
}

function mount() {
  for (const each of [mountChoices, mountStage, mountLattice, mountTime, mountNumbers, mountWords]) each();
  const pictures = { stage: stagePicture, heads: latticePicture, time: timePicture, numbers: numbersPicture, words: wordsPicture };
  mountPanels(Object.fromEntries(Object.entries(pictures).map(([name, make]) => [name, () => make(now)])));
  mountKeys(() => now.top?.token ?? null);
  copies("copylink", () => location.href);
  copies("copycommand", () => command(now));
  on("theme", { click: switchTheme });
  on("file", { change: ({ target }) => { compareWith(target.files[0]); target.value = ""; } });
  const dropping = (is) => document.body.classList.toggle("dropping", is);
  for (const [name, act] of Object.entries({
    dragover: (e) => { e.preventDefault(); dropping(true); }, dragleave: (e) => { if (!e.relatedTarget) dropping(false); }, drop: (e) => { e.preventDefault(); dropping(false); compareWith(e.dataTransfer.files[0]); },
    hashchange: () => { fromFragment(location.hash); page.draw(); }, resize: page.draw,
  })) addEventListener(name, act);
  darkness.addEventListener("change", page.draw);
  document.documentElement.addEventListener("pointerleave", () => point());
}

const painted = (act) => requestAnimationFrame(() => requestAnimationFrame(act));

async function start() {
  const texts = await Promise.all([documentIn("overview"), documentIn("overview-b")]);
  if (!texts[0]) throw new Error("the page carries none");
  page.runs = await Promise.all(texts.filter(Boolean).map(openRun));
  fromFragment(location.hash);
  mount();
  const loading = chooseView();
  page.draw();
  painted(() => { timings.first = performance.now(); });
  await Promise.all(loading);
  setTimeout(() => page.view.ready && copyOf(page.view, { time: null, layer: null, head: null, frame: 0 }), 400); // so that the first such picture is no work
  page.draw();
  painted(() => { timings.ready = performance.now(); document.documentElement.dataset.ready ??= "yes"; });
}

window.i2am = { state, page, timings, change, lookOf, mapOf, columnOf, workOutScores, seen: () => now, tile: tileAt };
start().catch(fail);
