"""What people see of a model and of a bundle: names that betray nothing, graphs and tables that hold what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from boundary_helpers import Lab, the_lab  # noqa: F401, the_lab is the fixture lab
from build import Model

import shadownet
from shadownet.cli import dot, main
from shadownet.graph import load

AUXILIARY = "x|x_masked|weights_public|y_to_restore|zero_bias|paddings|padded|shape|part"


def test_the_public_half_holds_no_name_of_the_original(lab: Lab, tmp_path: Path) -> None:
    model = Model(seed=7)
    net = model.net("secretgraph")
    x = net.conv(net.input(1, 8, 8, 3, name="camera"), 12, activation="RELU")
    net.output(net.dense(net.mean(x), 5))
    for tensor in net.writer.raw.tensors[1:-1]:
        tensor.name = f"secretproject/{tensor.name}"
    path = tmp_path / "m.tflite"
    path.write_bytes(model.content())
    shadownet.convert(path, tmp_path / "b.shadow", key=lab.key)
    assert b"secretproject" in path.read_bytes()
    for name in ("manifest.json", "accelerator.tflite"):
        content = (tmp_path / "b.shadow" / name).read_bytes()
        assert b"secret" not in content, name
    assert b"camera" in (tmp_path / "b.shadow" / "manifest.json").read_bytes()  # the interface is the app's own


@pytest.mark.parametrize("scheme", ["shadownet", "shadownet:fast", "none"])
def test_public_names_say_layer_kind_and_mask_and_no_more(lab: Lab, tmp_path: Path, scheme: str) -> None:
    shadownet.convert(lab.model("digits_cnn"), tmp_path / "b", scheme=scheme, key=lab.key)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    graph, _ = load(tmp_path / "b" / "accelerator.tflite")
    for layer, found in zip(manifest["layers"], graph.subgraphs, strict=True):
        assert found.name == layer["signature"] and re.fullmatch(r"layer\d{3}_[a-z0-9_]+", found.name)
        names = [t.name for t in found.tensors]
        assert all(re.fullmatch(rf"{found.name}/({AUXILIARY})", name) for name in names), names
        assert found.tensors[found.inputs[0]].name.endswith("/x_masked" if layer["masked"] else "/x")
    assert any(layer["masked"] for layer in manifest["layers"]) == (scheme != "none")


@pytest.mark.parametrize("what", ["model", "bundle"])
def test_formats(lab: Lab, capsys: pytest.CaptureFixture[str], what: str) -> None:
    path = str(lab.model("digits_cnn") if what == "model" else lab.bundle("digits_cnn"))
    out = {}
    for form in ("table", "json", "dot"):
        assert main(["inspect", path, "--format", form]) == 0
        out[form] = capsys.readouterr().out
    assert main(["inspect", path, "--json"]) == 0
    assert capsys.readouterr().out == out["json"]
    record = json.loads(out["json"])
    assert out["dot"].startswith("digraph shadownet {") and out["dot"].rstrip().endswith("}")
    if what == "model":
        ops = record["entries"][0]["ops"]
        assert out["dot"].count("tooltip=") == len(ops)
        assert out["dot"].count(" -> ") == sum(len(op["after"]) for op in ops) >= len(ops) - 1
    else:
        layers = record["manifest"]["layers"]
        assert out["dot"].count(" -> ") == 2 * len(layers)
        assert all(layer["signature"] in out["table"] and layer["signature"] in out["dot"] for layer in layers)
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg", "-o", os.devnull], input=out["dot"], text=True, check=True)


@pytest.mark.parametrize("name", ['"];evil[label="', "a\\", "a\nb", "\x1b[31m", "<b>", "é", '\\"'])
def test_hostile_names_stay_labels(name: str) -> None:
    text = dot.quoted(name)
    body = text[1:-1]
    assert text[0] == text[-1] == '"' and "\n" not in body and "\x1b" not in body
    assert not re.search(r'(?<!\\)(\\\\)*"', body)  # no quote that would end the string
    assert not re.search(r"(?<!\\)(\\\\)*\\$", body)  # nor a backslash that would take the closing one


def test_a_hostile_manifest_is_drawn(tmp_path: Path) -> None:
    layers = [
        {"signature": '"]; x [label="', "input": [-1, "x"], "output": None, "filters": []},
        7,
        {"input": [1 << 40]},
    ]
    drawn = dot.of_bundle({"manifest": {"layers": layers}})
    assert drawn.count(" -> ") == 4 and drawn.count("0B") == 4 and "; x [" not in drawn.replace('\\"]; x [', "")
