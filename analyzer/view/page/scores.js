// Scores of maps and rows: IMACS, the match of copied colours, evenness, peaks. No DOM; `imacs` of the analyzer is their measure.
import { mean, range, span } from "./lists.js";
import { resize } from "./resample.js";

/** The greatest value and the centre of its cell, as shares of the picture; `window` is what the grid covers of it. */
export function peak(values, [h, w], [top, left, bottom, right] = [0, 0, 1, 1]) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return {
    token: best,
    y: top + ((Math.floor(best / w) + 0.5) / h) * (bottom - top),
    x: left + (((best % w) + 0.5) / w) * (right - left),
    value: values[best],
  };
}

/** IMACS of one map against a mask (0 or 1, at the picture's size), over the part of the picture that the map covers. */
export function imacs(map, grid, mask, [H, W], window = [0, 0, 1, 1], penalty = 3, threshold = 0.4) {
  const placed = lay(map, grid, [H, W], window);
  let inside = 0, outside = 0, area = 0;
  for (let i = 0; i < placed.length; i++) {
    const value = placed[i] > threshold ? placed[i] : 0;
    if (mask[i]) { inside += value; area++; } else outside += value;
  }
  return area && area < placed.length ? inside / area - (penalty * outside) / (placed.length - area) : NaN;
}

/** A map on its picture, scaled to 0..1 by its own least and greatest value; one that is constant up to rounding is 0. */
function lay(map, grid, [H, W], window) {
  const [top, left, bottom, right] = window.map((share, i) => Math.round(share * (i % 2 ? W : H))), out = new Float64Array(H * W);
  const [least, most] = span(map);
  if (most - least <= 1e-6 * Math.max(Math.abs(least), Math.abs(most))) return out;
  const size = [bottom - top, right - left], shown = resize(map, grid, size);
  const rows = [Math.max(top, 0), Math.min(bottom, H)], columns = [Math.max(left, 0), Math.min(right, W)];
  let low = Infinity, high = -Infinity;
  const visit = (act) => { for (let y = rows[0]; y < rows[1]; y++) for (let x = columns[0]; x < columns[1]; x++) act(y * W + x, shown[(y - top) * size[1] + x - left]); };
  visit((_, value) => { low = Math.min(low, value); high = Math.max(high, value); });
  if (high - low > 1e-6 * Math.max(Math.abs(low), Math.abs(high))) visit((to, value) => { out[to] = (value - low) / (high - low); });
  return out;
}

/** Correlation of copied colours with painted ones over the cells inside a mask, the mean colours taken out. */
export function agreement(copied, painted, inside) {
  const cells = range(inside.length).filter((i) => inside[i]);
  const centre = (values) => [0, 1, 2].map((c) => mean(cells.map((i) => values[3 * i + c])));
  const a = centre(copied), b = centre(painted);
  let ab = 0, aa = 0, bb = 0;
  for (const i of cells) for (let c = 0; c < 3; c++) {
    const p = copied[3 * i + c] - a[c], q = painted[3 * i + c] - b[c];
    ab += p * q; aa += p * p; bb += q * q;
  }
  return aa > 1e-12 && bb > 1e-12 ? ab / Math.sqrt(aa * bb) : NaN;
}

/** Mean colours of the cells of one frame of a picture, over the part of it that a window covers. RGB, 0 to 255. */
export function cellColours({ height, width, channels, data }, [h, w], frame = 0, [top, left, bottom, right] = [0, 0, 1, 1]) {
  const out = new Float32Array(3 * h * w), from = frame * height * width * channels;
  const edge = (i, n, low, high, size) => Math.min(Math.max(Math.round((low + (i / n) * (high - low)) * size), 0), size);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const y0 = Math.min(edge(y, h, top, bottom, height), height - 1), y1 = Math.max(y0 + 1, edge(y + 1, h, top, bottom, height));
    const x0 = Math.min(edge(x, w, left, right, width), width - 1), x1 = Math.max(x0 + 1, edge(x + 1, w, left, right, width));
    for (let c = 0; c < 3; c++) {
      let total = 0;
      for (let Y = y0; Y < y1; Y++) for (let X = x0; X < x1; X++) total += data[from + (Y * width + X) * channels + (channels === 3 ? c : 0)];
      out[3 * (y * w + x) + c] = total / ((y1 - y0) * (x1 - x0));
    }
  }
  return out;
}
