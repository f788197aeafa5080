// What leaks, as heat maps. Every cell has its number; the colour only helps the eye.

function heatMap(map) {
  const said = el("p", { class: "said", role: "status" }, "Choose a cell for what it says.");
  const buttons = [];
  const cellOf = (row, column, cell) => {
    if (!cell || !known(cell.value)) return el("td", { class: "none" }, cell && cell.note ? el("span", { title: cell.note }, "–") : "");
    const value = Math.min(Math.max(cell.value, 0), 1);
    const full = `${[row.group, row.label].filter(Boolean).join(", ")}; ${column.name}: ${percent(cell.value)}${known(cell.half) ? ` ± ${percent(cell.half)}` : ""}. ${[column.what, cell.note].filter(Boolean).join("; ")}${known(cell.random) && !column.control ? `; random rows ${percent(cell.random)}` : ""}${known(cell.public) && !column.control ? `, public model ${percent(cell.public)}` : ""}.`;
    const button = el("button", { type: "button", class: `cell${value > 0.7 ? " hot" : ""}`, "aria-label": full, title: full, click: () => tell(), focus: () => tell() }, (value * 100).toFixed(value > 0 && value < 0.1 ? 1 : 0));
    const tell = () => { said.textContent = full; };
    button.style.setProperty("--heat", String(value));
    buttons.push(button);
    return el("td", { class: column.control ? "control" : null }, button);
  };
  const width = map.columns.length + 1;
  const groups = [...new Set(map.rows.map((r) => r.group))];
  const bodies = groups.map((group) => el("tbody", {},
    group ? el("tr", { class: "group" }, el("th", { scope: "rowgroup", colspan: width }, el("span", {}, group))) : null,
    map.rows.filter((r) => r.group === group).map((row) => el("tr", {}, el("th", { scope: "row", title: row.label }, cut(row.label, 34)), map.columns.map((column, n) => cellOf(row, column, row.cells[n]))))));
  const table = el("table", { class: "heat" },
    el("thead", {}, el("tr", {}, el("td", {}), map.columns.map((c) => el("th", { scope: "col", class: c.control ? "control" : null, title: c.what }, el("span", {}, c.name))))), bodies);
  if (buttons.length) {
    const spot = buttons.map((b) => ({ row: b.closest("tr").rowIndex, column: b.parentNode.cellIndex }));
    const near = (n, rows) => { // the next cell up or down in the same column
      const hits = spot.map((s, k) => [k, (s.row - spot[n].row) * rows]).filter(([k, d]) => d > 0 && spot[k].column === spot[n].column);
      return hits.length ? hits.reduce((a, b) => (b[1] < a[1] ? b : a))[0] : null;
    };
    roving(buttons, (key, n) => ({ ArrowRight: n + 1, ArrowLeft: n - 1, ArrowDown: near(n, 1), ArrowUp: near(n, -1) })[key] ?? null);
  }
  const attacks = map.columns.filter((c) => !c.control && c.what && c.what !== "scheme");
  const scale = el("div", { class: "scale", "aria-hidden": "true" }, el("span", {}, "0 %"), el("i", {}), el("span", {}, "100 % recovered"));
  return el("figure", { class: "heatmap" }, el("figcaption", {}, el("b", {}, map.title), how(map.how), scale), el("div", { class: "scroll" }, table), said,
    attacks.length ? el("details", {}, el("summary", {}, "What the attacks do"), el("dl", { class: "attacks" }, attacks.map((a) => [el("dt", {}, a.name), el("dd", {}, a.what)]))) : null);
}

function theftOf(theft) {
  return el("figure", {}, el("figcaption", {}, el("b", {}, "The whole model, stolen"), how(theft.how)), el("div", { class: "scroll" },
    el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "model"), theft.columns.map((c) => el("th", { scope: "col", class: "number" }, c)))),
      el("tbody", {}, theft.rows.map((r) => el("tr", {}, el("th", { scope: "row" }, r.label), r.cells.map((v) => el("td", { class: "number" }, known(v) ? percent(v) : ""))))))));
}

function gatesOf(gates) {
  return el("figure", {}, el("figcaption", {}, el("b", {}, "Gates")), el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ["", "gate", "found", "limit", "by"].map((c) => el("th", { scope: "col" }, c)))),
    el("tbody", {}, gates.map((g) => el("tr", {}, el("td", {}, el("b", { class: g.passed ? "ok" : "bad" }, g.passed ? "pass" : "FAIL")), el("th", { scope: "row" }, g.gate), el("td", { class: "number" }, known(g.found) ? g.found.toFixed(3) : ""), el("td", { class: "number" }, known(g.limit) ? g.limit.toFixed(3) : ""), el("td", {}, g.where)))))));
}

function leakSection() {
  const lead = "How much of the model each attack takes, in percent of the filters that went out. Controls stand beside them: what chance takes, and what a public model gives without any attack.";
  return section("leaks", "What leaks", lead, REPORT.gates.length ? gatesOf(REPORT.gates) : null, REPORT.heat.map(heatMap), REPORT.theft ? theftOf(REPORT.theft) : null);
}
