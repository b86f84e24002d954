// The page: from the state to what is in sight, panel by panel. Start here.
import { $, el, fill, plural, setText } from "./dom.js";
import { differences, loadView, openRun, overviewIn } from "./data.js";
import { readLook } from "./draw.js";
import * as maths from "./maths.js";
import * as scores from "./scores.js";
import { columnOf, lookOf, mapOf, peakOf, scoresOf, wordOf, workOutScores } from "./answers.js";
import { change, fromFragment, hover, keepPossible, page, patch, point, sampled, selection, state, toFragment, token, word } from "./state.js";
import { drawFrames, drawStage, mountStage, stagePicture } from "./stage.js";
import { drawLattice, latticePicture, mountLattice } from "./lattice.js";
import { drawTime, mountTime, timePicture } from "./time.js";
import { drawNumbers, mountNumbers, numbersPicture, tableText } from "./numbers.js";
import { drawWords, mountWords, selectionBeside, wordsBeside, wordsPicture } from "./words.js";
import { download, drawPanels, mountPanels } from "./save.js";
import { command, drawFoot, say } from "./sentence.js";
import { askWhenResting, isExact } from "./exact.js";
import { mountKeys, switchTheme } from "./keys.js";

const started = performance.now();
const timings = { first: null, ready: null, render: [], frame: [] };
let queued = null, now = null, idle = null;

/* what is in sight */

function chooseView() {
  page.run = page.runs[state.run === "b" && page.runs.length > 1 ? 1 : 0];
  if (!page.run.views[state.view]) state.view = 0;
  page.view = page.run.views[state.view];
  const other = page.runs.length > 1 ? page.runs[page.run === page.runs[0] ? 1 : 0].views[state.view] : null;
  page.apart = page.runs.length > 1 ? differences(page.runs[0].views[state.view], page.runs[1].views[state.view]) : null;
  if (page.apart && state.run === "diff") state.run = "a";
  page.first = firstPatch(page.view);
  for (const [run, view] of [[page.run, page.view], ...(other ? [[page.runs.find((each) => each !== page.run), other]] : [])]) if (!view.loading) loadView(run, view).then(page.draw, fail);
  return other;
}

/** The patch of the mask that lies nearest to its middle, or the middle of the picture. */
function firstPatch(view) {
  if (view.first) return view.first;
  const [h, w] = view.cells, inside = view.inside(view.cells), cells = [...Array(h * w).keys()].filter((i) => !inside || inside[i]), all = cells.length ? cells : [...Array(h * w).keys()];
  const middle = [(i) => Math.floor(i / w), (i) => i % w].map((axis) => scores.mean(all.map(axis))), far = (i) => Math.hypot(Math.floor(i / w) - middle[0], (i % w) - middle[1]);
  const best = all.reduce((a, b) => (far(b) < far(a) ? b : a));
  return (view.first = sampled(view, [Math.floor(((Math.floor(best / w) + 0.5) * view.latent[0]) / h), Math.floor((((best % w) + 0.5) * view.latent[1]) / w)]));
}

function look() {
  const other = chooseView(), { run, view } = page, beside = wordsBeside(run, view);
  keepPossible(run, beside && !view.terms ? { ...view, terms: beside.terms } : view);
  if (beside && !beside.loading) loadView(run, beside).then(page.draw, fail);
  const sel = selection(), at = patch(), ready = Boolean(view.ready && (!other || page.apart || other.ready)), seen = { run, view, sel, at, token: token(), word: word(), ready, wordView: beside };
  seen.wordSel = beside && selectionBeside(view, beside, sel);
  seen.row = ready ? lookOf(view, sel, at) : null;
  seen.top = peakOf(view, seen.row);
  [seen.columnView, seen.columnSel] = seen.word !== null ? [beside, seen.wordSel] : [view, sel];
  seen.tokens = seen.token !== null ? [seen.token] : seen.word !== null ? beside.terms[seen.word].tokens.filter((each) => each < beside.tokens) : null;
  seen.column = seen.token !== null && ready ? columnOf(view, sel, seen.token) : seen.word !== null && beside.maps && (beside.ready || beside.words) ? wordOf(beside, seen.wordSel, seen.word) : null;
  return seen;
}

/* drawing */

page.draw = () => {
  if (queued !== null || !page.runs.length) return;
  const began = window.event?.timeStamp ?? performance.now();
  queued = requestAnimationFrame(() => {
    queued = null;
    const from = performance.now();
    draw();
    timings.render.push(performance.now() - from);
    requestAnimationFrame(() => timings.frame.push(performance.now() - began));
  });
};

function draw() {
  const theme = state.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  if (page.look?.name !== `${theme} ${state.colours}`) { document.documentElement.dataset.theme = theme; page.look = readLook(theme, state.colours); }
  now = look();
  drawPanels();
  drawHeader();
  drawFrames();
  drawStage(now); drawWords(now); drawLattice(now); drawTime(now); drawNumbers(now);
  say(now);
  drawFoot(now, isExact(now));
  for (const input of document.querySelectorAll(".seg input[type=radio]")) if (input.name in state && input.name !== "frame") input.checked = state[input.name] === input.value;
  if (!Object.keys(hover).length) writeAddress();
  workWhenIdle();
  askWhenResting(now);
}

function drawHeader() {
  const { run, view } = page, { trace } = run.facts, text = view.role === "text";
  const keys = text ? plural(view.tokens, "text token") : view.ref_grid ? `${view.role === "self" ? "itself" : "reference"} ${view.ref_grid.join(" × ")} tokens` : plural(view.tokens, "reference token");
  const steps = trace.planned && trace.planned !== trace.steps ? `${trace.steps} of ${trace.planned} steps` : plural(trace.steps, "step");
  const parts = [trace.model, trace.name, steps, `${plural(view.layers.length, "layer")}, ${plural(view.layers.reduce((total, layer) => total + layer.heads, 0), "head")}`, keys, `trace ${trace.id.slice(0, 8)}`];
  if (trace.status && trace.status !== "complete") parts.push(trace.status);
  setText($("what"), parts.filter(Boolean).join(" · "));
  document.title = `${trace.name ?? trace.model}, i2am`;
  $("stage").classList.toggle("text", !view.images.reference);
  $("stage").parentElement.classList.toggle("withtext", !view.images.reference && Boolean(now?.wordView));
  $("reffigure").querySelector("h2").textContent = view.role === "self" ? "The picture itself" : "Reference";
  $("runs").hidden = page.runs.length < 2;
  $("runs").querySelector("[value=diff]").disabled = Boolean(page.apart);
  $("apart").hidden = !page.apart;
  setText($("apart"), page.apart ? `A and B cannot be laid over each other: ${page.apart}.` : "");
  drawChoices(run);
}

/** A select for each of group, sample and branch of which there are several. */
function drawChoices(run) {
  const node = $("choices"), axes = ["group", "sample", "branch"].filter((axis) => new Set(run.views.map((view) => view[axis])).size > 1), key = `${page.runs.indexOf(run)} ${axes}`;
  node.hidden = !axes.length;
  if (node.dataset.key !== key) {
    node.dataset.key = key;
    fill(node, axes.map((axis) => el("label", {}, { group: "Tokens", sample: "Picture", branch: "Branch" }[axis], el("select", { name: axis, onchange: (event) => chooseAxis(axis, event.target.value) }, [...new Set(run.views.map((view) => view[axis]))].map((value) => el("option", { value: String(value) }, String(value)))))));
  }
  for (const select of node.querySelectorAll("select")) select.value = String(page.view[select.name]);
}
function chooseAxis(axis, value) {
  const alike = (view) => ["group", "sample", "branch"].filter((each) => view[each] === page.view[each]).length, found = page.run.views.filter((view) => String(view[axis]) === value);
  change({ view: found.reduce((best, view) => (alike(view) > alike(best) ? view : best)).number, layer: null, head: null, token: null, word: null });
}

function writeAddress() {
  const fragment = toFragment();
  if (fragment === location.hash.slice(1)) return;
  try { history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search); } catch { /* a frame without an address of its own */ }
}

/** Scores of a new selection take tens of milliseconds at full size: worked out when nothing else is asked. */
function workWhenIdle() {
  clearTimeout(idle);
  if (!now.ready || scoresOf(now.view, now.sel)) return;
  const { view, sel } = now;
  idle = setTimeout(() => (window.requestIdleCallback ?? setTimeout)(() => { if (page.view === view) { scoresOf(view, sel, true); page.draw(); } }), 60);
}

/* start */

function fail(error) {
  const node = $("sentence");
  node.className = "error";
  node.dataset.key = "error";
  setText(node, `This overview cannot be shown: ${error.message}`);
  document.documentElement.dataset.ready = "failed";
  page.runs = [];
  console.error(error);
}

async function documentIn(id) {
  const node = $(id);
  if (!node) return id === "overview" ? fetchText("overview") : null;
  return node.dataset.src ? fetchText(node.dataset.src) : node.textContent;
}
async function fetchText(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${await response.text()}`);
  return response.text();
}

/** Another exported page as run B; one that cannot be read is said so, and run A stays. */
async function compareWith(file) {
  try {
    const run = await openRun(overviewIn(await file.text()));
    page.runs = [page.runs[0], run];
    change({ run: "b" });
  } catch (error) {
    $("apart").hidden = false;
    setText($("apart"), `${file.name} cannot be compared with: ${error.message}`);
  }
}

function mount() {
  for (const each of [mountStage, mountLattice, mountTime, mountNumbers, mountWords]) each();
  mountPanels({ stage: () => stagePicture(now), heads: () => latticePicture(now), time: () => timePicture(now), numbers: () => numbersPicture(now), words: () => wordsPicture(now) },
    { numbers: [["Save as CSV", () => download(new Blob([tableText(page.view)], { type: "text/csv" }), "scores.csv")]] });
  mountKeys(() => now.top?.token ?? null);
  document.addEventListener("change", (event) => { if (event.target.matches(".seg input") && event.target.name !== "frame") change({ [event.target.name]: event.target.value }); });
  $("theme").addEventListener("click", switchTheme);
  const copied = (button, text) => button.addEventListener("click", async () => { const says = button.textContent; try { await navigator.clipboard.writeText(text()); button.textContent = "Copied"; } catch { button.textContent = "The browser did not allow it"; } setTimeout(() => { button.textContent = says; }, 1400); });
  copied($("copylink"), () => location.href);
  copied($("copycommand"), () => command(now));
  $("file").addEventListener("change", (event) => { if (event.target.files[0]) compareWith(event.target.files[0]); event.target.value = ""; });
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("dropping"); if (event.dataTransfer.files[0]) compareWith(event.dataTransfer.files[0]); });
  addEventListener("hashchange", () => { fromFragment(location.hash); page.draw(); });
  addEventListener("resize", page.draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", page.draw);
  document.documentElement.addEventListener("pointerleave", () => point());
}

const painted = (act) => requestAnimationFrame(() => requestAnimationFrame(act));

async function start() {
  const texts = await Promise.all([documentIn("overview"), documentIn("overview-b")]);
  page.runs = await Promise.all(texts.filter((text) => text !== null).map(openRun));
  fromFragment(location.hash);
  mount();
  page.draw();
  painted(() => { timings.first = performance.now() - started; });
  chooseView();
  const views = page.runs.map((run) => run.views[state.view]).filter(Boolean);
  await Promise.all(views.map((view) => view.loading));
  page.draw();
  painted(() => { timings.ready = performance.now() - started; timings.load = performance.now(); document.documentElement.dataset.ready = "yes"; });
}

window.i2am = { state, page, timings, maths, scores, change, lookOf, mapOf, columnOf, workOutScores, seen: () => now };
start().catch(fail);
