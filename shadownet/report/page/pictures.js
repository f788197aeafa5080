// What the accelerator sees: the same feature map in the enclave, as it crosses, and as an attacker gets it back.

function picture(data, text, caption) {
  const content = data ? el("img", { src: `data:image/png;base64,${data}`, alt: text }) : el("div", { class: "nothing" }, caption === "crosses" ? "nothing crosses" : "nothing to take");
  return el("figure", { class: "picture" }, content, el("figcaption", {}, caption));
}

function pictureSection() {
  const shown = REPORT.pictures;
  const method = how(`Op ${shown.op} of ${shown.model}, channel ${shown.channel}, the one that varies most. Each scheme converted the model anew under a key of its own. The attacker repeats the picture ${shown.repeats} times (A15) and runs ${shown.runs} random inputs (A16); the scorer keeps the better, matches channels, and gives sqrt(1 − ρ²), ρ the correlation of the whole map with the true one: 0 % is the map itself, 100 % nothing. Each picture is stretched over its own values, all but the extreme hundredths.`);
  const cards = shown.schemes.map((s) => el("article", { class: "card" },
    el("h3", {}, s.name),
    el("div", { class: "row" },
      picture(shown.inside, `feature map in the enclave`, "in the enclave"),
      picture(s.seen, `the same map as it crosses under ${s.name}`, "crosses"),
      picture(s.stolen, `what an attacker gets back under ${s.name}`, "got back")),
    el("p", { class: "fine" }, s.seen ? [el("b", {}, percent(s.distance)), ` away from the truth, ${s.attack}`, method.cloneNode(true)] : "This layer stays in the enclave.")));
  return section("sees", "What the accelerator sees", ["One picture goes in. A feature map of it exists in the enclave only; the accelerator gets what crosses, and tries to get it back.", method],
    el("p", { class: "warning" }, el("b", {}, "Keep this page as you keep the model. "), "These pictures show its activations. They are here because --pictures asked for them."),
    el("div", { class: "subject" }, picture(shown.input, "the input", "the app’s input"), el("span", { class: "then", "aria-hidden": "true" }, "→"), picture(shown.inside, "one feature map, as the enclave has it", "a feature map in the enclave")),
    el("div", { class: "cards" }, cards));
}
