"""The verbs of the bench: attack, check, arena; the gates files; the pytest plugin."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shadownet
from enclave import keys
from shadownet.attacks.gates import read_gates
from shadownet.cli import main
from shadownet.wire.errors import InputError

pytest_plugins = "pytester"

ROOT = Path(__file__).resolve().parent.parent
VICTIMS = ROOT / "models" / "victims"
MODEL, BASE, DATA = VICTIMS / "mlp_tuned_3.tflite", VICTIMS / "mlp_base.tflite", VICTIMS / "data.npz"

Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key and a bundle of the released code's variant."""
    folder = tmp_path_factory.mktemp("bench")
    keys.create(folder / "device.key")
    shadownet.convert(MODEL, folder / "m.shadow", scheme="shadownet:artifact", key=folder / "device.key")
    return folder


@pytest.fixture
def run(made: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SHADOWNET_KEY", str(made / "device.key"))

    def call(*arguments: Any, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        assert main([str(a) for a in arguments]) == code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return out, err

    return call


def test_attack_says_first_how_bad_it_is(made: Path, run: Run) -> None:
    out, _ = run("attack", made / "m.shadow", "--model", MODEL)
    first, *rest = out.splitlines()
    assert re.search(r"\(shadownet:artifact\): BROKEN\. \d+\.\d% of 58 outsourced filters recovered", first)
    assert any("A4" in line and "public files" in line for line in rest)
    assert "layer001_fully_connected" in out


def test_attack_as_json_has_scores_and_controls(made: Path, run: Run) -> None:
    out, _ = run("attack", made / "m.shadow", "--model", MODEL, "--base", BASE, "--attacks", "A3,a4", "--json")
    found = json.loads(out)
    assert [a["attack"] for a in found["attacks"]] == ["A3", "A4"] and found["lost"] > 0.5
    for attack in found["attacks"]:
        assert attack["null"] == 0.0 and attack["base"] < 0.1 and len(attack["scores"]) == 2
        assert attack["recovered"] > 0.5 and attack["pairs"] > 0.9


def test_attacks_take_part_where_they_are_given_what_they_need(made: Path, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.shadow"
    shadownet.convert(MODEL, other, scheme="shadownet:artifact", key=made / "device.key")
    command = ["attack", made / "m.shadow", "--model", MODEL, "--data", DATA, "--other", other, "--attacks", "A15,A17"]
    out, _ = run(*command)
    assert "attacks that take part" in out and re.search(r"A17 +two bundles", out)
    assert re.search(r"A15 +transcripts, chosen inputs +variance of activations explained +\d", out)
    out, _ = run(*command, "--json")
    weights, averages = json.loads(out)["attacks"]
    assert weights["recovered"] > 0.7 and weights["null"] == 0.0
    assert averages["recovered"] > 0.99 and averages["null"] < 0.3 and averages["queries"] == 32


def test_attack_without_the_truth_scores_nothing(made: Path, run: Run) -> None:
    out, _ = run("attack", made / "m.shadow")
    assert "needs --model" in out.splitlines()[0] and "%" not in out


def test_attack_needs_no_key_for_the_public_half(
    made: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHADOWNET_KEY", str(tmp_path / "none"))
    out, _ = run("attack", made / "m.shadow", "--model", MODEL, "--attacks", "A4", "--json")
    assert json.loads(out)["attacks"][0]["pairs"] is None


def test_attack_hands_back_a_working_model(made: Path, run: Run, tmp_path: Path) -> None:
    stolen = tmp_path / "stolen.tflite"
    out, _ = run("attack", made / "m.shadow", "--model", MODEL, "--data", DATA, "-o", stolen)
    assert "stolen, normalised" in out and stolen.stat().st_size > 10_000
    out, _ = run("inspect", stolen)
    assert "FULLY_CONNECTED" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "A99"], "no attack A99"),
        (["--attacks", ""], "no attack"),
        (["--data", DATA], "need --model"),
        (["--malicious"], "need --model"),
        (["--model", MODEL, "--attacks", "A15"], "A15 needs transcripts and chosen inputs(.|\n)*--data"),
        (["--model", MODEL, "--data", DATA, "--attacks", "A10"], "A10 needs a public model(.|\n)*--base"),
        (["--model", MODEL, "--data", DATA, "--attacks", "A18"], "A18 needs a malicious(.|\n)*--malicious"),
        (["--model", MODEL, "--attacks", "A17"], "A17 needs two bundles(.|\n)*--other"),
        (["--model", VICTIMS / "cnn_scratch.tflite"], "not made from"),
        (["--base", VICTIMS / "cnn_scratch.tflite"], "architecture"),
        (["--transcript", DATA], "not a transcript|no transcript"),
        (["--model", MODEL, "--data", MODEL], "cannot read"),
    ],
)
def test_attack_refuses(made: Path, run: Run, arguments: list[Any], message: str) -> None:
    _, err = run("attack", made / "m.shadow", *arguments, code=2)
    assert re.search(message, err) and "shadownet: error: " in err


def test_the_leak_meter_predicts_for_a_model(run: Run) -> None:
    out, _ = run("attack", MODEL, "--schemes", "shadownet:artifact,shadownet:paper", "--attacks", "A0,A4", "--json")
    artifact, paper = json.loads(out)["predicted"]
    assert artifact["scheme"] == "shadownet:artifact" and artifact["lost"] > 0.9 and len(artifact["layers"]) == 3
    assert paper["lost"] < artifact["lost"]


@pytest.mark.parametrize(
    ("scheme", "activations", "attack"), [("slalom", None, "A0"), ("shadownet:paper", "exact", "A4")]
)
def test_weights_in_fixed_point_are_seen_to_leak(
    scheme: str, activations: str | None, attack: str, made: Path, run: Run, tmp_path: Path
) -> None:
    """Slalom publishes its weights. Integers of another unit than the model's must not make that look safe."""
    shadownet.convert(MODEL, tmp_path / "m.shadow", scheme=scheme, activations=activations, key=made / "device.key")
    out, _ = run("attack", tmp_path / "m.shadow", "--model", MODEL, "--attacks", attack, "--json")
    found = json.loads(out)
    assert found["lost"] > 0.85 and found["attacks"][0]["null"] == 0.0
    file = gates(tmp_path, f'max_filters_recovered = 0.5\nattacks = ["{attack}"]\n')
    run("check", tmp_path / "m.shadow", "--model", MODEL, "--gates", file, code=1)


def test_delta_shows_the_public_model_and_no_more(made: Path, run: Run, tmp_path: Path) -> None:
    """With exact activations every attack on weights scores as the base alone, two bundles or not."""
    bundle, other = tmp_path / "m.shadow", tmp_path / "other.shadow"
    for target in (bundle, other):
        shadownet.convert(MODEL, target, scheme="delta", activations="exact", base=BASE, key=made / "device.key")
    out, _ = run("attack", bundle, "--model", MODEL, "--base", BASE, "--other", other, "--json")
    found = json.loads(out)["attacks"]
    assert {"A0", "A1", "A2", "A6", "A7", "A8", "A9"} <= {one["attack"] for one in found}
    for one in found:
        for score in one["scores"]:
            assert score["rows"]["recovered"] <= score["base"]["recovered"]
            assert score["rows"]["direction"] >= 0.999 * score["base"]["direction"]


def test_the_meter_knows_schemes_that_let_nothing_out_or_need_a_public_model(run: Run) -> None:
    out, err = run("attack", MODEL, "--schemes", "tee,delta,none", "--attacks", "A0", "--json")
    tee, none = json.loads(out)["predicted"]
    assert tee["lost"] == 0.0 and not tee["layers"] and none["lost"] == 1.0
    assert "delta needs a public model" in err


# Gates.


def gates(folder: Path, text: str) -> Path:
    path = folder / "gates.toml"
    path.write_text(text)
    return path


def test_a_gate_that_fails_is_a_negative_verdict(made: Path, run: Run, tmp_path: Path) -> None:
    file = gates(tmp_path, 'max_filters_recovered = 0.05\nmax_layer_recovered = 1.0\nattacks = ["A4"]\n')
    out, _ = run("check", made / "m.shadow", "--model", MODEL, "--gates", file, code=1)
    assert "1 of 2 gates FAILED" in out.splitlines()[0] and re.search(r"FAIL +max_filters_recovered", out)
    out, _ = run("check", made / "m.shadow", "--model", MODEL, "--gates", file, "--json", code=1)
    failed, passed = json.loads(out)["gates"]
    assert not failed["passed"] and failed["found"] > 0.5 and passed["passed"]


def test_gates_on_the_stolen_model(made: Path, run: Run, tmp_path: Path) -> None:
    text = f'data = "{DATA}"\nmax_stolen_accuracy = 0.5\nmax_member_auc = 0.9\nmax_transfer = 1.0\n'
    out, _ = run("check", made / "m.shadow", "--model", MODEL, "--gates", gates(tmp_path, text), code=1)
    assert re.search(r"FAIL +max_stolen_accuracy", out) and re.search(r"pass +max_member_auc", out)


def test_gates_that_hold_pass(made: Path, run: Run, tmp_path: Path) -> None:
    file = gates(tmp_path, 'max_filters_recovered = 0.25\nattacks = ["A0"]\n')
    out, _ = run("check", made / "m.shadow", "--model", MODEL, "--gates", file)
    assert "all gates passed" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no gate"),
        ("max_filters_recoverd = 0.05", "unknown key"),
        ("max_filters_recovered = true", "limits are numbers"),
        ("max_filters_recovered = 0.1\nattacks = 'A4'", "limits are numbers"),
        ("max_filters_recovered = 0.1\nattacks = ['A77']", "no attack A77"),
        ("max_filters_recovered = 0.1\nqueries = -1", "counts are whole"),
        ("max_stolen_accuracy = 0.1", "need data"),
        ("max_filters_recovered =", "not TOML"),
    ],
)
def test_gates_files_are_checked(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_gates(gates(tmp_path, text))


def test_the_tool_is_the_verb(made: Path, tmp_path: Path) -> None:
    file = gates(tmp_path, 'max_filters_recovered = 0.05\nattacks = ["A4"]\n')
    tool = [sys.executable, ROOT / "tools" / "check_security.py"]
    done = subprocess.run([*tool, made / "m.shadow", "--model", MODEL, "--gates", file], capture_output=True, text=True)
    assert done.returncode == 1 and "FAIL" in done.stdout


# The pytest plugin.


def test_the_plugin_adds_a_test_for_each_gates_file(
    made: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHADOWNET_KEY", str(made / "device.key"))
    names = f'bundle = "{made / "m.shadow"}"\nmodel = "{MODEL}"\nattacks = ["A0"]\n'
    (pytester.path / "holds.toml").write_text("max_filters_recovered = 0.25\n" + names)
    (pytester.path / "fails.toml").write_text("max_filters_recovered = 0.05\n" + names)
    pytester.makeini("[pytest]\nshadownet_gates = holds.toml\n")
    pytester.makepyfile(
        f"""
        import pytest
        from shadownet.pytest_plugin import GatesFailed

        def test_fixture(shadownet_check):
            shadownet_check({str(made / "m.shadow")!r}, {str(MODEL)!r}, "holds.toml")
            with pytest.raises(GatesFailed, match="max_filters_recovered"):
                shadownet_check({str(made / "m.shadow")!r}, {str(MODEL)!r}, "fails.toml")
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)
    failed = pytester.runpytest_inprocess("--shadownet-gates", "fails.toml")
    failed.assert_outcomes(passed=2, failed=1)
    failed.stdout.fnmatch_lines(["*leaks too much:*", "max_filters_recovered: * is above 0.050*"])


def test_the_plugin_is_light() -> None:
    program = "import sys, shadownet.pytest_plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "scipy", "ai_edge_litert", "tensorflow", "enclave"} & set(loaded)


# The arena.


def test_the_arena_resumes_and_reports(run: Run, tmp_path: Path) -> None:
    command = [
        "arena", "--models", VICTIMS / "mlp_tuned_3.tflite", "--schemes", "shadownet:artifact", "--attacks", "A0,A3,A4",
        "--seeds", 2, "--backend", "sequential", "--out", tmp_path / "out", "--report", tmp_path / "RESULTS.md",
    ]  # fmt: skip
    out, _ = run(*command, "--json")
    result = json.loads(out)
    assert result["new"] == 3 and {c["attack"] for c in result["cells"]} == {"A0", "A3", "A4"}
    assert all(len(c["runs"]) == 2 and c["base"] == "mlp_base" for c in result["cells"])
    (tmp_path / "out" / "mlp_tuned_3.shadownet-artifact.A0.json").unlink()
    out, _ = run(*command, "--json")
    assert json.loads(out)["new"] == 1
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.index("## What breaks") < text.index("## Weights") and "± " in text and "shadownet 0." in text
    assert not list((tmp_path / "out").glob(".*"))
    out, _ = run("arena", "--out", tmp_path / "out")
    assert "0 of them new" in out and (tmp_path / "out" / "MATRIX.md").exists()


def test_the_arena_steals_whole_models(run: Run, tmp_path: Path) -> None:
    run(
        "arena", "--models", VICTIMS / "mlp_scratch.tflite", "--schemes", "shadownet:artifact", "--attacks", "A13",
        "--data", DATA, "--budgets", "1%", "--seeds", 1, "--backend", "sequential", "--out", tmp_path / "out",
    )  # fmt: skip
    (cell,) = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("*.json")]
    assert {(r["knows"], r["budget"]) for r in cell["runs"]} == {
        (knows, "1%") for knows in ("files", "files and transcript", "files and public model")
    }
    assert next(r for r in cell["runs"] if r["budget"] == "1%")["queries"] == 7
    assert "files and transcript" in (tmp_path / "out" / "MATRIX.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", MODEL, "--schemes", "nonsense"], "no scheme"),
        (["--models", MODEL, "--schemes", "shadownet+soft"], "no way"),
        (["--models", "missing.tflite"], "cannot read"),
        (["--models", MODEL, "--attacks", "A13"], "need --data"),
        ([], "no results"),
    ],
)
def test_the_arena_refuses(run: Run, tmp_path: Path, arguments: list[Any], message: str) -> None:
    _, err = run("arena", "--out", tmp_path / "out", *arguments, code=2)
    assert message in err
