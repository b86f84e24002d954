// Saves any panel as a picture: PNG from a canvas, SVG with its text and marks as vectors. Each panel also opens at full size.
import { $, el } from "./dom.js";
import { sheet } from "./draw.js";
import { change, page, state } from "./state.js";

const escape = (text) => String(text).replace(/[&<>"]/g, (each) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[each]);
const rounded = (value) => Number(value.toFixed(2));

/** The strokes of a canvas's pen, written as SVG; pictures become PNG inside it. */
export class VectorPen {
  constructor(width, height) { Object.assign(this, { width, height, parts: [], path: "", fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, font: "11px sans-serif", textAlign: "left", textBaseline: "alphabetic", imageSmoothingEnabled: true }); }
  beginPath() { this.path = ""; }
  moveTo(x, y) { this.path += `M${rounded(x)} ${rounded(y)}`; }
  lineTo(x, y) { this.path += `L${rounded(x)} ${rounded(y)}`; }
  bezierCurveTo(...points) { this.path += `C${points.map(rounded).join(" ")}`; }
  rect(x, y, width, height) { this.path += `M${rounded(x)} ${rounded(y)}h${rounded(width)}v${rounded(height)}h${rounded(-width)}z`; }
  arc(x, y, radius) { const r = rounded(radius); this.path += `M${rounded(x - radius)} ${rounded(y)}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`; }
  stroke() { this.parts.push(`<path d="${this.path}" fill="none" stroke="${escape(this.strokeStyle)}" stroke-width="${this.lineWidth}"/>`); }
  fill() { this.parts.push(`<path d="${this.path}" fill="${escape(this.fillStyle)}"/>`); }
  fillRect(x, y, width, height) { this.parts.push(`<rect x="${rounded(x)}" y="${rounded(y)}" width="${rounded(width)}" height="${rounded(height)}" fill="${escape(this.fillStyle)}"/>`); }
  strokeRect(x, y, width, height) { const { path } = this; this.beginPath(); this.rect(x, y, width, height); this.stroke(); this.path = path; }
  fillText(text, x, y) {
    const [, weight, size, family] = /^(\d+ )?([\d.]+)px (.*)$/.exec(this.font) ?? [null, "", "11", "sans-serif"], anchor = { left: "start", center: "middle", right: "end" }[this.textAlign];
    const down = this.textBaseline === "middle" ? 0.34 * Number(size) : 0;
    this.parts.push(`<text x="${rounded(x)}" y="${rounded(y + down)}" font-family="${escape(family)}" font-size="${size}"${weight ? ` font-weight="${weight.trim()}"` : ""} text-anchor="${anchor}" fill="${escape(this.fillStyle)}">${escape(text)}</text>`);
  }
  drawImage(image, x, y, width, height) {
    this.parts.push(`<image x="${rounded(x)}" y="${rounded(y)}" width="${rounded(width)}" height="${rounded(height)}" preserveAspectRatio="none"${this.imageSmoothingEnabled ? "" : ' image-rendering="pixelated"'} href="${image.toDataURL("image/png")}"/>`);
  }
  get text() { return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}">\n${this.parts.join("\n")}\n</svg>\n`; }
}

const MARGIN = 16;
/** A pen whose places are moved by the margin. */
function onPaper(pen, { width, height, paint }) {
  pen.fillStyle = page.look.page;
  pen.fillRect(0, 0, width + 2 * MARGIN, height + 2 * MARGIN);
  paint(pen);
}

export function svgOf(picture) {
  const pen = new VectorPen(picture.width + 2 * MARGIN, picture.height + 2 * MARGIN), inner = new VectorPen(picture.width, picture.height);
  onPaper(pen, { ...picture, paint: () => {} });
  picture.paint(inner);
  pen.parts.push(`<g transform="translate(${MARGIN} ${MARGIN})">\n${inner.parts.join("\n")}\n</g>`);
  return new Blob([pen.text], { type: "image/svg+xml" });
}

export function pngOf(picture, scale = 2) {
  const canvas = sheet(Math.round((picture.width + 2 * MARGIN) * scale), Math.round((picture.height + 2 * MARGIN) * scale)), pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  onPaper(pen, { ...picture, paint: () => { pen.translate(MARGIN, MARGIN); picture.paint(pen); } });
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob), link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Gives each panel a menu: full size, PNG, SVG, and what else it offers. `pictures` names each panel's picture of now. */
export function mountPanels(pictures, extras) {
  for (const panel of document.querySelectorAll(".panel")) {
    const name = panel.id, run = () => page.run.facts.trace.name?.replace(/\.(zarr|zip)+$/, "") ?? "run";
    const act = (title, how) => el("button", { type: "button", onclick: async () => { menu.open = false; await how(); } }, title);
    const save = (kind, make) => act(`Save as ${kind.toUpperCase()}`, async () => download(await make(pictures[name]()), `${run()}-${name}.${kind}`));
    const menu = el("details", { className: "tools" }, el("summary", { "aria-label": `Enlarge or save: ${panel.getAttribute("aria-label")}` }, "⋯"),
      el("div", {}, act("Full size (F)", () => enlarge(name)), save("png", pngOf), save("svg", svgOf), (extras[name] ?? []).map(([title, how]) => act(title, how))));
    menu.addEventListener("focusout", (event) => { if (!menu.contains(event.relatedTarget)) setTimeout(() => { if (!menu.contains(document.activeElement)) menu.open = false; }, 150); });
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
