// Colour and canvas. Row 0 is the top and column 0 the left; nothing here flips. What is drawn on a `pen` can also be saved as SVG.
import { resize, spline } from "./resample.js";
import { greatest } from "./lists.js";

// Sampled from the published tables mako (seaborn, BSD) and RdBu (ColorBrewer, Apache). Perceptual, safe for colour-blind readers, and they print.
const STOPS = {
  mako: "0b0405 28192f 3b2f5e 40498e 366a9f 348ba6 38aaac 54c9ad a0dfb9 def5e5",
  ink: "f5f6f1 e3f3e8 a8e0c2 62cbb0 38aaac 348ba6 366a9f 40498e 3b2f5e 28192f 0b0405",
  balance: "2166ac 67a9cf f7f7f7 ef8a62 b2182b",
};
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

/** The page's colours, as its style sheet has them; more contrast with the page is more attention. */
export const look = {};
export function setLook(theme) {
  const style = getComputedStyle(document.documentElement), dark = theme === "dark";
  for (const name of ["paper", "ink", "soft", "line", "wash", "mark", "other"]) look[name] = style.getPropertyValue(`--${name}`).trim();
  Object.assign(look, { name: theme, dark, table: table(dark ? "mako" : "ink"), ground: [1, 3, 5].map((i) => parseInt(look.paper.slice(i, i + 2), 16)), font: getComputedStyle(document.body).fontFamily });
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
/** Draws pixels that `fill` writes (red, green, blue, opacity) on a box. */
function drawPixels(pen, box, [h, w], smooth, fill) {
  const key = `${h} ${w}`;
  if (!boards.has(key)) { const canvas = sheet(w, h), ink = canvas.getContext("2d", { willReadFrequently: true }); boards.set(key, { canvas, ink, image: ink.createImageData(w, h) }); }
  const { canvas, ink, image } = boards.get(key);
  fill(image.data);
  ink.putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = smooth; pen.imageSmoothingQuality = "high";
  pen.drawImage(canvas, box.x, box.y, box.width, box.height);
}

/** A frame of a picture as a canvas, as it is or stepped back to grey so that colour means attention alone. */
const pictures = new WeakMap();
function pictureOf(picture, frame, calm) {
  const known = pictures.get(picture) ?? pictures.set(picture, new Map()).get(picture), key = `${frame} ${calm && look.name}`;
  if (!known.has(key)) known.set(key, makePicture(picture, frame, calm));
  return known.get(key);
}
function makePicture({ height, width, channels, data }, frame, calm) {
  const canvas = sheet(width, height), pen = canvas.getContext("2d"), image = pen.createImageData(width, height), out = image.data, step = channels === 3 ? 1 : 0;
  for (let i = 0, at = frame * height * width * channels; i < out.length; i += 4, at += channels) {
    const grey = 0.65 * (0.3 * data[at] + 0.59 * data[at + step] + 0.11 * data[at + 2 * step]);
    for (let c = 0; c < 3; c++) {
      const value = data[at + c * step], quiet = 0.35 * value + grey;
      out[i + c] = !calm ? value : look.dark ? 0.5 * quiet : 0.42 * quiet + 0.58 * look.ground[c];
    }
    out[i + 3] = 255;
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

export function drawPicture(pen, box, picture, frame, calm = false) {
  pen.imageSmoothingEnabled = picture.width > box.width / 3;
  pen.drawImage(pictureOf(picture, frame, calm), box.x, box.y, box.width, box.height);
}

/**
 * A map over its picture. `lens`: heat (colour over a greyed picture) or light (the picture where it was looked at);
 * `signed` is red against blue; `covers` is the part of the picture that the map lies on.
 */
export function overlay(pen, box, picture, frame, values, grid, { lens = "heat", range, cells = false, signed = false, covers: [top, left, bottom, right] = [0, 0, 1, 1], side = 160 }) {
  if (box.width < 2) return; // in a frame that is not shown
  const light = lens === "light" && !signed, inner = { x: box.x + left * box.width, y: box.y + top * box.height, width: (right - left) * box.width, height: (bottom - top) * box.height };
  const scale = side / Math.max(inner.width, inner.height), size = cells ? grid : [inner.height, inner.width].map((length) => Math.max(2, Math.round(length * scale)));
  drawPicture(pen, box, picture, frame, !light);
  drawPixels(pen, inner, size, !cells, (out) => (light ? shade : heat)(out, cells ? values : smooth(values, grid, size, signed), range, signed));
}

/** For the eye: a spline, whose brightest place is then drawn as bright as it is, since smoothing lowers peaks. */
function smooth(values, grid, size, signed) {
  const out = resize(values, grid, size, false, spline), scale = signed ? 1 : greatest(values) / (greatest(out) || 1);
  return out.map((value) => value * scale);
}

/** Visits values as shares of a range. */
function shares(values, [low, high], visit) {
  const scale = 1 / (high - low || 1);
  for (let i = 0; i < values.length; i++) visit(4 * i, Math.min(Math.max((values[i] - low) * scale, 0), 1) || 0);
}
const ink = (out, i, colours, share) => { const c = 3 * ((255 * share + 0.5) | 0); out[i] = colours[c]; out[i + 1] = colours[c + 1]; out[i + 2] = colours[c + 2]; };

function heat(out, values, range, signed) {
  const colours = signed ? table("balance") : look.table;
  shares(values, range, (i, share) => { const u = signed ? Math.abs(2 * share - 1) : share; ink(out, i, colours, share); out[i + 3] = 245 * Math.min(1, 1.5 * u * (1.3 - 0.55 * u)); });
}
function shade(out, values, range) {
  shares(values, range, (i, share) => { ink(out, i, look.ground, 0); out[i + 3] = 230 * (1 - Math.sqrt(share)); });
}

/** A small map in colour alone. */
export function tile(pen, box, values, grid, { range, cells = false, signed = false }) {
  const colours = signed ? table("balance") : look.table;
  drawPixels(pen, box, grid, !cells, (out) => shares(values, range, (i, share) => { ink(out, i, colours, share); out[i + 3] = 255; }));
}

/** A small picture given as RGB, in its cells. */
export function swatch(pen, box, rgb, grid) {
  drawPixels(pen, box, grid, false, (out) => { for (let i = 0; 3 * i < rgb.length; i++) { for (let c = 0; c < 3; c++) out[4 * i + c] = rgb[3 * i + c]; out[4 * i + 3] = 255; } });
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

export function frame(pen, { x, y, width, height }, ink, thick) { pen.strokeStyle = ink; pen.lineWidth = thick; pen.strokeRect(x, y, width, height); }
export function block(pen, ink, ...box) { pen.fillStyle = ink; pen.fillRect(...box); }
export function dot(pen, x, y, radius, ink) { pen.fillStyle = ink; pen.beginPath(); pen.arc(x, y, radius, 0, 2 * Math.PI); pen.fill(); }

/** A scale of colours from left to right. */
export function ramp(pen, box, colours) {
  for (let i = 0; i < box.width; i++) block(pen, css(colours, i / (box.width - 1)), box.x + i, box.y, 1.5, box.height);
}

export function write(pen, text, x, y, { size = 11, ink = look.soft, align = "left", bold = false } = {}) {
  pen.font = `${bold ? "600 " : ""}${size}px ${look.font}`; pen.fillStyle = ink; pen.textAlign = align; pen.textBaseline = "middle";
  pen.fillText(text, x, y);
}
