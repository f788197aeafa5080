"""The report: what is read, joined and written. The page itself is driven in test_report_page.py."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_samples import SCRIPT, attack, bench, bundle, inspected, matrix, pictures, simulated, trace

import shadownet
from shadownet.cli import main
from shadownet.report import documents
from shadownet.report.assemble import assemble
from shadownet.report.page import render
from shadownet.wire.errors import InputError

Json = dict[str, Any]


def assembled(*values: Any) -> Json:
    return assemble([d for v in values for d in documents.documents(v, "sample.json")])


# What is joined.


def test_steps_get_what_every_verb_says_of_them() -> None:
    report = assembled(inspected(), bundle(), bench(), attack(), {"rounding": {"layer000_conv_2d": 2e-6}})
    first, second, segment, last = report["steps"]
    assert (first["name"], first["sent"], first["received"]) == ("layer000_conv_2d", 4 * 64, 4 * 8 * 8 * 5)
    assert (first["accelerator_ms"], first["enclave_ms"], first["error"]) == (0.5, 0.25, 2e-6)
    assert first["leak"]["attack"] == "A4" and first["leak"]["recovered"] == 0.75 and first["leak"]["random"] == 0.0
    assert (second["input"], second["slots"]) == ([1, 8, 8, 4], 5)
    assert second["reads"] == [0] and second["sends"] == 0 and second["masked"] and not first["masked"]
    assert not segment["out"] and segment["after"] == ["MEAN"] and last["gives"]
    assert report["title"] == "net"


def test_a_layer_that_the_bundle_kept_inside_is_shown_inside() -> None:
    public = bundle()
    del public["manifest"]["layers"][1]
    second = assembled(inspected(), public)["steps"][1]
    assert not second["out"] and "sent" not in second


def test_a_bundle_alone_is_a_chain() -> None:
    steps = assembled(bundle())["steps"]
    assert [s["reads"] for s in steps] == [[-1], [0], [1]] and steps[-1]["gives"]


def test_only_the_last_inference_of_a_trace_is_shown() -> None:
    timeline = assembled(trace(inferences=3))["timeline"]
    shown = [(s["where"], s["name"], round(s["at"], 6), s["ms"]) for s in timeline["spans"]]
    layer = "layer000_conv_2d"
    assert shown == [
        ("enclave", "mask and send", 0.0, 0.05), ("enclave", layer, 0.1, 0.5), ("accelerator", layer, 0.12, 0.38),
        ("wait", layer, 0.15, 0.4), ("enclave", "trusted segment", 0.7, 0.2),
    ]  # fmt: skip
    assert timeline["total"] == pytest.approx(0.9)


def test_without_a_bench_times_come_from_the_trace() -> None:
    step = assembled(inspected(), trace())["steps"][0]
    assert step["accelerator_ms"] == 0.4 and step["enclave_ms"] == pytest.approx(0.1)


def test_a_device_is_beside_what_was_measured() -> None:
    report = assembled(bench(), simulated())
    assert [g["where"] for g in report["latency"]] == ["measured here", "simulated: board", "simulated: server"]
    bar = report["latency"][1]["bars"][2]
    assert (bar["ms"], bar["low"], bar["high"], bar["ratio"], bar["bytes"]) == (8.0, 4.0, 16.0, 4.0, 900)
    assert "not measured" in report["latency"][1]["how"] and "a board" in report["latency"][1]["how"]
    assert [f["value"] for f in report["facts"]] == ["1.70×", "4.00×"]


def test_a_measurement_beside_other_work_is_no_headline() -> None:
    busy = bench()
    busy["rows"][2]["pairwise_ratio"] = [1.5, 30.0, 90.0]
    report = assembled(busy)
    assert report["latency"][0]["noisy"] and not report["facts"] and not assembled(bench())["latency"][0]["noisy"]


def test_the_matrix_has_an_interval_and_controls() -> None:
    (heat,) = assembled(matrix())["heat"]
    assert [c["name"] for c in heat["columns"]] == ["A0", "A4", "A19", "random", "public"]
    row = heat["rows"][0]
    assert row["cells"][1]["value"] == pytest.approx(0.8) and row["cells"][1]["half"] == pytest.approx(0.2484, abs=1e-3)
    assert row["cells"][3]["value"] == 0.01 and row["cells"][4]["value"] == 0.05 and row["cells"][2]["value"] is None
    assert "shares no memory with the victim" in heat["how"]


def test_without_a_public_model_its_column_is_left_out() -> None:
    (heat,) = assembled(attack())["heat"]
    assert [c["name"] for c in heat["columns"]] == ["A0", "A4", "random"] and "No public model" in heat["how"]
    assert all(len(row["cells"]) == 3 for row in heat["rows"])


def test_two_networks_are_one_too_many() -> None:
    with pytest.raises(InputError, match="two results of the kind 'inspect'"):
        assembled(inspected(), inspected())


# Hostile files.

MAKERS: list[Callable[[], Any]] = [inspected, bundle, bench, attack, matrix, trace, pictures, simulated]


@pytest.mark.parametrize("make", MAKERS)
def test_damaged_documents_are_refused(make: Callable[[], Any]) -> None:
    """Every value in turn becomes something else; what comes out is a report or an error of ours."""
    original = make()
    refused = 0
    for path in _paths(original):
        for bad in (None, "<b>", -1, 1e400, [], {}, ["x"], True):
            broken = copy.deepcopy(original)
            place = broken
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = bad
            try:
                page = render(assembled(broken))
            except InputError:
                refused += 1
            else:
                assert "<b>" not in page
    assert refused > 20


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [at] if at else []
    for key, inner in pairs:
        found += _paths(inner, (*at, key))
    return found


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"[1]", b'{"x": 1}', b"\xff\xfe", b"[" * 100_000, b'{"rows": [], "environment": 1}']
)
def test_files_that_are_no_results(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 2
    assert "shadownet: error: " in capsys.readouterr().err and not list(tmp_path.glob("*.html"))


def test_a_file_may_not_be_larger_than_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_FILE", 100)
    (tmp_path / "r.json").write_text(json.dumps(bundle()))
    with pytest.raises(InputError, match="larger than"):
        documents.read([tmp_path / "r.json"])


@pytest.mark.parametrize("bad", ["AAAA", "!", base64.b64encode(b"<svg onload=1>").decode(), 7])
def test_only_png_is_a_picture(bad: Any) -> None:
    hostile = pictures()
    hostile["pictures"]["schemes"][0]["seen"] = bad
    with pytest.raises(InputError, match="damaged"):
        assembled(hostile)


def test_names_are_bounded_and_printable() -> None:
    assert documents.text("a\u202eb\x00c\n") == "a\ufffdb\ufffdc\ufffd"
    assert len(documents.text("x" * 10_000)) == documents.MAX_TEXT
    assert documents.number(math.nan) is None


# The page as text.


def test_data_cannot_end_its_block() -> None:
    hostile = inspected()
    hostile["entries"][0]["steps"][0]["kind"] = SCRIPT
    page = render(assembled(hostile))
    assert "alert(" in page and "</script><script>alert" not in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert not set("<>&") & set(data) and json.loads(data)["steps"][0]["kind"] == SCRIPT


def test_the_policy_names_exactly_this_style_and_script() -> None:
    page = render(assembled(bundle()))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and policy[1].startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy[1]
    for tag in ("style", "script"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)[-1]
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in policy[1]
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//|url\((?!#)|innerHTML|@import", page)


# The verb.


def test_results_make_a_page_and_are_given_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("i.json", inspected()), ("b.json", [bench()]), ("t.json", trace(1))):
        (tmp_path / name).write_text(json.dumps(value))
    files = [str(tmp_path / n) for n in ("i.json", "b.json", "t.json")]
    out = str(tmp_path / "r.html")
    assert main(["report", *files, "-o", out, "--json"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["documents"] == [inspected(), bench(), trace(1)]
    (tmp_path / "again.json").write_text(json.dumps(given))
    assert main(["report", str(tmp_path / "again.json"), "-o", out]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "again.json"), "-o", out, "--overwrite"]) == 0
    assert "net" in Path(out).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json"], "cannot read"),
        (["DIR", "DIR"], "one bundle"),
        (["r.json", "--model", "m.tflite"], "goes with a bundle"),
        (["r.json", "--pictures", "x.png"], "need --model"),
        (["r.json", "-o", "/no/such/folder/r.html"], "no directory"),
    ],
)
def test_the_verb_refuses(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if "-o" in arguments else ["-o", str(tmp_path / "r.html")]
    assert main(["report", *(str(tmp_path) if a == "DIR" else a for a in arguments), *out]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key, and a bundle of the digits network."""
    from enclave import keys

    folder = tmp_path_factory.mktemp("report")
    keys.create(folder / "device.key")
    model = Path(__file__).parent.parent / "models" / "digits" / "digits_cnn.tflite"
    shadownet.convert(model, folder / "m.shadow", key=folder / "device.key")
    return folder


def test_bytes_are_those_that_the_enclave_counts(made: Path) -> None:
    from shadownet.report.collect import Request, collect

    values = collect(Request(made / "m.shadow", key=str(made / "device.key")))
    report = assembled(*json.loads(json.dumps(values)))
    with shadownet.Interpreter(made / "m.shadow", key=made / "device.key") as it:
        it.allocate_tensors()
        it.invoke()
        stats = it.session.stats()
    assert sum(s["sent"] for s in report["steps"]) == stats["bytes_to_accelerator"]
    assert sum(s["received"] for s in report["steps"]) == stats["bytes_from_accelerator"]
    assert len({s["name"] for s in report["timeline"]["spans"] if s["where"] == "accelerator"}) == len(report["steps"])


@pytest.mark.slow
def test_a_bundle_with_its_model_has_everything(
    made: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHADOWNET_KEY", str(made / "device.key"))
    digits = np.load(models / "digits_test.npz")
    np.savez(tmp_path / "d.npz", x_test=digits["x"][:50], y_test=digits["y"][:50])
    np.save(tmp_path / "x.npy", digits["x"][:1])
    given = ["--model", models / "digits_cnn.tflite", "--data", tmp_path / "d.npz", "--pictures", tmp_path / "x.npy"]
    command = ["report", made / "m.shadow", *given, "--schemes", "none,tee,shadownet:paper,slalom", "--json"]
    assert main([*map(str, command), "-o", str(tmp_path / "r.html")]) == 0
    result = json.loads(capsys.readouterr().out)
    report = assemble([d for v in result["documents"] for d in documents.documents(v, "x")])
    out = [s for s in report["steps"] if s["out"]]
    assert out and all(0 < s["error"] < 1e-4 and "leak" in s for s in out)
    assert all(bar["share"] > 0.9 for bar in report["accuracy"][0]["bars"])
    none, tee, paper, slalom = report["pictures"]["schemes"]
    assert none["distance"] < 1e-3 and tee["seen"] is None and none["seen"] == report["pictures"]["inside"]
    assert paper["distance"] < 0.9 < slalom["distance"]
