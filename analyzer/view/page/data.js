// Reads overviews: a Zarr v3 group, each array one gzip chunk, all files in one JSON document. docs/overview.md is the format.
import { known, product, range, under } from "./lists.js";
import { cellColours } from "./scores.js";

export const VERSION = 1;
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };
const MOST = 3000;
let opened = 0;
const changed = (path) => new Error(`${path} was changed after it was made`);

/** Files of an overview: `read(path)` gives an array, checked. Base64 is unpacked where it is asked for, so the first picture comes soon. */
export function openFiles(text) {
  let index, data, root;
  try { ({ index, data } = JSON.parse(text)); } catch { throw new Error("the overview is cut short or changed: it is no JSON document"); }
  const bytesOf = (path) => {
    if (!index?.[path]) throw new Error(`the overview lacks ${path}`);
    const [from, to] = index[path], start = Math.floor(from / 3);
    let plain;
    try { plain = atob(data.slice(4 * start, Math.ceil(to / 3) * 4)); } catch { throw changed(path); }
    if (plain.length < to - 3 * start) throw changed(path);
    return Uint8Array.from({ length: to - from }, (_, i) => plain.charCodeAt(from - 3 * start + i));
  };
  try { root = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytesOf("zarr.json"))); } catch { throw changed("zarr.json"); }
  const plans = root.consolidated_metadata?.metadata ?? {};
  return { facts: root.attributes?.i2am_overview, has: (path) => path in plans, read: (path) => readArray(path, plans[path], bytesOf) };
}

async function readArray(path, plan, bytesOf) {
  if (!plan) throw new Error(`the overview lacks ${path}`);
  const type = TYPES[plan.data_type], packed = bytesOf(`${path}/${["c", ...plan.shape.map(() => 0)].join(".")}`), planned = type ? product(plan.shape) * type.BYTES_PER_ELEMENT : -1;
  if (packed.length < 18 || new DataView(packed.buffer, packed.length - 4).getUint32(0, true) !== planned) throw changed(path); // gzip ends with the size
  const unpacked = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer().catch(() => { throw changed(path); }); // and checks its crc32
  if (unpacked.byteLength !== planned) throw changed(path);
  return { data: new type(unpacked), shape: plan.shape };
}

/** An overview as the page uses it; its views are filled by `loadView` when they are first shown. */
export async function openRun(text) {
  const files = openFiles(text), { facts } = files;
  if (!facts) throw new Error("this file holds no overview");
  if (facts.version !== VERSION) throw new Error(`the overview is of version ${facts.version}, and this page shows version ${VERSION}; make it again with the i2am that shows it`);
  const timeOf = (await files.read("time_of_step")).data;
  const images = Object.fromEntries(await Promise.all(facts.images.map(async (image) => {
    const { data, shape: [frames, height, width, channels] } = await files.read(`images/${image.name}`);
    return [image.name, { ...image, data, frames, height, width, channels }];
  })));
  const run = { id: opened++, facts, files, images, timeOf, stepsOf: (t) => [timeOf.indexOf(t), timeOf.lastIndexOf(t)] };
  run.views = facts.views.map((view, number) => prepareView(run, view, number));
  return run;
}

/** A view with what follows from its facts and pictures; `once` keeps what was worked out for it. */
function prepareView(run, facts, number) {
  const kept = new Map(), latent = run.facts.latent_grid;
  const once = (key, make) => { if (!kept.has(key)) { if (kept.size > MOST) kept.clear(); kept.set(key, make()); } return kept.get(key); };
  const images = Object.fromEntries(["generated", "reference", "mask", "reference_mask"].map((role) => [role, run.images[facts.images[role]] ?? null])), { generated, reference, mask, reference_mask: outline } = images;
  const view = { ...facts, run, number, id: `${run.id} ${number}`, latent, images, once, put: (key, value) => kept.set(key, value), kept: (key) => kept.get(key), layers: shortened(facts.layers), window: facts.window ?? [0, 0, 1, 1], words: facts.words?.length ? facts.words : null };
  view.tokens = facts.ref_grid ? product(facts.ref_grid) : Math.min(...facts.layers.map((layer) => layer.keys));
  view.terms = view.words ?? (facts.ref_grid ? null : range(view.tokens).map((k) => ({ text: String(k + 1), tokens: [k], kind: "word" })));
  view.cells = facts.layers.reduce((best, { row_grid: grid }) => (grid && product(grid) > product(best) ? grid : best), [0, 0]);
  view.rows = product(view.cells) > 0;
  if (!view.rows) view.cells = latent;
  view.colours = reference && view.ref_grid && view.rows ? (grid) => once(`colours ${grid}`, () => cellColours(reference, grid, 0, view.window)) : null;
  view.inside = (grid, frame = 0) => mask && once(`inside ${grid} ${frame}`, () => cellsIn(mask, grid, frameOf(run, mask, frame)));
  view.outside = (grid) => once(`outside ${grid}`, () => cellsIn(outline, grid, 0, view.window).map((is) => !is));
  view.painted = ({ grid, row_grid: rows }, frame) => once(`painted ${grid} ${rows} ${frame}`, () => sample(cellColours(generated, grid, frameOf(run, generated, frame)), grid, rows, 3));
  view.patches = ({ grid, row_grid: rows }, frame) => once(`patches ${grid} ${rows} ${frame}`, () => sample(view.inside(grid, frame) ?? Array(product(grid)).fill(true), grid, rows, 1));
  view.bits = (role, frame) => once(`bits ${role} ${frame}`, () => maskBits(images[role], frameOf(run, images[role], frame)));
  return view;
}

/** Layers by names as short as they stay different. */
function shortened(layers) {
  const names = layers.map(({ short }) => short.replace(/_blocks?\b/g, "").replace(/\b(attentions|transformer)\./g, "")), apart = new Set(names).size === names.length;
  return layers.map((layer, l) => ({ ...layer, short: apart ? names[l] : layer.short }));
}

/** Cells of which a mask covers more than half. */
function cellsIn(mask, grid, frame, window) {
  const colours = cellColours(mask, grid, frame, window);
  return Array.from({ length: product(grid) }, (_, i) => colours[3 * i] > 127.5);
}

/** What the patches have whose rows are kept: every n-th of a layer's. */
function sample(values, [h, w], [n, m], channels) {
  const at = (i, all, some) => under(i, some, all) + Math.floor(Math.floor(all / some) / 2), out = [];
  for (let y = 0; y < n; y++) for (let x = 0; x < m; x++) for (let c = 0; c < channels; c++) out.push(values[channels * (at(y, h, n) * w + at(x, w, m)) + c]);
  return out;
}

/** Which frame of a picture goes with a shown frame: a picture of one frame goes with all. */
export const frameOf = (run, picture, frame) => under(frame, run.facts.frames.length, picture.frames);

function maskBits({ data, height, width, channels }, frame) {
  const from = frame * height * width * channels;
  return Uint8Array.from({ length: height * width }, (_, i) => (data[from + i * channels] > 127 ? 1 : 0));
}

/** Fills a view: maps, statistics and scores first (`view.maps`), then rows of P (`view.ready`). */
export function loadView(view) {
  const { run: { files }, path, layers } = view, fetched = async (name) => (files.has(name) ? files.read(name) : null);
  const stored = async (name, shaped) => {
    const [values, max] = await Promise.all([fetched(name), fetched(`${name}_max`)]);
    return values && { data: values.data, max: max.data, ...shaped(values.shape) };
  };
  const places = ([, heads, ...rest]) => ({ heads, cells: product(rest) }), rows = (shape) => ({ tokens: shape.at(-1), rows: product(shape.slice(-4, -1)) });
  const each = (act) => Promise.all(layers.map((layer, l) => act(layer, (name) => `${path}/${name}_${String(l).padStart(3, "0")}`)));
  const fill = (shaped, names) => Promise.all(names.map((name) => each(async (layer, at) => { layer[name] = await stored(at(name), shaped); })));
  view.loading ??= (async () => {
    const [scores, truth] = await Promise.all([fetched(`${path}/scores`), fetched(`${path}/truth`)]);
    view.scores = scores?.data;
    view.truthOf = truth && truthReader(truth);
    await each(async (layer, at) => { layer.stats = (await fetched(at("stats")))?.data; });
    await fill(places, ["r2g", "g2r", "g2r_masked", "words"]);
    view.maps = true;
    await fill(rows, ["rows", "rows_heads", "rows_times"]);
    view.ready = true;
  })();
  return view.loading;
}

/** Where a patch of the latent grid should have looked, as shares of the reference; null where that is not known. */
const truthReader = ({ data, shape: [, h, w] }) => (frame, [y, x], [H, W]) => {
  const at = 2 * ((frame * h + under(y, H, h)) * w + under(x, W, w));
  return known(data[at] + data[at + 1]) ? { y: data[at], x: data[at + 1] } : null;
};

/** In what two views differ that cannot be laid over each other; null where nothing does. */
export function differences(a, b) {
  if (!b) return "B has no such view";
  const facts = ({ latent, ref_grid: places, tokens, cells, layers }) => [["patches", latent], ["layers", layers.length], ["tokens", places ?? tokens], ["patches with rows", cells], ...layers.flatMap(({ short, grid, heads }) => [[`patches in ${short}`, grid], [`heads in ${short}`, heads]])];
  const written = ([name, value]) => `${[value].flat().join(" × ")} ${name}`, other = facts(b).map(written), mine = facts(a).map(written), i = mine.findIndex((each, at) => each !== other[at]);
  return i < 0 ? null : `A has ${mine[i]}, B ${other[i]}`;
}

/** The overview inside another exported page: its text is parsed, nothing of it is shown or run. */
export function overviewIn(html) {
  const node = new DOMParser().parseFromString(html, "text/html").getElementById("overview");
  if (!node?.textContent) throw new Error("the file holds no overview; give a page that `i2am view run.zarr -o run.html` wrote");
  return node.textContent;
}
