// Saves any panel as a picture: PNG from a canvas, SVG with its text and marks as vectors. Each panel also opens at full size.
import { $, el } from "./dom.js";
import { block, look, sheet } from "./draw.js";
import { change, page, state } from "./state.js";

const MARGIN = 16;
const escape = (text) => String(text).replace(/[&<>"]/g, (each) => `&#${each.charCodeAt(0)};`);
const short = (values) => values.map((value) => Number(value.toFixed(2))).join(" ");

/** What panels use of a canvas's pen, written as SVG; pictures become PNG inside it. */
export class VectorPen {
  constructor() { Object.assign(this, { parts: [], path: "", fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, font: "11px sans-serif", textAlign: "left", textBaseline: "middle", imageSmoothingEnabled: true }); }
  add(name, attributes, content = "") { this.parts.push(`<${name} ${Object.entries(attributes).map(([key, value]) => `${key}="${escape(value)}"`).join(" ")}>${escape(content)}</${name}>`); }
  beginPath() { this.path = ""; }
  moveTo(...to) { this.path += `M${short(to)}`; }
  lineTo(...to) { this.path += `L${short(to)}`; }
  bezierCurveTo(...to) { this.path += `C${short(to)}`; }
  rect(x, y, width, height) { this.path += `M${short([x, y])}h${short([width])}v${short([height])}h${short([-width])}z`; }
  arc(x, y, r) { this.path += `M${short([x - r, y])}a${short([r, r])} 0 1 0 ${short([2 * r, 0])}a${short([r, r])} 0 1 0 ${short([-2 * r, 0])}z`; }
  stroke() { this.add("path", { d: this.path, fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth }); }
  fill() { this.add("path", { d: this.path, fill: this.fillStyle }); }
  fillRect(...box) { this.beginPath(); this.rect(...box); this.fill(); }
  strokeRect(...box) { this.beginPath(); this.rect(...box); this.stroke(); }
  fillText(text, x, y) {
    const [, weight, size, family] = /^(\d+ )?([\d.]+)px (.*)$/.exec(this.font);
    this.add("text", { x, y: y + 0.34 * size, "font-family": family, "font-size": size, "font-weight": weight?.trim() ?? 400, "text-anchor": { left: "start", center: "middle", right: "end" }[this.textAlign], fill: this.fillStyle }, text);
  }
  drawImage(image, x, y, width, height) { this.add("image", { x, y, width, height, preserveAspectRatio: "none", "image-rendering": this.imageSmoothingEnabled ? "auto" : "pixelated", href: image.toDataURL() }); }
}

export function svgOf({ width, height, paint }) {
  const pen = new VectorPen(), box = [-MARGIN, -MARGIN, width + 2 * MARGIN, height + 2 * MARGIN];
  block(pen, look.paper, ...box);
  paint(pen);
  return new Blob([`<svg xmlns="http://www.w3.org/2000/svg" width="${box[2]}" height="${box[3]}" viewBox="${box.join(" ")}">\n${pen.parts.join("\n")}\n</svg>\n`], { type: "image/svg+xml" });
}

export function pngOf({ width, height, paint }, scale = 2) {
  const canvas = sheet(scale * (width + 2 * MARGIN), scale * (height + 2 * MARGIN)), pen = canvas.getContext("2d");
  block(pen, look.paper, 0, 0, canvas.width, canvas.height);
  pen.setTransform(scale, 0, 0, scale, scale * MARGIN, scale * MARGIN);
  paint(pen);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function download(blob, name) {
  const href = URL.createObjectURL(blob);
  el("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10000);
}

/** Gives each panel a menu: full size, PNG and SVG. `pictures` makes each panel's picture of now. */
export function mountPanels(pictures) {
  for (const panel of document.querySelectorAll(".panel")) {
    const item = (title, act) => el("button", { type: "button", onclick: async () => { menu.open = false; await act(); } }, title);
    const save = (kind, make) => item(`Save as ${kind.toUpperCase()}`, async () => download(await make(pictures[panel.id]()), `${(page.view.run.facts.trace.name ?? "run").replace(/\.(zarr|zip)+$/, "")}-${panel.id}.${kind}`));
    const menu = el("details", { className: "tools" }, el("summary", { "aria-label": `Enlarge or save: ${panel.getAttribute("aria-label")}` }, "⋯"), el("div", {}, item("Full size (F)", () => enlarge(panel.id)), save("png", pngOf), save("svg", svgOf)));
    addEventListener("pointerdown", (e) => { if (!menu.contains(e.target)) menu.open = false; });
    panel.querySelector("figcaption, .row").append(menu);
  }
}

export const enlarge = (name) => change({ panel: state.panel === name ? null : name });
export function drawPanels() {
  document.body.classList.toggle("full", state.panel !== null);
  for (const panel of document.querySelectorAll(".panel")) panel.classList.toggle("full", panel.id === state.panel);
}
/** The panel that has the focus, or lies under the pointer; else the pictures. */
export const panelInUse = () => (document.activeElement?.closest?.(".panel") ?? document.querySelector(".panel:hover") ?? $("stage")).id;
