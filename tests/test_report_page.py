"""The report's page in a browser: a silent console, nothing from the network, everything works by hand and by key."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import SCRIPT, attack, bench, bundle, inspected, matrix, pictures, simulated, trace

from shadownet.report import documents
from shadownet.report.assemble import assemble
from shadownet.report.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine; make browser brings it", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright; make browser brings it")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)

Page = Any
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield running
        running.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page of these documents. Afterwards: no error, no warning, no request but for the file itself."""
    trouble: list[str] = []
    contexts = []

    def opened(*values: Any, width: int = 1280, scheme: str = "light") -> Page:
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(render(assemble([d for v in values for d in documents.documents(v, "sample.json")])))
        context = browser.new_context(viewport={"width": width, "height": 840}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: trouble.append(dialog.message))
        page.on("request", lambda request: None if _own(request.url, path) else trouble.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert trouble == []


def _own(url: str, path: Path) -> bool:
    return url == path.as_uri() or url.startswith("data:image/png;base64,")


def everything() -> list[Any]:
    accuracy = {"accuracy": {"unprotected": 0.9, "protected": 0.89}, "samples": 100}
    return [inspected(), bundle(), bench(), simulated(), attack(), matrix(), trace(), pictures(), accuracy]


def test_every_part_is_there(show: Open) -> None:
    page = show(*everything())
    titles = page.locator("section > h2").all_inner_texts()
    assert titles == ["The network", "Layers", "One inference", "What it costs", "What leaks",
                      "What the accelerator sees", "How this was measured"]  # fmt: skip
    assert page.title() == "net: shadownet report"
    assert page.locator(".step").count() == 4 and page.locator(".node.accelerator").count() == 3
    assert page.locator(".edge.out").count() == page.locator(".edge.back").count() == 3
    assert page.locator(".edge.out.clear").count() == 1
    assert page.locator(".waterfall li").count() == 3
    assert page.locator("nav a").count() == 7


def test_a_layer_is_chosen_by_click_and_by_key(show: Open) -> None:
    page = show(*everything())
    panel = page.locator(".panel")
    page.locator(".step").nth(1).click()
    assert "layer001_conv_2d" in panel.inner_text() and "75.0 %" in panel.inner_text().replace("\xa0", " ")
    page.keyboard.press("ArrowDown")
    assert "MEAN" in panel.inner_text()
    page.keyboard.press("End")
    assert "layer002_fully_connected" in panel.inner_text()
    assert page.locator(".step[aria-pressed=true]").count() == 1
    page.get_by_role("button", name="layer000_conv_2d", exact=True).click()
    assert "in clear" in panel.inner_text() and page.locator(".layers tr.on").count() == 1


def test_the_graph_zooms(show: Open) -> None:
    page = show(inspected(), bundle())
    width = "document.querySelector('.frame svg').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.get_by_role("button", name="Zoom in").click()
    assert page.evaluate(width) == pytest.approx(1.25 * before, rel=0.01)
    page.locator(".frame").focus()
    page.keyboard.press("-")
    assert page.evaluate(width) == pytest.approx(before, rel=0.01)


def test_a_long_network_is_an_overview_and_comes_near_when_chosen(show: Open) -> None:
    page = show(inspected(repeat=400))
    assert page.locator(".step").count() == 404
    box = page.evaluate("(s => [s.width.baseVal.value, s.height.baseVal.value])(document.querySelector('.frame svg'))")
    frame = page.locator(".frame").bounding_box()
    assert box[0] <= frame["width"] + 1 and box[1] <= frame["height"] + 1
    assert page.locator("svg.far").count() == 1
    page.get_by_role("button", name="layer300_conv_2d", exact=True).click()
    assert page.locator("svg.far").count() == 0
    chosen = page.locator(".step[aria-pressed=true]").bounding_box()
    assert frame["x"] <= chosen["x"] <= frame["x"] + frame["width"]


def test_the_table_sorts_and_filters(show: Open) -> None:
    page = show(*everything())
    names = page.locator(".layers tbody th button")
    page.locator(".layers thead button", has_text="crosses").click()
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("crosses")
    assert names.first.inner_text() == "layer001_conv_2d" and names.last.inner_text() == "MEAN"
    page.locator(".layers thead button", has_text="crosses").click()
    assert names.first.inner_text() == "layer002_fully_connected" and names.last.inner_text() == "MEAN"
    page.get_by_label("Filter by where it runs").select_option("enclave")
    assert names.all_inner_texts() == ["MEAN"] and page.locator(".shown").inner_text() == "1 of 4 steps"
    page.get_by_label("Filter by where it runs").select_option("everywhere")
    page.get_by_label("Filter by name or op").fill("fully")
    assert names.all_inner_texts() == ["layer002_fully_connected"]


def test_the_heat_map_tells_its_cells(show: Open) -> None:
    page = show(matrix())
    cells = page.locator(".heat .cell")
    assert cells.all_inner_texts() == ["0", "80", "1.0", "5.0", "100", "0", "1.0", "5.0"]
    cells.nth(1).click()
    said = page.locator(".said").inner_text().replace("\xa0", " ")
    assert "net, shadownet:paper; A4: 80.0 % ± 24.8 %" in said and "random rows 1.0 %" in said
    page.keyboard.press("ArrowDown")
    assert "slalom; A4: 0 %" in page.locator(".said").inner_text().replace("\xa0", " ")
    assert page.locator(".heat .cell[tabindex='0']").count() == 1
    colours = [cells.nth(n).evaluate("e => getComputedStyle(e).backgroundColor") for n in (0, 1, 4)]
    assert len(set(colours)) == 3


def test_every_measured_number_leads_to_how(show: Open) -> None:
    page = show(*everything())
    for link in page.locator(".how a").all():
        note = link.get_attribute("href")
        assert page.locator(f"{note}").count() == 1
        assert link.get_attribute("title") == page.locator(f"{note}").text_content()
    assert page.locator(".facts .how").count() == page.locator(".facts li").count() == 5


def test_hostile_names_stay_text(show: Open) -> None:
    values = copy.deepcopy(everything())
    for value in values:
        _spoil(value)
    page = show(*values)
    assert page.locator("main script, main iframe, main object, main [onerror], main [onload]").count() == 0
    assert all(
        str(src).startswith("data:image/png;base64,")
        for src in page.eval_on_selector_all("img", "l => l.map(i => i.src)")
    )
    assert page.locator("main").inner_text().count("alert(") >= 5
    page.locator(".step").nth(1).click()
    page.locator(".heat .cell").first.click()


def _spoil(value: Any) -> None:
    """Every name in a document becomes a script."""
    names = {"scheme", "kind", "gate", "model", "environment", "masks", "where"}
    for key, inner in list(value.items()) if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, (dict, list)):
            _spoil(inner)
        elif isinstance(inner, str) and inner and (key in names or key in (0, 1)):
            value[key] = SCRIPT


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_in_both_colours(show: Open, width: int, scheme: str) -> None:
    values = everything()
    values[0]["model"] = values[2]["model"] = values[4]["bundle"] = "long_" * 30
    page = show(*values, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + Number(b), 0) < 200"
    assert page.evaluate(dark) == (scheme == "dark")
    page.locator("#theme").click()
    assert page.evaluate(dark) != (scheme == "dark")


def test_it_prints_whole(show: Open) -> None:
    page = show(*everything())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".tools").is_visible()
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll, .frame, .waterfall')].every(e => e.scrollHeight <= e.clientHeight + 1)"
    )


def test_the_whole_page_is_reached_by_key(show: Open) -> None:
    page = show(*everything())
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('section')?.id"))
    assert {"network", "layers", "time", "cost", "leaks", "sees"} <= reached
    unnamed = "e => !(e.getAttribute('aria-label') || e.alt || e.textContent.trim())"
    controls = "[...document.querySelectorAll('button, input, select, [role=button], img')]"
    assert page.evaluate(f"{controls}.filter({unnamed}).length") == 0
