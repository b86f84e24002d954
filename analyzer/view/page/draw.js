// Colour and canvas. Row 0 is the top and column 0 the left; nothing here flips. What is drawn on a `pen` can also be saved as SVG.
import { resize, spline } from "./resample.js";
import { greatest } from "./scores.js";

// Sampled from the published tables: viridis and cividis (CC0), batlow (Crameri, MIT), mako (seaborn, BSD), RdBu (ColorBrewer, Apache).
const STOPS = {
  mako: "0b0405 28192f 3b2f5e 40498e 366a9f 348ba6 38aaac 54c9ad a0dfb9 def5e5",
  ink: "f5f6f1 e3f3e8 a8e0c2 62cbb0 38aaac 348ba6 366a9f 40498e 3b2f5e 28192f 0b0405",
  viridis: "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
  cividis: "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
  batlow: "011959 103f60 1c5a62 3c6d56 687b3e 9d892b d29343 f8a17b fdb7bc faccfa",
  balance: "2166ac 67a9cf f7f7f7 ef8a62 b2182b",
};
export const COLOURS = ["mako", "viridis", "cividis", "batlow"];
const OTHER = "#2166ac";
const tables = new Map();

/** 256 colours, red, green and blue one after the other. */
export function table(name) {
  if (tables.has(name)) return tables.get(name);
  const stops = STOPS[name].split(" ").map((code) => [0, 2, 4].map((i) => parseInt(code.slice(i, i + 2), 16))), out = new Uint8ClampedArray(768);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2), share = at - low;
    for (let c = 0; c < 3; c++) out[3 * i + c] = stops[low][c] * (1 - share) + stops[low + 1][c] * share;
  }
  tables.set(name, out);
  return out;
}

/** The page's colours as its style sheet has them; more contrast with the page is more attention. */
export function readLook(theme, colours) {
  const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(`--${name}`).trim(), dark = theme === "dark", paper = get("paper");
  return {
    name: `${theme} ${colours}`, dark, table: table(colours === "mako" && !dark ? "ink" : colours), paper: [1, 3, 5].map((i) => parseInt(paper.slice(i, i + 2), 16)),
    page: paper, ink: get("ink"), soft: get("soft"), line: get("line"), wash: get("wash"), mark: get("mark"), other: dark ? "#67a9cf" : OTHER, font: getComputedStyle(document.body).fontFamily,
  };
}

export const css = (colours, share) => { const c = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1)); return `rgb(${colours[c]},${colours[c + 1]},${colours[c + 2]})`; };

/** Sets a canvas to a size in CSS pixels, sharp on this screen, and gives its cleared pen. */
export function fit(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2), w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; canvas.style.aspectRatio = `${width} / ${height}`; }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

export function sheet(width, height) { const canvas = document.createElement("canvas"); canvas.width = width; canvas.height = height; return canvas; }
const boards = new Map();
function board(width, height) {
  const key = `${width} ${height}`;
  if (!boards.has(key)) { const canvas = sheet(width, height), pen = canvas.getContext("2d", { willReadFrequently: true }); boards.set(key, { canvas, pen, image: pen.createImageData(width, height) }); }
  return boards.get(key);
}

/** A frame of a picture as a canvas, as it is or stepped back to grey so that colour means attention alone. */
const pictures = new WeakMap();
export function pictureOf(picture, frame, look, calm) {
  if (!pictures.has(picture)) pictures.set(picture, new Map());
  const known = pictures.get(picture), key = `${frame} ${calm ? look.name : ""}`;
  if (known.has(key)) return known.get(key);
  const { height, width, channels, data } = picture, from = frame * height * width * channels, canvas = sheet(width, height), pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const at = from + i * channels, rgb = channels === 3 ? [data[at], data[at + 1], data[at + 2]] : [data[at], data[at], data[at]], grey = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2];
    for (let c = 0; c < 3; c++) { const mixed = 0.35 * rgb[c] + 0.65 * grey; image.data[4 * i + c] = !calm ? rgb[c] : look.dark ? mixed * 0.5 : 0.42 * mixed + 0.58 * look.paper[c]; }
    image.data[4 * i + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  if (known.size > 40) known.clear();
  known.set(key, canvas);
  return canvas;
}

export function drawPicture(pen, box, picture, frame, look, calm = false) {
  pen.imageSmoothingEnabled = picture.width > box.width / 3;
  pen.drawImage(pictureOf(picture, frame, look, calm), box.x, box.y, box.width, box.height);
}

/**
 * A map over its picture. `lens`: heat (colour over a greyed picture) or light (the picture where it was looked at);
 * `signed` is red against blue; `covers` is the part of the picture that the map lies on.
 */
export function overlay(pen, box, picture, frame, values, grid, { lens = "heat", range, look, cells = false, signed = false, covers = [0, 0, 1, 1], side = 160 }) {
  const light = lens === "light" && !signed;
  drawPicture(pen, box, picture, frame, look, !light);
  const [top, left, bottom, right] = covers, tall = (bottom - top) * box.height, broad = (right - left) * box.width, scale = side / Math.max(tall, broad);
  const size = cells ? grid : [Math.max(2, Math.round(tall * scale)), Math.max(2, Math.round(broad * scale))], shown = cells ? values : smooth(values, grid, size, signed);
  const { canvas, pen: ink, image } = board(size[1], size[0]);
  (light ? shade : heat)(image.data, shown, range, look, signed);
  ink.putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = !cells;
  pen.drawImage(canvas, box.x + left * box.width, box.y + top * box.height, broad, tall);
}

/** For the eye: a spline, whose brightest place is then drawn as bright as it is, since smoothing lowers peaks. */
function smooth(values, grid, size, signed) {
  const out = resize(values, grid, size, false, spline), from = greatest(out), to = greatest(values);
  if (!signed && from > 0) for (let i = 0; i < out.length; i++) out[i] *= to / from;
  return out;
}

function heat(out, values, [low, high], look, signed) {
  const colours = signed ? table("balance") : look.table, scale = 1 / (high - low || 1);
  for (let i = 0; i < values.length; i++) {
    const v = Math.min(Math.max((values[i] - low) * scale, 0), 1), u = signed ? Math.abs(2 * v - 1) : v, c = 3 * ((255 * v + 0.5) | 0);
    out[4 * i] = colours[c]; out[4 * i + 1] = colours[c + 1]; out[4 * i + 2] = colours[c + 2];
    out[4 * i + 3] = 245 * Math.min(1, 1.5 * u * (1.3 - 0.55 * u));
  }
}

function shade(out, values, [low, high], look) {
  const scale = 1 / (high - low || 1);
  for (let i = 0; i < values.length; i++) {
    const v = Math.min(Math.max((values[i] - low) * scale, 0), 1);
    out[4 * i] = look.paper[0]; out[4 * i + 1] = look.paper[1]; out[4 * i + 2] = look.paper[2];
    out[4 * i + 3] = 255 * 0.9 * (1 - Math.sqrt(v));
  }
}

/** A small map in colour alone. */
export function tile(pen, box, values, [h, w], { range: [low, high], look, cells = false, signed = false }) {
  const { canvas, pen: ink, image } = board(w, h), colours = signed ? table("balance") : look.table, scale = 255 / (high - low || 1), out = image.data;
  for (let i = 0; i < h * w; i++) {
    const v = (values[i] - low) * scale, c = 3 * (v <= 0 || Number.isNaN(v) ? 0 : v >= 255 ? 255 : (v + 0.5) | 0);
    out[4 * i] = colours[c]; out[4 * i + 1] = colours[c + 1]; out[4 * i + 2] = colours[c + 2]; out[4 * i + 3] = 255;
  }
  ink.putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = !cells;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(canvas, box.x, box.y, box.width, box.height);
}

/** A small picture given as RGB, in its cells. */
export function swatch(pen, box, rgb, [h, w]) {
  const { canvas, pen: ink, image } = board(w, h);
  for (let i = 0; i < h * w; i++) { for (let c = 0; c < 3; c++) image.data[4 * i + c] = rgb[3 * i + c]; image.data[4 * i + 3] = 255; }
  ink.putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(canvas, box.x, box.y, box.width, box.height);
}

/** The edge of a mask as lines (x, y, x, y) in a unit square; runs are joined. */
export function edges(bits, height, width) {
  const at = (y, x) => (y >= 0 && x >= 0 && y < height && x < width ? bits[y * width + x] : 0), lines = [];
  const walk = (n, m, differ, add) => {
    for (let i = 0; i <= n; i++) for (let j = 0, from = -1; j <= m; j++) {
      const here = j < m && differ(i, j);
      if (here && from < 0) from = j;
      if (!here && from >= 0) { add(i, from, j); from = -1; }
    }
  };
  walk(height, width, (y, x) => at(y, x) !== at(y - 1, x), (y, a, b) => lines.push([a / width, y / height, b / width, y / height]));
  walk(width, height, (x, y) => at(y, x) !== at(y, x - 1), (x, a, b) => lines.push([x / width, a / height, x / width, b / height]));
  return lines;
}

export function drawLines(pen, box, lines, styles) {
  for (const [colour, width] of styles) {
    pen.strokeStyle = colour; pen.lineWidth = width; pen.beginPath();
    for (const [x1, y1, x2, y2] of lines) { pen.moveTo(box.x + x1 * box.width, box.y + y1 * box.height); pen.lineTo(box.x + x2 * box.width, box.y + y2 * box.height); }
    pen.stroke();
  }
}

/** A frame, ring or cross that is seen on any ground. */
export function mark(pen, kind, { x, y, width, height = width }, colour, casing = "#fff") {
  for (const [ink, thick] of [[casing, 4], [colour, 2]]) {
    pen.strokeStyle = ink; pen.lineWidth = thick; pen.beginPath();
    if (kind === "cell") pen.rect(x, y, width, height);
    else if (kind === "ring") pen.arc(x, y, width, 0, 2 * Math.PI);
    else { pen.moveTo(x - width, y - width); pen.lineTo(x + width, y + width); pen.moveTo(x + width, y - width); pen.lineTo(x - width, y + width); }
    pen.stroke();
  }
}

/** A scale of colours from left to right. */
export function ramp(pen, box, colours) {
  for (let i = 0; i < box.width; i++) { pen.fillStyle = css(colours, i / (box.width - 1)); pen.fillRect(box.x + i, box.y, 1.5, box.height); }
}

export function write(pen, text, x, y, { look, size = 11, ink = look.soft, align = "left", bold = false, baseline = "middle" }) {
  pen.font = `${bold ? "600 " : ""}${size}px ${look.font}`; pen.fillStyle = ink; pen.textAlign = align; pen.textBaseline = baseline;
  pen.fillText(text, x, y);
}
