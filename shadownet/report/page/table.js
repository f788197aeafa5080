// A row per step: sortable, filterable, and the same selection as the graph.

// Without the batch of one, which says nothing.
const short = (shape) => dims(shape[0] === 1 && shape.length > 1 ? shape.slice(1) : shape);

function columnsOf(steps) {
  const bar = (value, most) => {
    const made = el("span", { class: "mini", "aria-hidden": "true" });
    made.style.setProperty("--share", String(most ? value / most : 0));
    return made;
  };
  const total = (s) => s.accelerator_ms + s.enclave_ms;
  const slowest = Math.max(...steps.filter((s) => known(s.accelerator_ms)).map(total), 0);
  const widest = Math.max(...steps.filter((s) => known(s.sent)).map((s) => s.sent + s.received), 0);
  const all = [
    { name: "#", value: (s) => s.index, text: (s) => String(s.index + 1), number: true },
    { name: "layer", value: (s) => s.name || worksInside(s), row: true },
    { name: "shapes", value: (s) => s.output.reduce((a, b) => a * b, 1), text: (s) => `${s.input ? `${short(s.input)} → ` : ""}${short(s.output)}`, number: true },
    { name: "filters", value: (s) => s.filters, text: (s) => (s.slots ? `${s.filters} in ${s.slots}` : String(s.filters)), number: true },
    { name: "MACs", value: (s) => s.macs, text: (s) => counted(s.macs), number: true, how: REPORT.how.macs },
    { name: "crosses", value: (s) => (known(s.sent) ? s.sent + s.received : null), show: (s) => [bytes(s.sent + s.received), bar(s.sent + s.received, widest)], number: true, how: REPORT.how.bytes },
    { name: "time", value: (s) => (known(s.accelerator_ms) ? total(s) : null), show: (s) => [time(total(s)), bar(total(s), slowest)], number: true, how: REPORT.how.time },
    { name: "rounding", value: (s) => s.error, text: (s) => tiny(s.error), number: true, how: REPORT.how.error },
    { name: "leak", value: (s) => (s.leak ? s.leak.recovered : null), show: (s) => [`${percent(s.leak.recovered)} `, el("small", {}, s.leak.attack), bar(s.leak.recovered, 1)], number: true, how: REPORT.how.leak },
    { name: "scheme", value: (s) => (s.out && REPORT.bundle ? REPORT.bundle.scheme : null) },
  ];
  return all.filter((c) => steps.some((s) => known(c.value(s)) && c.value(s) !== ""));
}

function tableSection() {
  const steps = REPORT.steps.map((step, index) => ({ ...step, index }));
  const columns = columnsOf(steps);
  const body = el("tbody", {});
  const shown = el("p", { class: "shown", role: "status" });
  const words = el("input", { type: "search", placeholder: "name or op", "aria-label": "Filter by name or op" });
  const where = el("select", { "aria-label": "Filter by where it runs" }, ["everywhere", "accelerator", "enclave"].map((w) => el("option", { value: w }, w)));
  let order = { column: columns[0], up: true };

  const rows = steps.map((step) => {
    const cells = columns.map((c) => {
      const value = c.value(step);
      const content = !known(value) ? "" : c.show ? c.show(step) : c.text ? c.text(step) : String(value);
      if (c.row) return el("th", { scope: "row" }, el("span", { class: `dot ${step.out ? "accelerator" : "enclave"}`, role: "img", "aria-label": step.out ? "on the accelerator" : "in the enclave" }), el("button", { type: "button", title: content, click: () => select(step.index, "table") }, cut(content, 30)));
      return el("td", { class: c.number ? "number" : null }, content);
    });
    return el("tr", {}, cells);
  });
  const update = () => {
    const query = words.value.trim().toLowerCase();
    const chosen = steps.filter((s) => (where.value === "everywhere" || (where.value === "accelerator") === s.out)
      && (!query || `${s.name} ${s.kind} ${s.after.join(" ")}`.toLowerCase().includes(query)));
    const { value } = order.column;
    chosen.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (!known(x) || !known(y)) return Number(known(y)) - Number(known(x)); // what is not known comes last either way
      const d = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
      return order.up ? d : -d;
    });
    body.replaceChildren(...chosen.map((s) => rows[s.index]));
    shown.replaceChildren(`${chosen.length} of ${steps.length} steps`);
    heads.forEach((head, n) => head.setAttribute("aria-sort", columns[n] === order.column ? (order.up ? "ascending" : "descending") : "none"));
  };
  const heads = columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null },
    el("button", { type: "button", click: () => { order = { column, up: order.column === column ? !order.up : !column.number || column.name === "#" }; update(); } }, column.name), how(column.how)));
  words.addEventListener("input", update);
  where.addEventListener("change", update);
  SELECT.push((n) => rows.forEach((row, k) => row.classList.toggle("on", k === n)));
  update();
  const grid = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of layers" },
    el("table", { class: "layers" }, el("caption", {}, "Every step in the order in which it runs"), el("thead", {}, el("tr", {}, heads)), body));
  return section("layers", "Layers", null, el("div", { class: "controls" }, words, where, shown), grid);
}
