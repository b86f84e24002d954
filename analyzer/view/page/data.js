// Reads overviews: a Zarr v3 group, each array one gzip chunk, all files in one JSON document. docs/overview.md is the format.
import { cellColours, cellShares } from "./scores.js";

export const VERSION = 1;
const TYPES = { uint8: Uint8Array, uint16: Uint16Array, int32: Int32Array, float32: Float32Array };
const product = (values) => values.reduce((total, value) => total * value, 1);

/** Files of an overview: `read(path)` gives an array, checked. Base64 is unpacked where it is asked for, so the first picture comes soon. */
export function openFiles(text) {
  let index, data;
  try { ({ index, data } = JSON.parse(text)); } catch { throw new Error("the overview is cut short or changed: it is no JSON document"); }
  const bytesOf = (path) => {
    if (!index?.[path]) throw new Error(`the overview lacks ${path}`);
    const [from, to] = index[path], start = Math.floor(from / 3) * 4, packed = data.slice(start, Math.ceil(to / 3) * 4);
    let plain;
    try { plain = atob(packed); } catch { throw new Error(`${path} was changed after it was made`); }
    const skip = from - (start / 4) * 3;
    if (plain.length < skip + to - from) throw new Error(`${path} is cut short`);
    return Uint8Array.from({ length: to - from }, (_, i) => plain.charCodeAt(skip + i));
  };
  let root;
  try { root = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytesOf("zarr.json"))); } catch (error) { throw new Error(`zarr.json was changed after it was made (${error.message})`); }
  const plans = root.consolidated_metadata?.metadata ?? {};
  return { facts: root.attributes?.i2am_overview, has: (path) => path in plans, read: (path) => readArray(path, plans[path], bytesOf) };
}

async function readArray(path, plan, bytesOf) {
  if (!plan) throw new Error(`the overview lacks ${path}`);
  const type = TYPES[plan.data_type], length = product(plan.shape), packed = bytesOf(`${path}/${["c", ...plan.shape.map(() => 0)].join(".")}`);
  const planned = type ? length * type.BYTES_PER_ELEMENT : -1;
  if (packed.length < 18 || new DataView(packed.buffer, packed.length - 4).getUint32(0, true) !== planned) throw new Error(`${path} was changed after it was made: it is not of its planned size`);
  const unpacked = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer()
    .catch(() => { throw new Error(`${path} was changed after it was made`); }); // gzip carries a crc32
  if (unpacked.byteLength !== planned) throw new Error(`${path} was changed after it was made: it is not of its planned size`);
  return { data: new type(unpacked), shape: plan.shape };
}

/** An overview as the page uses it; its views are filled by `loadView` when they are first shown. */
export async function openRun(text) {
  const files = openFiles(text), { facts } = files;
  if (!facts) throw new Error("this file holds no overview");
  if (facts.version !== VERSION) throw new Error(`the overview is of version ${facts.version}, and this page shows version ${VERSION}; make it again with the i2am that shows it`);
  const [timestep, timeOf] = await Promise.all([files.read("timestep"), files.read("time_of_step")]);
  const images = Object.fromEntries(await Promise.all(facts.images.map(async (image) => {
    const { data, shape } = await files.read(`images/${image.name}`);
    return [image.name, { ...image, data, frames: shape[0], height: shape[1], width: shape[2], channels: shape[3] }];
  })));
  const run = { facts, files, images, timestep: timestep.data, timeOf: timeOf.data, latent: facts.latent_grid };
  run.stepsOf = (t) => [run.timeOf.indexOf(t), run.timeOf.lastIndexOf(t)];
  run.views = facts.views.map((view, number) => prepareView(run, view, number));
  return run;
}

function prepareView(run, facts, number) {
  const own = (role) => (facts.images[role] ? run.images[facts.images[role]] : null);
  const view = { ...facts, number, latent: run.latent, images: { generated: own("generated"), reference: own("reference"), mask: own("mask"), reference_mask: own("reference_mask") } };
  const shorter = facts.layers.map(({ short }) => short.replace(/_blocks?\b/g, "").replace(/\b(attentions|transformer)\./g, "")), apart = new Set(shorter).size === shorter.length;
  view.words = facts.words?.length ? facts.words : null;
  view.layers = facts.layers.map((layer, l) => ({ ...layer, short: apart ? shorter[l] : layer.short }));
  view.window = facts.window ?? [0, 0, 1, 1];
  view.tokens = facts.ref_grid ? product(facts.ref_grid) : Math.min(...facts.layers.map((layer) => layer.keys));
  const placeless = () => Array.from({ length: view.tokens }, (_, k) => ({ text: String(k + 1), tokens: [k], kind: "token" }));
  view.terms = view.words ?? (facts.ref_grid ? null : placeless());
  view.cells = facts.layers.reduce((best, { row_grid: grid }) => (grid && product(grid) > product(best) ? grid : best), [0, 0]);
  if (!product(view.cells)) view.cells = run.latent;
  const reference = view.images.reference, kept = new Map();
  const once = (key, make) => { if (!kept.has(key)) kept.set(key, make()); return kept.get(key); };
  view.colours = reference && view.ref_grid ? (grid) => once(`colours ${grid}`, () => cellColours(reference, grid, 0, view.window)) : null;
  view.painted = ({ grid, row_grid: kept }, frame) => once(`painted ${grid} ${kept} ${frame}`, () => sample(cellColours(view.images.generated, grid, pictureFrame(run, view.images.generated, frame)), grid, kept, 3));
  view.patches = ({ grid, row_grid: kept }, frame) => once(`patches ${grid} ${kept} ${frame}`, () => sample(view.inside(grid, frame) ?? Array(product(grid)).fill(true), grid, kept, 1));
  view.inside = (grid, frame = 0) => view.images.mask && once(`inside ${grid} ${frame}`, () => Array.from(cellShares(view.images.mask, grid, pictureFrame(run, view.images.mask, frame)), (share) => share > 0.5));
  view.outside = (grid) => once(`outside ${grid}`, () => Array.from(cellShares(view.images.reference_mask, grid, 0, view.window), (share) => share <= 0.5));
  view.bits = (role, frame = 0) => once(`bits ${role} ${frame}`, () => maskBits(view.images[role], pictureFrame(run, view.images[role], frame)));
  return view;
}

/** What the patches have whose rows are kept: every n-th of a layer's. */
function sample(values, [h, w], [n, m], channels) {
  const at = (i, all, some) => Math.floor((i * all) / some) + Math.floor(Math.floor(all / some) / 2), out = [];
  for (let y = 0; y < n; y++) for (let x = 0; x < m; x++) for (let c = 0; c < channels; c++) out.push(values[channels * (at(y, h, n) * w + at(x, w, m)) + c]);
  return out;
}

/** Which frame of a picture goes with a shown frame: a picture of one frame goes with all. */
export const pictureFrame = (run, picture, frame) => (picture.frames === run.facts.frames.length ? frame : Math.floor((frame * picture.frames) / run.facts.frames.length));

function maskBits({ data, height, width, channels }, frame) {
  const from = frame * height * width * channels;
  return Uint8Array.from({ length: height * width }, (_, i) => (data[from + i * channels] > 127 ? 1 : 0));
}

/** Fills a view: maps, statistics and scores first (`view.maps`), then rows of P (`view.ready`). */
export function loadView(run, view) {
  if (view.loading) return view.loading;
  const { files } = run, code = (l) => String(l).padStart(3, "0");
  const stored = async (path, shape) => {
    if (!files.has(path)) return null;
    const [{ data, shape: own }, { data: max }] = await Promise.all([files.read(path), files.read(`${path}_max`)]);
    return { data, max, ...shape(own) };
  };
  const places = ([, heads, ...rest]) => ({ heads, cells: product(rest) });
  const rows = (shape) => ({ tokens: shape.at(-1), rows: product(shape.slice(-4, -1)) });
  const fill = async (name, key, shape) => Promise.all(view.layers.map(async (layer, l) => { layer[key] = await stored(`${view.path}/${name}_${code(l)}`, shape); }));
  const first = async () => {
    if (files.has(`${view.path}/scores`)) view.scores = (await files.read(`${view.path}/scores`)).data;
    if (files.has(`${view.path}/truth`)) { const { data, shape } = await files.read(`${view.path}/truth`); view.truthOf = truthReader(data, shape); }
    await Promise.all(view.layers.map(async (layer, l) => { layer.stats = files.has(`${view.path}/stats_${code(l)}`) ? (await files.read(`${view.path}/stats_${code(l)}`)).data : null; }));
    await Promise.all([fill("r2g", "r2g", places), fill("g2r", "g2r", places), fill("g2r_masked", "g2r_masked", places), fill("words", "words", places)]);
    view.maps = true;
  };
  view.loading = first().then(async () => {
    await Promise.all([fill("rows", "rows", rows), fill("rows_heads", "rowsHeads", rows), fill("rows_times", "rowsTimes", rows)]);
    view.ready = true;
  });
  return view.loading;
}

/** Where a patch of the latent grid should have looked, as shares of the reference; null where that is not known. */
const truthReader = (data, [, h, w]) => (frame, [y, x], [H, W]) => {
  const at = 2 * ((frame * h + Math.floor((y * h) / H)) * w + Math.floor((x * w) / W));
  return Number.isFinite(data[at]) && Number.isFinite(data[at + 1]) ? { y: data[at], x: data[at + 1] } : null;
};

/** In what two views differ that cannot be laid over each other; null where nothing does. */
export function differences(a, b) {
  const grid = (values) => (values ? values.join(" × ") : "no places");
  if (!b) return "B has no such view";
  if (`${a.latent}` !== `${b.latent}`) return `the picture has ${grid(a.latent)} patches in A and ${grid(b.latent)} in B`;
  if (a.layers.length !== b.layers.length) return `A has ${a.layers.length} layers and B has ${b.layers.length}`;
  if (`${a.ref_grid}` !== `${b.ref_grid}` || a.tokens !== b.tokens) return `the reference has ${grid(a.ref_grid)} (${a.tokens} tokens) in A and ${grid(b.ref_grid)} (${b.tokens}) in B`;
  for (const [l, layer] of a.layers.entries()) {
    const other = b.layers[l];
    if (`${layer.grid}` !== `${other.grid}`) return `layer ${layer.short} has ${grid(layer.grid)} patches in A and ${grid(other.grid)} in B`;
    if (layer.heads !== other.heads) return `layer ${layer.short} has ${layer.heads} heads in A and ${other.heads} in B`;
  }
  return `${a.cells}` === `${b.cells}` ? null : `rows are kept of ${grid(a.cells)} patches in A and of ${grid(b.cells)} in B`;
}

/** The overview inside another exported page: its text is parsed, nothing of it is shown or run. */
export function overviewIn(html) {
  const node = new DOMParser().parseFromString(html, "text/html").getElementById("overview");
  if (!node) throw new Error("the file holds no overview; drop a page that `i2am view run.zarr -o run.html` wrote");
  return node.textContent;
}
