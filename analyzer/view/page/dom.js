// Elements made as nodes: text from a trace only ever becomes a text node.

export const $ = (id) => document.getElementById(id);
const given = (children) => children.flat().filter((child) => child !== null && child !== undefined && child !== false);

/** An element. Properties whose names hold a dash, and `role`, are attributes; children that are null or false are left out. */
export function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) if (key.includes("-") || key === "role") node.setAttribute(key, value); else node[key] = value;
  node.append(...given(children));
  return node;
}

/** Gives a node new children where `key`, which says all that they depend on, is another than before. */
export function refill(node, key, make) {
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...given([make()]));
}
export function setText(node, text) { if (node.textContent !== text) node.textContent = text; }
export function on(id, events) { for (const [name, act] of Object.entries(events)) $(id).addEventListener(name, act); }

/** The cell of a grid that lies under the pointer. */
export function cellUnder(e, [h, w], [top, left, bottom, right] = [0, 0, 1, 1]) {
  const box = e.currentTarget.getBoundingClientRect(), within = (share, n) => Math.min(n - 1, Math.max(0, Math.floor(share * n)));
  return [within(((e.clientY - box.top) / box.height - top) / (bottom - top), h), within(((e.clientX - box.left) / box.width - left) / (right - left), w)];
}

export const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
/** Times an even share, to two figures. */
export const times = (value) => `${value >= 100 ? Math.round(value / 10) * 10 : value < 0.1 ? value.toFixed(2) : Number(value.toPrecision(2))}×`;
export const decimal = (value) => value.toFixed(2).replace("-", "−");
export const plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
/** A word for the shell: quoted where it must be. */
export const quoted = (text) => (/^[\w./,:=@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
