// Making elements. Data is only ever set as text or as numbers: nothing here parses markup.

const REPORT = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

// Numbers as people read them.
function scaled(value, units, base) {
  let unit = 0;
  while (Math.abs(value) >= base && unit < units.length - 1) { value /= base; unit++; }
  return `${value >= 100 ? Math.round(value) : Number(value.toPrecision(3))}\u00a0${units[unit]}`;
}
const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB"], 1000);
const counted = (value) => (value < 1000 ? String(value) : scaled(value, ["", "k", "M", "G", "T"], 1000));
const time = (value) => (value === 0 ? "0" : value < 1 ? `${Number((value * 1000).toPrecision(3))}\u00a0µs` : `${Number(value.toPrecision(3))}\u00a0ms`);
const percent = (value) => `${value > 0 && value < 0.0995 ? (value * 100).toFixed(1) : value > 0.9995 || value === 0 ? Math.round(value * 100) : (value * 100).toFixed(1)}\u00a0%`;
const tiny = (value) => (value === 0 ? "0" : value.toExponential(1).replace("e-", "e\u2212").replace("e+", "e"));
const times = (value) => value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);
const dims = (shape) => shape.map((d) => (d < 0 ? "?" : d)).join("×");
const known = (value) => value !== null && value !== undefined;

// Footnotes: every number says how it was measured, as a tooltip and at the end of the page.
const NOTES = [];
function how(text) {
  if (!text) return null;
  let at = NOTES.indexOf(text);
  if (at < 0) at = NOTES.push(text) - 1;
  return el("sup", { class: "how" }, el("a", { href: `#how-${at + 1}`, title: text, "aria-label": `How this was measured: note ${at + 1}` }, String(at + 1)));
}

function section(id, title, lead, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), lead ? el("p", { class: "lead" }, lead) : null, ...children);
}

// Selecting a layer: graph, table and waterfall tell each other.
const SELECT = [];
function select(step, from) {
  for (const listener of SELECT) listener(step, from);
}

// Moving among many buttons with the arrow keys: one of them is in the tab order.
function roving(buttons, move) {
  let at = 0;
  const go = (next, focus) => {
    if (next < 0 || next >= buttons.length) return;
    buttons[at].setAttribute("tabindex", "-1");
    at = next;
    buttons[at].setAttribute("tabindex", "0");
    if (focus) buttons[at].focus();
  };
  buttons.forEach((button, n) => {
    button.setAttribute("tabindex", n ? "-1" : "0");
    button.addEventListener("focus", () => go(n, false));
    button.addEventListener("keydown", (event) => {
      const next = move(event.key, n);
      if (next === null) return;
      event.preventDefault();
      go(next, true);
    });
  });
  return go;
}
