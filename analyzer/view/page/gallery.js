// The gallery of a folder of traces: a card a run, sorted by any score. Whatever a trace says becomes text, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const number = (value) => (value === null || value === undefined ? "–" : value.toFixed(3).replace("-", "−"));

/** The gallery that the page carries, or that the server hands out. */
async function load() {
  const node = $("gallery");
  if (!node.dataset.src) return JSON.parse(node.textContent);
  const response = await fetch(node.dataset.src);
  if (!response.ok) throw new Error(await response.text());
  return response.json();
}

/** A line with a tick for every run, the mean as a dot and its interval as a bar. */
function strip(metric, cards) {
  const values = cards.map((card) => card.scores[metric.name]).filter((value) => value !== undefined && value !== null);
  const low = Math.min(...values), high = Math.max(...values), across = (value) => (high > low ? (96 * (value - low)) / (high - low) + 2 : 50);
  const svg = drawn("svg", { viewBox: "0 0 100 18", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const value of values) svg.append(drawn("line", { class: "tick", x1: across(value), x2: across(value), y1: 4, y2: 14 }));
  if (metric.low !== null) svg.append(drawn("line", { class: "bar", x1: across(metric.low), x2: across(metric.high), y1: 9, y2: 9 }));
  svg.append(drawn("ellipse", { class: "mean", cx: across(metric.mean), cy: 9, rx: 0.9, ry: 3.5 }));
  return svg;
}

function showMeans(metrics, cards) {
  for (const metric of metrics) {
    const row = element("tr"), name = element("th", metric.name, { scope: "row" }), line = element("td");
    name.append(element("small", metric.meaning));
    line.append(strip(metric, cards));
    const interval = metric.low === null ? "–" : `${number(metric.low)} to ${number(metric.high)}`;
    row.append(name, line, element("td", number(metric.mean)), element("td", interval), element("td", String(metric.count)));
    $("means").tBodies[0].append(row);
  }
  $("means").hidden = metrics.length === 0;
}

function picture(source, caption, name) {
  const figure = element("figure");
  figure.append(element("img", "", { src: source, alt: `${caption} of ${name}`, loading: "lazy" }), element("figcaption", caption));
  return figure;
}

function makeCard(card, metrics, sorted) {
  const made = card.href ? element("a", "", { class: "card", href: card.href }) : element("div", "", { class: "card" });
  made.append(element("h2", card.name), element("p", card.error ?? card.facts));
  if (card.error !== null) {
    made.classList.add("broken");
    return made;
  }
  const pictures = element("div", "", { class: "pictures" }), scores = element("dl");
  if (card.images.generated) pictures.append(picture(card.images.generated, "generated", card.name));
  if (card.images.r2g) pictures.append(picture(card.images.r2g, "R2G", card.name));
  for (const metric of metrics) {
    if (!(metric.name in card.scores)) continue;
    const classes = metric.name === sorted ? { class: "sorted" } : {};
    scores.append(element("dt", metric.name, classes), element("dd", number(card.scores[metric.name]), classes));
  }
  made.append(pictures, scores);
  return made;
}

/** Cards in the order that is asked for; those that lack the score come last either way. */
function ordered(cards, by, down) {
  const value = (card) => (by === "name" ? card.name : card.scores[by] ?? null);
  return cards.toSorted((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return down ? -order : order;
  });
}

function show(gallery) {
  const { cards, metrics } = gallery, broken = cards.filter((card) => card.error !== null).length;
  const state = new URLSearchParams(location.hash.slice(1));
  document.title = `i2am · ${gallery.title}`;
  $("what").textContent = gallery.title;
  const runs = (count) => `${count} ${count === 1 ? "run" : "runs"}`;
  $("sentence").textContent = [`${runs(cards.length)}.`, broken ? `${runs(broken)} could not be read.` : ""].join(" ").trim();
  $("note").textContent = gallery.note ?? "";
  $("note").hidden = !gallery.note;
  showMeans(metrics, cards);
  for (const name of ["name", ...metrics.map((metric) => metric.name)]) $("sort").append(element("option", name, { value: name }));
  $("sort").value = state.get("sort");
  if ($("sort").selectedIndex < 0) $("sort").value = "name";
  let down = state.get("order") === "down";
  const update = () => {
    const by = $("sort").value, wanted = $("filter").value.toLowerCase();
    $("order").textContent = by === "name" ? (down ? "Z to A" : "A to Z") : down ? "greatest first" : "least first";
    const shown = ordered(cards, by, down).filter((card) => card.name.toLowerCase().includes(wanted));
    $("cards").replaceChildren(...shown.map((card) => {
      const item = element("li");
      item.append(makeCard(card, metrics, by));
      return item;
    }));
    const asked = new URLSearchParams([...(by === "name" ? [] : [["sort", by]]), ...(down ? [["order", "down"]] : [])]).toString();
    try {
      history.replaceState(null, "", asked ? `#${asked}` : location.pathname + location.search);
    } catch { /* a frame without an address keeps no state */ }
  };
  $("sort").addEventListener("change", update);
  $("filter").addEventListener("input", update);
  $("order").addEventListener("click", () => { down = !down; update(); });
  $("tools").hidden = false;
  update();
}

$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});

const ready = (is) => { document.documentElement.dataset.ready = is; };
load().then(show).then(() => ready("yes")).catch((error) => {
  $("sentence").textContent = `The gallery could not be shown: ${error.message}`;
  ready("failed");
});
