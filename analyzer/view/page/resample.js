// Resampling of maps. Each axis takes a few weighted source pixels for every target pixel, as in `analyzer/numerics/resize.py`.

export const CUBIC = -0.75;
const matrices = new Map();

/** Torch's bicubic resampling: pixel centres, borders repeated, no antialiasing. Every number on the page comes from this one. */
export function bicubic(source, target) {
  return taps("bicubic", source, target, (fraction) => [-1, 0, 1, 2].map((step) => {
    const d = Math.abs(fraction - step);
    return d <= 1 ? ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1 : ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC;
  }));
}

/** A cubic B-spline, for pictures alone: it neither rings nor falls below 0. */
export function spline(source, target) {
  return taps("spline", source, target, (f) => [
    (1 - f) ** 3 / 6, (3 * f ** 3 - 6 * f * f + 4) / 6, (-3 * f ** 3 + 3 * f * f + 3 * f + 1) / 6, f ** 3 / 6,
  ]);
}

function taps(name, source, target, weigh) {
  const key = `${name} ${source} ${target}`;
  if (matrices.has(key)) return matrices.get(key);
  const places = new Int32Array(4 * target), weights = new Float64Array(4 * target);
  for (let i = 0; i < target; i++) {
    const centre = (i + 0.5) * (source / target) - 0.5, first = Math.floor(centre);
    weigh(centre - first).forEach((weight, k) => {
      places[4 * i + k] = Math.min(Math.max(first + k - 1, 0), source - 1);
      weights[4 * i + k] = weight;
    });
  }
  const made = { places, weights };
  matrices.set(key, made);
  return made;
}

/** Values of h x w brought to H x W; `clamp` sets what falls below 0 to 0, as maps do. */
export function resize(values, [h, w], [H, W], clamp = false, kernel = bicubic) {
  if (h === H && w === W) return Float64Array.from(values);
  const wide = w === W ? values : across(values, h, w, W, kernel(w, W));
  const out = h === H ? Float64Array.from(wide) : down(wide, h, H, W, kernel(h, H));
  if (clamp) for (let i = 0; i < out.length; i++) if (out[i] < 0) out[i] = 0;
  return out;
}

function across(values, h, w, W, { places, weights }) {
  const out = new Float64Array(h * W);
  for (let y = 0; y < h; y++) for (let x = 0; x < W; x++) {
    let sum = 0;
    for (let k = 4 * x; k < 4 * x + 4; k++) sum += weights[k] * values[y * w + places[k]];
    out[y * W + x] = sum;
  }
  return out;
}

function down(values, h, H, W, { places, weights }) {
  const out = new Float64Array(H * W);
  for (let y = 0; y < H; y++) for (let k = 4 * y; k < 4 * y + 4; k++) {
    const from = places[k] * W, weight = weights[k];
    for (let x = 0; x < W; x++) out[y * W + x] += weight * values[from + x];
  }
  return out;
}
