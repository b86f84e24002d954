// Elements made as nodes. Text from a trace only ever becomes a text node.

export const $ = (id) => document.getElementById(id);

/** An element: properties whose names hold a dash are attributes; null children are left out. */
export function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Replaces what a node holds. */
export function fill(node, ...children) { node.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined)); }

export function setText(node, text) { if (node.textContent !== text) node.textContent = text; }

/** The cell of a grid that lies under the pointer. */
export function cellUnder(event, [h, w], [top, left, bottom, right] = [0, 0, 1, 1]) {
  const box = event.currentTarget.getBoundingClientRect();
  const y = ((event.clientY - box.top) / box.height - top) / (bottom - top), x = ((event.clientX - box.left) / box.width - left) / (right - left);
  const within = (share, n) => Math.min(n - 1, Math.max(0, Math.floor(share * n)));
  return [within(y, h), within(x, w)];
}

export const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;
/** Times an even share, to two figures. */
export const times = (value) => `${value >= 100 ? Math.round(value / 10) * 10 : value < 0.1 ? value.toFixed(2) : Number(value.toPrecision(2))}×`;
export const decimal = (value) => value.toFixed(2).replace("-", "−");
export const ordinal = (n) => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[n % 10] ?? "th"}`;
export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
/** A word for the shell: quoted where it must be. */
export const quoted = (text) => (/^[\w./,:=@%+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
