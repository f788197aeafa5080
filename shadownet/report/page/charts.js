// Where the time goes, and what protection costs.

function track(...parts) {
  const line = el("span", { class: "track" });
  for (const [from, to, kind, title] of parts) {
    const part = el("span", { class: `bar ${kind}`, title });
    part.style.left = `${from * 100}%`;
    part.style.width = `max(1px, ${Math.max(to - from, 0) * 100}%)`;
    line.append(part);
  }
  return line;
}

function timeSection() {
  const { spans, total } = REPORT.timeline;
  const of = (where) => spans.filter((s) => s.where === where);
  const [inside, waits, away] = [of("enclave"), of("wait"), of("accelerator")];
  const sum = (list) => list.reduce((a, s) => a + s.ms, 0);
  const segments = sum(inside.filter((s) => s.name === "trusted segment")), masks = sum(inside.filter((s) => s.name === "make masks"));
  const waiting = sum(waits), layers = Math.max(sum(inside) - segments - masks - waiting, 0);
  const shares = [["waiting for the accelerator", waiting, "accelerator"], ["enclave: mask, check, restore", layers, "enclave"],
    ["enclave: trusted segments", segments, "segment"], ["enclave: making masks", masks, "segment"],
    ["between steps", Math.max(total - waiting - layers - segments - masks, 0), "rest"]].filter(([, ms]) => ms > 0);
  let at = 0;
  const whole = track(...shares.map(([name, ms, kind]) => { const from = at / total; at += ms; return [from, at / total, kind, `${name}: ${time(ms)}`]; }));
  const note = how("The last inference of a trace, in the enclave from its input to its output; a single run scatters, and tracing takes a little itself. The accelerator’s own time is its own word.");
  const byName = new Map(REPORT.steps.map((s, n) => [s.name, n]));
  const within = (list, span) => list.filter((s) => s.name === span.name && s.at + s.ms > span.at && s.at < span.at + span.ms);
  const rows = inside.map((span) => {
    const place = (s, kind) => [s.at / total, (s.at + s.ms) / total, kind];
    const [waited, computed] = [within(waits, span), within(away, span)];
    const said = `${span.name}: ${time(span.ms)}${waited.length ? `, of which ${time(sum(waited))} waiting` : ""}${computed.length ? `; the accelerator computes ${time(sum(computed))}` : ""}`;
    const step = byName.get(span.name);
    return el("li", {}, el("button", { type: "button", "aria-label": said, title: said, click: () => { if (known(step)) select(step, "time"); } },
      el("span", { class: "label" }, cut(span.name, 30)),
      track(place(span, "enclave"), ...waited.map((s) => place(s, "wait")), ...computed.map((s) => place(s, "accelerator"))), el("span", { class: "ms" }, time(span.ms))));
  });
  const ticks = el("div", { class: "axis", "aria-hidden": "true" }, el("span", { class: "label" }), el("span", { class: "ticks" }, [0, 0.25, 0.5, 0.75, 1].map((t) => el("span", {}, time(total * t)))), el("span", { class: "ms" }));
  return section("time", "One inference", [`${time(total)} in the enclave${waits.length ? `, of which it waits ${time(waiting)}; the accelerator says that it computed for ${time(sum(away))}` : ""}.`, note],
    el("div", { class: "whole" }, whole), el("ul", { class: "shares" }, shares.map(([name, ms, kind]) => el("li", { class: kind }, el("b", {}, percent(ms / total)), ` ${name}, ${time(ms)}`))),
    ticks, el("ol", { class: "waterfall", tabindex: "0", "aria-label": "Waterfall of the inference" }, rows),
    el("ul", { class: "legend below" }, el("li", { class: "enclave" }, "enclave at work"), el("li", { class: "wait" }, "enclave waits"), el("li", { class: "accelerator" }, "accelerator computes")));
}

function bars(group) {
  const most = Math.max(...group.bars.map((b) => Math.max(b.ms || 0, b.high || 0)), 1e-9);
  const rows = group.bars.map((bar, n) => {
    const kind = n === 0 ? "app" : bar.name === "tee" ? "enclave" : "accelerator";
    const parts = known(bar.ms) ? [[0, bar.ms / most, kind, `${bar.name}: ${time(bar.ms)}; ${bar.note}`]] : [];
    if (known(bar.low) && known(bar.high) && bar.low < bar.high) parts.push([bar.low / most, bar.high / most, "whisker", `${time(bar.low)} to ${time(bar.high)}`]);
    return el("li", {}, el("span", { class: "label", title: bar.note }, bar.name === "tee" ? "all in the enclave" : bar.name), track(...parts),
      el("span", { class: "ms" }, known(bar.ms) ? time(bar.ms) : "", bar.ratio && n ? el("b", {}, ` ${times(bar.ratio)}×`) : null));
  });
  const phased = group.bars.filter((b) => b.phases.length && b.crossings);
  return el("figure", {}, el("figcaption", {}, el("b", {}, group.title), el("span", { class: "where" }, group.where), how(group.how)), el("ul", { class: "bars" }, rows),
    group.noisy ? el("p", { class: "warning" }, el("b", {}, "Something else was running. "), "These times scatter too much to rely on; measure again on a quiet machine.") : null, phased.length ? phases(phased) : null);
}

function phases(list) {
  const names = [...new Set(list.flatMap((b) => b.phases.map(([name]) => name)))];
  return el("details", {}, el("summary", {}, "Where their time goes"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "contender"), names.map((n) => el("th", { scope: "col", class: "number" }, n)), el("th", { scope: "col", class: "number" }, "crosses"))),
    el("tbody", {}, list.map((b) => el("tr", {}, el("th", { scope: "row" }, b.name), names.map((n) => { const found = b.phases.find(([name]) => name === n); return el("td", { class: "number" }, found ? time(found[1]) : ""); }), el("td", { class: "number" }, known(b.bytes) ? `${bytes(b.bytes)} in ${b.crossings}` : "")))))));
}

function accuracyOf(group) {
  const rows = group.bars.filter((b) => known(b.share)).map((b, n) => el("li", {}, el("span", { class: "label" }, b.name), track([0, b.share, n ? "accelerator" : "app", b.name]), el("span", { class: "ms" }, el("b", {}, percent(b.share)))));
  return el("figure", {}, el("figcaption", {}, el("b", {}, `Accuracy, ${group.title}`), how(group.how)), el("ul", { class: "bars" }, rows),
    known(group.difference) ? el("p", { class: "fine" }, `Largest difference of an output: ${tiny(group.difference)} of the largest output.`) : null);
}

function verdict(v) {
  return el("p", { class: `verdict ${v.ok ? "ok" : "bad"}` }, el("b", {}, v.ok ? "Same as the original" : "Different from the original"),
    ` on ${v.samples} samples: largest float difference ${tiny(v.worst)} of the largest value, ${percent(v.differing)} of integer elements differ, top class agrees on ${v.agreed} of ${v.compared}.${v.why ? ` ${v.why}` : ""}`);
}

function costSection() {
  const lead = "Beside the unprotected model and the one that runs entirely in the enclave. What was measured here ran on the same cores, so that the enclave is as fast as the accelerator; on a device it is not.";
  const runs = REPORT.runs.map((r) => el("p", {}, `${r.runs} runs, median ${time(r.ms)}; ${bytes(r.bytes)} crossed in ${r.crossings} calls per run.`));
  return section("cost", "What it costs", lead, el("div", { class: "figures" }, REPORT.latency.map(bars), REPORT.accuracy.map(accuracyOf)), runs, REPORT.verdicts.map(verdict));
}
