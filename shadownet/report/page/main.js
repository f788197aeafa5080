// Puts the page together from the parts that this report has.

function themeSwitch() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => button.setAttribute("aria-label", dark() ? "Light colours" : "Dark colours");
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  name();
}

function opening() {
  const bundle = REPORT.bundle;
  const options = bundle ? bundle.options.filter(([, value]) => value !== "none" && value !== "0.0") : [];
  return el("div", { class: "opening" },
    el("h1", {}, REPORT.title),
    el("p", { class: "made" }, bundle ? [el("b", {}, bundle.scheme), ` · ${options.map(([k, v]) => `${k} ${v}`).join(" · ")} · `] : null, `shadownet ${REPORT.version}, ${REPORT.date}`),
    REPORT.facts.length ? el("ul", { class: "facts" }, REPORT.facts.map((f) => el("li", {}, el("span", { class: "what" }, f.label), el("span", { class: "value" }, f.value, how(f.how)), el("span", { class: "note" }, f.note)))) : null,
    el("p", { class: "simulator" }, "A simulator measured this: the enclave is a process, and a process is no hardware isolation."),
    bundle ? el("p", { class: "fine" }, "Everybody may see ", bundle.sizes.filter(([n]) => n !== "enclave.sealed").map(([n, s]) => `${n} (${bytes(s)})`).join(" and "), "; only the enclave opens ", bundle.sizes.filter(([n]) => n === "enclave.sealed").map(([n, s]) => `${n} (${bytes(s)})`).join(""), ".") : null);
}

function closing() {
  return section("how", "How this was measured", null,
    el("ol", { class: "notes" }, NOTES.map((text, n) => el("li", { id: `how-${n + 1}`, tabindex: "-1" }, text))),
    el("details", {}, el("summary", {}, `${REPORT.sources.length} sources`), el("ul", {}, REPORT.sources.map((s) => el("li", {}, `${s.kind}: ${s.file}`)))));
}

const main = document.getElementById("main");
const parts = [
  REPORT.steps.length ? graphSection : null,
  REPORT.steps.length ? tableSection : null,
  REPORT.timeline && REPORT.timeline.spans.length ? timeSection : null,
  REPORT.latency.length || REPORT.accuracy.length || REPORT.runs.length || REPORT.verdicts.length ? costSection : null,
  REPORT.heat.length || REPORT.theft || REPORT.gates.length ? leakSection : null,
  REPORT.pictures ? pictureSection : null,
].filter(Boolean);
document.title = `${REPORT.title}: shadownet report`;
main.append(opening());
for (const part of parts) main.append(part());
main.append(closing());
document.getElementById("nav").append(...[...main.querySelectorAll("section")].map((s) => el("a", { href: `#${s.id}` }, s.querySelector("h2").textContent)));
themeSwitch();
