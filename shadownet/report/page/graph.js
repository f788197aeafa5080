// The network as a zipper: the enclave on the left, the accelerator on the right, and every crossing between them.
// Long networks continue in the next column.

const NODE = { width: 148, height: 36, gap: 96, row: 58, column: 488, top: 64, left: 56 };
const MOST_STEPS = 3000;
const READABLE = 0.45; // below this scale, texts are left out

const accelerated = (step) => step.out;
// What the enclave does at a step; behind a layer that went out, after checking, restoring and unmasking the answer.
function worksInside(step) {
  const after = step.after.join(" · ");
  if (!step.kind) return after || "segment";
  return step.out ? after || "restore" : [step.kind, after].filter(Boolean).join(" · ");
}
const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

// As many columns as can be read in this width, if that scrolls little; else as many as give an overview of it all.
function places(steps, width, height) {
  let columns = Math.max(1, Math.floor(width / (NODE.column * 0.8)));
  if (Math.ceil(steps.length / columns) * NODE.row > 1.7 * height)
    columns = Math.ceil(Math.sqrt((steps.length * NODE.row * width) / (NODE.column * height)));
  const rows = Math.max(1, Math.ceil(steps.length / columns));
  return { rows, at: steps.map((_, n) => ({
    column: Math.floor(n / rows), row: n % rows,
    x: NODE.left + Math.floor(n / rows) * NODE.column, y: NODE.top + (n % rows) * NODE.row,
  })) };
}

const inside = (place) => ({ x: place.x, y: place.y + NODE.row / 2, right: place.x + NODE.width, middle: place.y + NODE.row / 2 + NODE.height / 2 });
const outside = (place) => ({ x: place.x + NODE.width + NODE.gap, y: place.y, middle: place.y + NODE.height / 2 });

function between(from, to, back) { // a smooth line from one node's side to another's
  const x1 = back ? from.x : from.right, x2 = back ? to.right : to.x;
  const bend = (x2 - x1) / 2;
  return `M${x1},${from.middle}C${x1 + bend},${from.middle} ${x2 - bend},${to.middle} ${x2},${to.middle}`;
}
function around(from, to, side) { // through the gutter, for what is not next to each other
  const x = from.x - 14 - side;
  if (from.column === to.column) return `M${from.x},${from.middle}C${x},${from.middle} ${x},${to.middle} ${to.x},${to.middle}`;
  const gutter = to.x - 34 + side / 4, low = from.y + NODE.height + 12, high = NODE.top - 22;
  return `M${from.x + NODE.width / 2},${from.y + NODE.height}V${low - 6}q0,6 6,6H${gutter - 6}q6,0 6,-6V${high + 6}q0,-6 6,-6H${to.x + NODE.width / 2 - 6}q6,0 6,6V${to.y}`;
}

function drawGraph(steps, { rows, at }) {
  const columns = at.length ? at[at.length - 1].column + 1 : 1;
  const size = { width: NODE.left + columns * NODE.column - 40, height: NODE.top + Math.min(rows, steps.length) * NODE.row + 64 };
  const lanes = svg("g", { class: "lanes", "aria-hidden": "true" });
  const edges = svg("g", { class: "edges", "aria-hidden": "true" });
  const nodes = svg("g", {});
  const lines = steps.map(() => []);
  const line = (path, kind, ends, tip = true) => {
    const made = svg("path", { d: path, class: `edge ${kind}`, "marker-end": tip ? `url(#arrow-${kind.split(" ")[0]})` : null });
    edges.append(made);
    for (const end of ends) if (end >= 0) lines[end].push(made);
  };

  for (let c = 0; c < columns; c++) {
    const x = NODE.left + c * NODE.column, height = size.height - 52;
    lanes.append(
      svg("rect", { x: x - 16, y: 34, width: NODE.width + 32 + NODE.gap / 2 - 16, height, rx: 14, class: "lane enclave" }),
      svg("rect", { x: x + NODE.width + NODE.gap / 2, y: 34, width: NODE.width + NODE.gap / 2 + 16, height, rx: 14, class: "lane accelerator" }),
      svg("text", { x: x + NODE.width / 2, y: 26, class: "lane-name enclave" }, "enclave"),
      svg("text", { x: x + NODE.width * 1.5 + NODE.gap, y: 26, class: "lane-name accelerator" }, "accelerator"));
  }

  const input = { x: NODE.left, right: NODE.left + NODE.width, y: 42, middle: 53, column: 0 };
  const anchor = (n) => (n < 0 ? input : { ...inside(at[n]), column: at[n].column });
  nodes.append(svg("g", { class: "node app" },
    svg("rect", { x: input.x + 24, y: 42, width: NODE.width - 48, height: 22, rx: 11 }),
    svg("text", { x: input.x + NODE.width / 2, y: 57, class: "title" }, "app: input")));
  const groups = steps.map((step, n) => {
    const place = at[n], e = { ...inside(place), column: place.column }, a = outside(place);
    const group = svg("g", { class: "step", role: "button", "aria-pressed": "false", "aria-label": spoken(step) });
    if (accelerated(step)) {
      const source = anchor(step.sends), clear = step.masked === false ? " clear" : "";
      if (step.sends === n - 1 && source.column === place.column) line(between(source, a), `out${clear}`, [step.sends, n]);
      else { // from further up: down the side of the lane, then through the gap between two nodes
        line(around(source, { ...e, y: a.middle, middle: a.middle }, Math.min(34, 3 * (n - step.sends))), "in", [step.sends, n], false);
        line(`M${source.column === place.column ? e.x : e.x + NODE.width / 2},${a.middle}H${a.x}`, `out${clear}`, [step.sends, n]);
      }
      line(between({ ...a, right: a.x }, e, true), "back", [n]);
      if (known(step.sent)) {
        edges.append(svg("text", { x: a.x - 9, y: a.middle - 7, class: "crossing" }, bytes(step.sent)));
        edges.append(svg("text", { x: a.x - 9, y: a.middle + 15, class: "crossing" }, bytes(step.received)));
      }
      const right = a.x + NODE.width, low = NODE.height;
      group.append(svg("polygon", { class: "hit", points: `${right},${a.y} ${right},${a.y + low} ${e.x},${e.y + low} ${e.x},${e.y}` }));
      group.append(box(a, "accelerator", step.kind, step.slots ? `${step.slots} filters hide ${step.filters}` : dims(step.output)));
    }
    for (const source of step.reads) {
      if (accelerated(step) && source === step.sends) continue;
      const from = anchor(source);
      if (source === n - 1 && from.column === place.column) line(`M${from.x + NODE.width / 2},${from.y + (source < 0 ? 22 : NODE.height)}V${e.y}`, "in", [source, n]);
      else line(around(from, e, Math.min(34, 3 * (n - source))), "in", [source, n]);
    }
    group.append(box(e, "enclave", worksInside(step), dims(step.output)));
    if (step.gives) {
      group.append(svg("g", { class: "node app" },
        svg("rect", { x: e.x + 24, y: e.y + NODE.height + 8, width: NODE.width - 48, height: 22, rx: 11 }),
        svg("text", { x: e.x + NODE.width / 2, y: e.y + NODE.height + 23, class: "title" }, "app: output")));
    }
    nodes.append(group);
    return group;
  });

  const picture = svg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "group", "aria-label": "Steps of the network in order; arrow keys move between them" }, markers(), lanes, edges, nodes);
  return { picture, groups, lines, size };
}

function markers() {
  return svg("defs", {}, ["out", "back", "in"].map((kind) =>
    svg("marker", { id: `arrow-${kind}`, class: `tip ${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 6, markerHeight: 6, orient: "auto" }, svg("path", { d: "M0,0.5L8,4L0,7.5z" }))));
}
function box(spot, where, title, sub) {
  return svg("g", { class: `node ${where}` },
    svg("rect", { x: spot.x, y: spot.y, width: NODE.width, height: NODE.height, rx: 8 }),
    svg("text", { x: spot.x + NODE.width / 2, y: spot.y + 15, class: "title" }, cut(title, 20)),
    svg("text", { x: spot.x + NODE.width / 2, y: spot.y + 29, class: "sub" }, cut(sub, 26)));
}
function spoken(step) {
  const crossing = step.out && known(step.sent) ? `, ${bytes(step.sent)} out, ${bytes(step.received)} back` : "";
  return `${step.name || worksInside(step)}: ${step.out ? `${step.kind} on the accelerator` : "in the enclave"}${crossing}`;
}

function details(step) {
  const rows = [];
  const add = (name, value, note) => { if (known(value) && value !== "") rows.push([name, value, note]); };
  add("runs", step.out ? "on the accelerator, then in the enclave" : "in the enclave");
  add("input", step.input && dims(step.input));
  add("output", dims(step.output));
  add("in the enclave", step.out ? ["check, restore, unmask", ...step.after].join(" · ") : worksInside(step));
  add("true filters", step.filters);
  add("published filters", step.slots);
  add("numbers", step.numbers);
  add("multiply-adds", known(step.macs) ? counted(step.macs) : null, REPORT.how.macs);
  if (known(step.sent)) {
    add("goes out", `${bytes(step.sent)}, ${step.masked ? "masked" : "in clear: the app’s own input"}`, REPORT.how.bytes);
    add("comes back", bytes(step.received), REPORT.how.bytes);
  }
  if (known(step.accelerator_ms)) add("time", `${time(step.accelerator_ms)} accelerator, ${time(step.enclave_ms)} enclave`, REPORT.how.time);
  if (known(step.error)) add("rounding", tiny(step.error), REPORT.how.error);
  if (step.leak) {
    add("leak", `${percent(step.leak.recovered)} by ${step.leak.attack}`, REPORT.how.leak);
    add("controls", `random ${percent(step.leak.random)}${known(step.leak.public) ? `, public model ${percent(step.leak.public)}` : ""}`, REPORT.how.leak);
  }
  return [el("h3", {}, step.name || "trusted segment"), el("dl", {}, rows.map(([name, value, note]) => [el("dt", {}, name), el("dd", {}, String(value), how(note))]))];
}

function graphSection() {
  const steps = REPORT.steps.slice(0, MOST_STEPS);
  const frame = el("div", { class: "frame", tabindex: "0", role: "region", "aria-label": "Network graph; scroll to move, plus and minus to zoom, 0 to fit" });
  const panel = el("aside", { class: "panel", "aria-live": "polite", "aria-label": "Details of the chosen layer" });
  let drawn = null, scale = 1, fitted = 1, chosen = -1, rows = 0;

  const zoom = (next, x = frame.clientWidth / 2, y = frame.clientHeight / 2) => {
    next = Math.min(Math.max(next, fitted * 0.8), 3);
    const px = (frame.scrollLeft + x) / scale, py = (frame.scrollTop + y) / scale;
    scale = next;
    drawn.picture.setAttribute("width", drawn.size.width * scale);
    drawn.picture.setAttribute("height", drawn.size.height * scale);
    drawn.picture.classList.toggle("far", scale < READABLE);
    frame.scrollTo(px * scale - x, py * scale - y);
  };
  const whole = () => Math.min((frame.clientWidth - 4) / drawn.size.width, Math.min(innerHeight * 0.72, 640) / drawn.size.height, 1.1);
  const fit = () => {
    fitted = whole();
    const wide = Math.min((frame.clientWidth - 4) / drawn.size.width, 1);
    const start = fitted > 0.45 ? Math.max(fitted, wide) : fitted; // a small network scrolls rather than shrinks
    frame.style.height = `min(72vh, 640px, ${Math.ceil(drawn.size.height * start) + 8}px)`;
    zoom(start);
    frame.scrollTo(0, 0);
  };
  const show = (n, from) => {
    if (n >= steps.length) return;
    if (chosen >= 0) { drawn.groups[chosen].setAttribute("aria-pressed", "false"); drawn.lines[chosen].forEach((l) => l.classList.remove("on")); }
    chosen = n;
    drawn.groups[n].setAttribute("aria-pressed", "true");
    drawn.lines[n].forEach((l) => l.classList.add("on"));
    panel.replaceChildren(...details(steps[n]));
    if (from !== "graph") {
      if (scale < READABLE) zoom(0.8);
      const spot = drawn.groups[n].getBBox();
      frame.scrollTo({ left: (spot.x + spot.width / 2) * scale - frame.clientWidth / 2, top: (spot.y + spot.height / 2) * scale - frame.clientHeight / 2 });
    }
  };
  const draw = () => {
    if (!frame.clientWidth) return; // not on the page yet
    const height = Math.min(innerHeight * 0.72, 640);
    const next = places(steps, frame.clientWidth, height);
    if (drawn && next.rows === rows) { fit(); return; }
    rows = next.rows;
    drawn = drawGraph(steps, next);
    frame.replaceChildren(drawn.picture);
    roving(drawn.groups, (key, n) => ({ ArrowDown: n + 1, ArrowRight: n + 1, ArrowUp: n - 1, ArrowLeft: n - 1, Home: 0, End: steps.length - 1 })[key] ?? null);
    drawn.groups.forEach((group, n) => {
      group.addEventListener("click", () => { if (!moved) select(n, "graph"); });
      group.addEventListener("focus", () => { if (n !== chosen) select(n, "keys"); });
    });
    fit();
    const n = chosen >= 0 ? chosen : Math.max(steps.findIndex(accelerated), 0);
    chosen = -1;
    show(n, "graph");
  };

  let moved = false;
  const pointers = new Map();
  let start = null;
  const spread = () => { const [a, b] = [...pointers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
  frame.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    moved = false;
    if (pointers.size === 2) start = { spread: spread(), scale };
    else if (event.pointerType === "mouse" && event.button === 0) start = { x: event.clientX, y: event.clientY, left: frame.scrollLeft, top: frame.scrollTop };
  });
  frame.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId) || !start) return;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2 && start.spread) { moved = true; zoom((start.scale * spread()) / start.spread); }
    else if (known(start.left)) {
      const dx = event.clientX - start.x, dy = event.clientY - start.y;
      if (Math.hypot(dx, dy) > 4) moved = true;
      if (moved) frame.scrollTo(start.left - dx, start.top - dy);
    }
  });
  const up = (event) => { pointers.delete(event.pointerId); start = null; };
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) frame.addEventListener(name, up);
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const spot = frame.getBoundingClientRect();
    zoom(scale * Math.exp(-event.deltaY / 300), event.clientX - spot.left, event.clientY - spot.top);
  }, { passive: false });
  frame.addEventListener("keydown", (event) => {
    const step = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key];
    if (step) zoom(scale * step);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  SELECT.push(show);
  new ResizeObserver(draw).observe(frame);

  const button = (text, name, act) => el("button", { type: "button", "aria-label": name, title: name, click: act }, text);
  const tools = el("div", { class: "tools" }, button("+", "Zoom in", () => zoom(scale * 1.25)), button("−", "Zoom out", () => zoom(scale * 0.8)), button("fit", "Fit the whole network", () => { zoom(fitted); frame.scrollTo(0, 0); }));
  const legend = el("ul", { class: "legend" },
    el("li", { class: "enclave" }, "enclave: secrets, activations, all that is not linear"),
    el("li", { class: "accelerator" }, "accelerator: transformed weights, masked activations"),
    el("li", { class: "app" }, "app: its own input and output"),
    steps.some((s) => s.masked === false) ? el("li", { class: "clear" }, "dashed: crosses in clear") : null);
  const out = steps.filter(accelerated).length;
  const lead = `${out} of ${REPORT.steps.length} steps go out to the accelerator. Each crosses twice: what the enclave sends, and what comes back.`;
  return section("network", "The network", lead, legend, el("div", { class: "graph" }, el("div", { class: "stage" }, frame, tools), panel));
}
