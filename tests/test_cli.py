"""The command line: every verb, every exit code, and errors that people can act on."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, digits, shadow, the_lab  # noqa: F401, the_lab is the fixture lab
from build import Model
from PIL import Image

from shadownet.cli import main

VERBS = ("keygen", "convert", "run", "verify", "inspect", "seal", "schemes", "doctor", "demo")
DONE, VERDICT, USER, BROKEN = 0, 1, 2, 3  # DESIGN 7

Cli = Callable[..., SimpleNamespace]


@pytest.fixture
def cli(lab: Lab, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process: ``cli("run", bundle, ..., code=2)`` checks exit code and error style."""
    monkeypatch.setenv("SHADOWNET_KEY", str(lab.key))

    def run(*arguments: Any, code: int = DONE, usage: bool = False) -> SimpleNamespace:
        capfd.readouterr()
        try:
            got = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            got = stop.code
        out, err = capfd.readouterr()
        assert got == code, err
        check_style(err, code, usage)
        return SimpleNamespace(out=out, err=err)

    return run


def check_style(err: str, code: int, usage: bool = False) -> None:
    """``shadownet: error: …`` and then ``hint: …`` at the end of stderr; a traceback never."""
    assert "Traceback" not in err and ": None" not in err
    lines = err.strip().splitlines()
    errors = [line for line in lines if re.match(r"shadownet( \w+)?: error: \S", line)]
    if code in (VERDICT, USER, BROKEN):
        assert len(errors) == 1, err
        behind = lines[lines.index(errors[0]) + 1 :]
        assert usage or not behind or (len(behind) == 1 and behind[0].startswith("hint: ")), err
    else:
        assert not errors, err


@pytest.fixture
def x(tmp_path: Path) -> Path:
    """Three digits."""
    return saved(tmp_path / "x.npy", digits()[:3])


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


# Help, usage and streams


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(cli: Cli, verb: str) -> None:
    result = cli(*verb.split(), "-h")
    assert result.out.startswith(f"usage: shadownet {verb}".rstrip()) and result.err == ""
    if verb:
        assert "--json" in result.out
    else:
        assert all(name in result.out for name in VERBS)


@pytest.mark.parametrize("arguments", [
    (), ("nonsense",), ("run",), ("run", "b"), ("run", "b", "--input", "x", "--masks", "-1"),
    ("run", "b", "--input", "x", "--masks", "many"), ("run", "b", "--input", "x", "--enclave-memory", "14Q"),
    ("run", "b", "--input", "x", "--mask-memory", "-5"), ("run", "b", "--input", "x", "--nonsense"),
    ("convert", "m"), ("convert", "m", "-o", "b", "--ratio", "much"), ("seal", "b", "-o", "c"), ("verify", "b"),
])  # fmt: skip
def test_wrong_usage(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments, code=USER, usage=True)
    assert result.out == "" and "usage: shadownet" in result.err


def test_version_and_module_entry_point() -> None:
    done = shadow("--version")
    assert done.returncode == 0 and re.fullmatch(r"shadownet \d+\.\d+\.\d+\n", done.stdout)


def test_results_on_stdout_and_logs_on_stderr(lab: Lab, x: Path, tmp_path: Path) -> None:
    env = {"SHADOWNET_KEY": str(lab.key)}
    for command in (
        ("convert", lab.model("digits_mlp"), "-o", tmp_path / "b.shadow", "--json"),
        ("run", tmp_path / "b.shadow", "--input", x, "--json"),
        ("verify", tmp_path / "b.shadow", "--model", lab.model("digits_mlp"), "--json"),
        ("inspect", tmp_path / "b.shadow", "--json"),
    ):
        done = shadow(*command, env=env)
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        assert all(line.startswith("shadownet: ") for line in done.stderr.splitlines())


def test_an_error_in_a_process_of_its_own(lab: Lab, tmp_path: Path) -> None:
    done = shadow("run", tmp_path / "none", "--input", "x.npy")
    assert done.returncode == BROKEN and done.stdout == ""
    check_style(done.stderr, BROKEN)


def test_output_that_nobody_reads_and_output_that_does_not_fit() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-P", "-m", "shadownet", "schemes", "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == USER, done.stderr
    check_style(done.stderr, USER)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


# keygen


def test_keygen(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "new" / "device.key"
    assert str(path) in cli("keygen", "-o", path).out
    assert re.fullmatch(r"shadownet-device-key-1 [0-9a-f]{64}\n", path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert "exists" in cli("keygen", "-o", path, code=USER).err
    assert path.read_bytes() == before
    second = json.loads(cli("keygen", "--json", "-o", tmp_path / "second.key").out)
    assert Path(second["key"]).read_bytes() != before
    result = cli("keygen", "-o", path / "below", code=USER)  # below a regular file
    assert "cannot write" in result.err
    assert before.decode().split()[1] not in result.err + result.out


def test_keygen_without_a_name_makes_the_users_own(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHADOWNET_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    cli("keygen")
    assert (tmp_path / "shadownet" / "device.key").stat().st_mode & 0o777 == 0o600
    cli("keygen", code=USER)


def test_keygen_on_a_full_disk(cli: Cli, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(60 << 10))
    with pytest.raises(OSError), open(small_disk / "more", "wb") as file:
        file.write(bytes(1 << 20))
    cli("keygen", "-o", small_disk / "device.key", code=USER)
    assert not (small_disk / "device.key").exists()


# convert


def test_convert_makes_a_missing_default_key_and_says_so(
    cli: Cli, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHADOWNET_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    result = cli("convert", lab.model("digits_mlp"), "-o", tmp_path / "b.shadow")
    assert str(tmp_path / "shadownet" / "device.key") in result.err
    assert "ops outsourced" in result.out and "does not protect" in result.out
    # A key that was named must exist: a typing error must not make a new one.
    cli("convert", lab.model("digits_mlp"), "-o", tmp_path / "c", "--key", tmp_path / "no.key", code=BROKEN)
    assert not (tmp_path / "no.key").exists() and not (tmp_path / "c").exists()


def test_convert_and_overwrite(cli: Cli, lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out" / "b.shadow"
    out.parent.mkdir()
    cli("convert", lab.model("digits_mlp"), "-o", out)
    before = (out / "manifest.json").read_bytes()
    assert "--overwrite" in cli("convert", lab.model("digits_mlp"), "-o", out, code=USER).err
    assert (out / "manifest.json").read_bytes() == before
    # A conversion that fails leaves the old bundle as it was.
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"TFL3 no")
    cli("convert", bad, "-o", out, "--overwrite", code=USER)
    assert (out / "manifest.json").read_bytes() == before
    cli("convert", lab.model("digits_mlp"), "-o", out, "--overwrite")
    assert (out / "manifest.json").read_bytes() != before
    assert os.listdir(out.parent) == ["b.shadow"]


def test_convert_never_replaces_what_is_no_bundle(cli: Cli, lab: Lab, tmp_path: Path) -> None:
    model = lab.model("digits_mlp")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("text")
    link.symlink_to(foreign)
    for target in (foreign, file, link):
        for more in ((), ("--overwrite",)):
            cli("convert", model, "-o", target, *more, code=USER)
    assert (foreign / "thesis.txt").read_text() == "years of work" and file.read_text() == "text"
    # Nor a bundle's directory in which somebody keeps other things besides.
    mixed = shutil.copytree(lab.bundle("digits_mlp"), tmp_path / "mixed")
    (mixed / "notes.txt").write_text("mine")
    cli("convert", model, "-o", mixed, "--overwrite", code=USER)
    assert (mixed / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "where", ["file/b.shadow", "missing/b.shadow", "/proc/b.shadow", "/proc/self/b.shadow", "n" * 300]
)
def test_convert_to_where_nothing_can_be_written(cli: Cli, lab: Lab, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("text")
    cli("convert", lab.model("digits_mlp"), "-o", tmp_path / where, code=USER)
    assert os.listdir(tmp_path) == ["file"]


def test_convert_into_the_current_directory(
    cli: Cli, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for target in (".", "", "..", "/"):
        cli("convert", lab.model("digits_mlp"), "-o", target, "--overwrite", code=USER)
    assert os.listdir(tmp_path) == []


def test_convert_on_a_full_disk(cli: Cli, lab: Lab, small_disk: Path) -> None:
    result = cli("convert", lab.model("digits_cnn"), "-o", small_disk / "b.shadow", code=USER)
    assert "space" in result.err or "full" in result.err
    assert os.listdir(small_disk) == []


def test_convert_with_a_limit_on_file_sizes(lab: Lab, tmp_path: Path) -> None:
    # Like a full disk, for users who cannot mount one.
    out = tmp_path / "out"
    out.mkdir()
    command = ("convert", lab.model("digits_cnn"), "-o", out / "b.shadow", "--key", lab.key)
    done = shadow(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)))
    assert done.returncode == USER, done.stderr
    check_style(done.stderr, USER)
    assert os.listdir(out) == []


MODELS = {
    "empty": b"",
    "text": b"hello, world\n" * 10,
    "only a header": b"\x1c\x00\x00\x00TFL3",
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("kind", [*MODELS, "missing", "a directory", "truncated"])
@pytest.mark.parametrize("verb", ["convert", "inspect"])
def test_what_is_no_model(cli: Cli, lab: Lab, tmp_path: Path, kind: str, verb: str) -> None:
    path = tmp_path / "m.tflite"
    if kind == "a directory":
        path.mkdir()
    elif kind == "truncated":
        path.write_bytes(lab.model("digits_mlp").read_bytes()[:5000])
    elif kind in MODELS:
        path.write_bytes(MODELS[kind])
    out = ("-o", tmp_path / "b.shadow") if verb == "convert" else ()
    # A directory may be a bundle, as far as inspect knows.
    cli(verb, path, *out, code=BROKEN if (kind, verb) == ("a directory", "inspect") else USER)
    assert not (tmp_path / "b.shadow").exists()


@pytest.mark.parametrize("options", [
    ("--scheme", "nonsense"), ("--scheme", "shadownet:nonsense"), ("--ratio", "0.5"), ("--ratio", "nan"),
    ("--ratio", "1e9"), ("--ratio", "-1"), ("--outsource", "some"), ("--outsource", "-1"), ("--outsource", "999"),
    ("--outsource", ""), ("--calibration", "none.npy"), ("--calibration", "wrong.npy"), ("--calibration", "empty.npy"),
    ("--calibration", "nan.npy"),
])  # fmt: skip
def test_convert_with_bad_options(
    cli: Cli, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "wrong.npy", np.zeros((2, 5), np.float32))
    saved(tmp_path / "empty.npy", np.zeros((0, 8, 8, 1), np.float32))
    saved(tmp_path / "nan.npy", np.full((2, 8, 8, 1), np.nan, np.float32))
    cli("convert", lab.model("digits_mlp"), "-o", "b.shadow", *options, code=USER)
    assert sorted(os.listdir()) == ["empty.npy", "nan.npy", "wrong.npy"]


# run


def test_run_on_arrays(cli: Cli, lab: Lab, x: Path, tmp_path: Path) -> None:
    bundle = lab.bundle("digits_cnn")
    expected = json.loads(cli("run", bundle, "--input", x, "--output", tmp_path / "y.npy", "--json").out)
    y = np.load(tmp_path / "y.npy")
    assert y.shape == (3, 10) and y.dtype == np.float32
    assert expected["samples"] == 3 and expected["outputs"][0]["top"][0][0] == int(y[2].argmax())
    np.savez(tmp_path / "x.npz", whatever=digits()[:3])
    cli("run", bundle, "--input", tmp_path / "x.npz", "--output", tmp_path / "z.npy")
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), y, atol=1e-4)
    single = saved(tmp_path / "one.npy", digits()[:1])
    text = cli("run", bundle, "--input", single, "--num_runs", 3).out
    assert f"class {y[0].argmax()} " in text and "3 runs" in text


def test_run_on_images_and_sound(cli: Cli, lab: Lab, tmp_path: Path) -> None:
    bundle = lab.bundle("digits_cnn")
    names = []
    for k, suffix in enumerate(("png", "jpg", "bmp")):
        names.append(tmp_path / f"{k}.{suffix}")
        Image.fromarray(np.uint8(255 * digits()[k, :, :, 0])).resize((32, 32)).save(names[-1])
    result = cli("run", bundle, "--input", *names, "--mean", 0, "--std", 255, "--output", tmp_path / "y.npy")
    assert "mean 0" in result.err and "std 255" in result.err
    assert np.load(tmp_path / "y.npy").shape == (3, 10)
    assert "assumed" in cli("run", bundle, "--input", names[0]).err
    sound(tmp_path / "s.wav")
    cli("run", bundle, "--input", tmp_path / "s.wav")
    for wrong in ({"rate": 44100}, {"channels": 2}, {"width": 1}):
        sound(tmp_path / "s.wav", **wrong)
        assert "16 kHz" in cli("run", bundle, "--input", tmp_path / "s.wav", code=USER).err


def sound(path: Path, rate: int = 16000, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setframerate(rate)
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.writeframes(bytes(400 * channels * width))
    return path


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


DIGIT = np.zeros((1, 8, 8, 1), np.float32)
BAD_INPUTS: dict[str, bytes | None] = {
    "missing.npy": None,
    "empty.npy": b"",
    "empty.npz": b"",
    "empty.png": b"",
    "empty.wav": b"",
    "text.npy": b"1 2 3\n",
    "text.npz": b"1 2 3\n",
    "text.jpg": b"1 2 3\n",
    "text.wav": b"1 2 3\n",
    "kind.xyz": b"1 2 3\n",
    "no_suffix": b"1 2 3\n",
    "truncated.npy": _npy(DIGIT)[:-9],
    "truncated.npz": _npz(a=DIGIT)[:-30],
    "damaged.npz": _npz(a=DIGIT)[:150] + b"\xff" * 8 + _npz(a=DIGIT)[158:],
    "zip_magic.npz": b"PK\x03\x04" + bytes(40),
    "an_array.npz": _npy(DIGIT),
    "an_archive.npy": _npz(a=DIGIT),
    "no_arrays.npz": _npz(),
    "two_arrays.npz": _npz(a=DIGIT, b=DIGIT),
    "objects.npy": _npy(np.array([None, 1], object)),
    "words.npy": _npy(np.full((1, 8, 8, 1), "abc")),
    "complex.npy": _npy(np.full((1, 8, 8, 1), 1j, np.complex64)),
    "records.npy": _npy(np.zeros((1, 8, 8, 1), [("a", "f4"), ("b", "i4")])),
    "dates.npy": _npy(np.zeros((1, 8, 8, 1), "datetime64[s]")),
    "shape.npy": _npy(np.zeros((3, 7, 8, 1), np.float32)),
    "scalar.npy": _npy(np.float32(1)),
    "no_samples.npy": _npy(np.zeros((0, 8, 8, 1), np.float32)),
    "nan.npy": _npy(np.full((1, 8, 8, 1), np.nan, np.float32)),
    "inf.npy": _npy(np.full((1, 8, 8, 1), np.inf, np.float32)),
    "too_large_for_float32.npy": _npy(np.full((1, 8, 8, 1), 1e300)),
    "header.npy": _npy(DIGIT).replace(b"(1, 8, 8, 1)", b"(9, 9" + b"9" * 5 + b")"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_run_on_bad_inputs(cli: Cli, lab: Lab, tmp_path: Path, name: str) -> None:
    content = BAD_INPUTS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = cli("run", lab.bundle("digits_mlp"), "--input", tmp_path / name, "--output", tmp_path / "y", code=USER)
    assert result.out == "" and not (tmp_path / "y").exists()


def test_run_on_a_truncated_sound(cli: Cli, lab: Lab, tmp_path: Path) -> None:
    path = sound(tmp_path / "s.wav")
    path.write_bytes(path.read_bytes()[: 44 + 31])  # ends in the middle of a sample
    result = main(["run", str(lab.bundle("digits_mlp")), "--input", str(path)])
    assert result in (DONE, USER)


def test_values_are_never_cut_to_fit_the_type(cli: Cli, lab: Lab, tmp_path: Path) -> None:
    # The int8 network takes int8; fractions would all become 0, and 300 would become 44.
    bundle = lab.bundle("digits_cnn_int8")
    cli("run", bundle, "--input", saved(tmp_path / "ok.npy", np.zeros((1, 8, 8, 1), np.int8)))
    for values in (digits()[:1], np.full((1, 8, 8, 1), 300, np.int32)):
        cli("run", bundle, "--input", saved(tmp_path / "x.npy", values), code=USER)


def test_run_mixed_inputs(cli: Cli, lab: Lab, x: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "i.png")
    for names in ((x, x), (x, tmp_path / "i.png"), (sound(tmp_path / "s.wav"), tmp_path / "s.wav")):
        cli("run", lab.bundle("digits_mlp"), "--input", *names, code=USER)


def test_run_traces_and_records(cli: Cli, lab: Lab, x: Path, tmp_path: Path) -> None:
    bundle, record = lab.bundle("digits_mlp"), tmp_path / "deep" / "record"
    cli("run", bundle, "--input", x, "--trace", tmp_path / "t.json", "--record", record, "--masks", 2)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert len({event["pid"] for event in events}) == 3  # test_timeline.py has the rest
    with np.load(record / "transcript.npz", allow_pickle=False) as transcript:
        assert len(transcript.files) == 3 * 3 * 2  # samples, layers, and both ways
        assert all(transcript[name].dtype == np.float32 for name in transcript.files)
    assert os.listdir(record) == ["transcript.npz"]
    before = (record / "transcript.npz").read_bytes()
    assert "exists" in cli("run", bundle, "--input", x, "--record", record, code=USER).err
    assert (record / "transcript.npz").read_bytes() == before
    for option in ("--trace", "--output", "--record"):
        cli("run", bundle, "--input", x, option, x / "below_a_file", code=USER)
        cli("run", bundle, "--input", x, option, "/proc/nothing/here", code=USER)


def test_run_masks(cli: Cli, lab: Lab, x: Path, tmp_path: Path) -> None:
    def inline(*options: Any) -> int:
        result = cli("run", lab.bundle("digits_mlp"), "--input", x, "--json", *options)
        return json.loads(result.out)["masks_made_inline"]

    assert inline("--masks", 3) == 0
    assert inline("--masks", 1) * 3 == inline() * 2 > 0  # for two of three samples
    assert inline("--masks", 2, "--mask-input") > 0
    too_many = ("--masks", 50, "--mask-memory", "2K")
    assert "--mask-memory" in cli("run", lab.bundle("digits_mlp"), "--input", x, *too_many, code=USER).err


def test_run_limits(cli: Cli, lab: Lab, x: Path) -> None:
    bundle = lab.bundle("digits_cnn")
    for small in ("1", "1M"):
        result = cli("run", bundle, "--input", x, "--enclave-memory", small, code=USER)
        assert "--enclave-memory" in result.err
    cli("run", bundle, "--input", x, "--enclave-memory", "1G", "--num_threads", 2)
    cli("run", bundle, "--input", x, "--num_threads", 0, code=USER)
    cli("run", bundle, "--input", x, "--num_runs", 0, code=USER)


def test_run_output_on_a_full_disk_loses_nothing(cli: Cli, lab: Lab, small_disk: Path, tmp_path: Path) -> None:
    many = saved(tmp_path / "many.npy", digits()[:300])
    (small_disk / "filler").write_bytes(bytes(56 << 10))
    old = saved(small_disk / "y.npy", np.zeros(3, np.float32)).read_bytes()
    cli("run", lab.bundle("digits_mlp"), "--input", many, "--output", small_disk / "y.npy", code=USER)
    assert (small_disk / "y.npy").read_bytes() == old
    cli("run", lab.bundle("digits_mlp"), "--input", many, "--output", small_disk / "z.npy", code=USER)
    assert sorted(os.listdir(small_disk)) == ["filler", "y.npy"]


def two_outputs(path: Path, *names: str) -> Path:
    """A model whose input and outputs have the given names."""
    model = Model(seed=3)
    net = model.net()
    x = net.input(1, 6, name=names[0])
    outputs = [net.dense(x, 4, activation="RELU"), net.dense(x, 5)][: len(names) - 1]
    for index, name in zip(outputs, names[1:], strict=True):
        net.writer.raw.tensors[index].name = name
    net.output(*outputs)
    path.write_bytes(model.content())
    return path


@pytest.mark.parametrize("names", [
    ("in", "first", "second"), ("in", "file", "args"), ("in", "same", "same"), ("in", "a/b", "../c"), ("in", "", "x"),
])  # fmt: skip
def test_run_with_several_outputs(cli: Cli, tmp_path: Path, names: tuple[str, ...]) -> None:
    cli("convert", two_outputs(tmp_path / "m.tflite", *names), "-o", tmp_path / "b.shadow")
    x = saved(tmp_path / "x.npy", np.ones((3, 1, 6), np.float32))
    cli("run", tmp_path / "b.shadow", "--input", x, "--output", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz", allow_pickle=False) as file:
        assert sorted(file[name].shape for name in file.files) == [(3, 4), (3, 5)]


def test_names_with_markup_are_printed_as_they_are(cli: Cli, tmp_path: Path) -> None:
    names = ("[red]in[/red]", "[bold]out", "[/]")
    model, bundle = tmp_path / "[bold]m.tflite", tmp_path / "[link=x]b.shadow"
    two_outputs(model, *names)
    assert "[bold]m.tflite" in cli("inspect", model).out
    assert str(bundle) in cli("convert", model, "-o", bundle).out
    assert str(bundle) in cli("inspect", bundle).out
    x = saved(tmp_path / "x.npy", np.ones((1, 1, 6), np.float32))
    result = cli("run", bundle, "--input", x)
    assert "[bold]out" in result.out and "[/]" in result.out
    wrong = saved(tmp_path / "wrong.npy", np.ones((1, 1, 7), np.float32))
    assert "[red]in[/red]" in cli("run", bundle, "--input", wrong, code=USER).err


# verify, inspect, seal


def test_verify(cli: Cli, lab: Lab, x: Path, tmp_path: Path) -> None:
    bundle, model = lab.bundle("digits_cnn"), lab.model("digits_cnn")
    assert cli("verify", bundle, "--model", model).out.startswith("same on ")
    verdict = json.loads(cli("verify", bundle, "--model", model, "--inputs", x, "--json").out)
    assert verdict["ok"] is True and verdict["samples"] == 3
    other = cli("verify", bundle, "--model", lab.model("digits_mlp"), code=VERDICT)
    assert other.out.startswith("DIFFERENT on ") and "does not compute" in other.err
    verdict = json.loads(cli("verify", bundle, "--model", lab.model("digits_mlp"), "--json", code=VERDICT).out)
    assert verdict["ok"] is False
    cli("verify", bundle, "--model", model, "--inputs", tmp_path / "none.npy", code=USER)
    cli("verify", bundle, "--model", tmp_path / "none.tflite", code=USER)
    cli("verify", tmp_path / "none", "--model", model, code=BROKEN)


@pytest.mark.parametrize("names", [("in", "out"), ("in", "out", "more")])
def test_verify_against_a_model_with_another_interface(
    cli: Cli, lab: Lab, tmp_path: Path, names: tuple[str, ...]
) -> None:
    # Another model is a negative verdict, not a broken bundle and not a crash of the enclave.
    cli("verify", lab.bundle("digits_mlp"), "--model", two_outputs(tmp_path / "m.tflite", *names), code=VERDICT)


def test_inspect(cli: Cli, lab: Lab) -> None:
    text = cli("inspect", lab.model("digits_cnn")).out
    assert "CONV_2D" in text and "accelerator" in text and "trusted segments" in text
    ops = json.loads(cli("inspect", lab.model("digits_cnn"), "--json").out)["entries"][0]["ops"]
    assert {op["where"] for op in ops} == {"enclave", "accelerator"} and all(op["why"] for op in ops)
    text = cli("inspect", lab.bundle("digits_cnn")).out
    assert "accelerator.tflite" in text and "enclave.sealed" in text and "shadownet:paper" in text
    record = json.loads(cli("inspect", lab.bundle("digits_cnn"), "--json").out)
    assert record["manifest"]["format"] == "shadownet-bundle" and record["sizes"]["enclave.sealed"] > 0


def test_inspect_needs_no_key(cli: Cli, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADOWNET_KEY", str(tmp_path / "none"))
    cli("inspect", lab.bundle("digits_cnn"))


def test_seal_for_another_device(cli: Cli, lab: Lab, x: Path, tmp_path: Path) -> None:
    bundle, copy, other = lab.bundle("digits_mlp"), tmp_path / "copy.shadow", tmp_path / "other.key"
    cli("keygen", "-o", other)
    assert str(copy) in cli("seal", bundle, "-o", copy, "--for", other).out
    for name in ("manifest.json", "accelerator.tflite"):
        assert (copy / name).read_bytes() == (bundle / name).read_bytes()
    cli("run", copy, "--input", x, "--key", other, "--output", tmp_path / "y.npy")
    cli("run", bundle, "--input", x, "--output", tmp_path / "z.npy")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.load(tmp_path / "z.npy"), atol=1e-4)
    cli("run", copy, "--input", x, code=BROKEN)  # the old key no longer opens it
    cli("seal", bundle, "-o", copy, "--for", other, code=USER)
    json.loads(cli("seal", bundle, "-o", copy, "--for", other, "--overwrite", "--json").out)
    cli("seal", bundle, "-o", bundle, "--for", other, "--overwrite", code=USER)
    cli("seal", bundle, "-o", tmp_path / "n", "--for", tmp_path / "none.key", code=BROKEN)
    cli("seal", bundle, "-o", tmp_path / "n", "--for", other, "--key", other, code=BROKEN)
    cli("seal", tmp_path / "none", "-o", tmp_path / "n", "--for", other, code=BROKEN)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("verb", ["run", "verify", "seal"])
def test_wrong_key_and_flipped_bit_give_one_message(cli: Cli, lab: Lab, x: Path, tmp_path: Path, verb: str) -> None:
    other = tmp_path / "other.key"
    cli("keygen", "-o", other)
    rest = {
        "run": ("--input", x),
        "verify": ("--model", lab.model("digits_mlp")),
        "seal": ("-o", tmp_path / "new", "--for", other),
    }[verb]
    messages = {cli(verb, lab.bundle("digits_mlp"), *rest, "--key", other, code=BROKEN).err}
    for name, at in (
        ("enclave.sealed", 30),
        ("enclave.sealed", -1),
        ("enclave.sealed", 2000),
        ("accelerator.tflite", 900),
    ):
        copy = shutil.copytree(lab.bundle("digits_mlp"), tmp_path / f"{name}{at}")
        data = bytearray((copy / name).read_bytes())
        data[at] ^= 0x10
        (copy / name).write_bytes(data)
        messages.add(cli(verb, copy, *rest, code=BROKEN).err)
    assert len(messages) == 1, messages
    assert not (tmp_path / "new").exists()


def test_halves_of_two_bundles(cli: Cli, lab: Lab, x: Path, tmp_path: Path) -> None:
    for name in ("manifest.json", "accelerator.tflite", "enclave.sealed"):
        mixed = shutil.copytree(lab.bundle("digits_mlp"), tmp_path / name)
        shutil.copy(lab.bundle("digits_cnn") / name, mixed)
        cli("run", mixed, "--input", x, code=BROKEN)
        (mixed / name).unlink()
        cli("run", mixed, "--input", x, code=BROKEN)


@pytest.mark.parametrize(
    "content", [b"", b"shadownet-device-key-1 abc\n", b"\xff" * 99, b"shadownet-device-key-2 " + b"0" * 64]
)
def test_what_is_no_key(cli: Cli, lab: Lab, x: Path, tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "k"
    key.write_bytes(content)
    assert "keygen" in cli("run", lab.bundle("digits_mlp"), "--input", x, "--key", key, code=BROKEN).err
    cli("run", lab.bundle("digits_mlp"), "--input", x, "--key", tmp_path, code=BROKEN)  # a directory


# schemes, doctor, demo


def test_schemes(cli: Cli) -> None:
    text = cli("schemes").out
    assert "shadownet:paper" in text and "shadownet:artifact" in text
    for scheme in json.loads(cli("schemes", "--json").out):
        assert scheme["weights"] and scheme["activations"] and scheme["leaks"]


def test_doctor(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = json.loads(cli("doctor", "--json").out)
    assert all(check["ok"] or (check["optional"] and check["hint"]) for check in checks)
    assert {"enclave worker", "accelerator worker", "accelerator litert-cpu"} <= {c["what"] for c in checks if c["ok"]}
    readable = tmp_path / "readable.key"
    cli("keygen", "-o", readable)
    readable.chmod(0o644)
    monkeypatch.setenv("SHADOWNET_KEY", str(readable))
    assert main(["doctor"]) == VERDICT  # the table itself says what is wrong


def test_demo(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHADOWNET_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    result = json.loads(cli("demo", "-o", tmp_path / "demo", "--images", 5, "--json").out)
    assert result["images"] == 5 and result["accuracy"]["protected"] == result["accuracy"]["unprotected"]
    with Image.open(result["picture"]) as picture:
        assert picture.width > 300
    text = cli("demo", "-o", tmp_path / "demo", "--images", 3).out
    assert "accuracy" in text and "Not protected" in text
    (tmp_path / "file").write_text("x")
    cli("demo", "-o", tmp_path / "file", code=USER)
    cli("demo", "-o", tmp_path / "none", "--images", 0, code=USER)
