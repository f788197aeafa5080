"""An older version of a bundle, put back: refused by a counter that the device keeps outside the bundle."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, digits, infer, shadow, the_lab

import shadownet
from enclave import keys, sealing
from enclave.freshness import TRIAL, Counters
from shadownet import bundle
from shadownet.wire.errors import BundleError, MismatchError

LINEAGE = "ab" * 16
__all__ = ["the_lab"]


@pytest.fixture
def counters(device_key: Path) -> Counters:
    return Counters(device_key, keys.load(device_key))


def header(folder: Path) -> sealing.Header:
    with open(folder / "enclave.sealed", "rb") as file:
        return sealing.read_header(file)[0]


def convert(lab: Lab, target: Path, **options: Any) -> sealing.Header:
    shadownet.convert(lab.model("digits_mlp"), target, outsource="none", **options)
    return header(target)


def opened(folder: Path) -> None:
    with shadownet.Interpreter(folder) as it:
        it.allocate_tensors()
        infer(it, digits()[:1])


# The counter


def test_it_goes_up_and_never_back(counters: Counters) -> None:
    for serial in (1, 1, 2, 5, 5):
        counters.admit(LINEAGE, serial)
    for serial in (4, 1):
        with pytest.raises(BundleError, match=f"version {serial}; .* version 5") as caught:
            counters.admit(LINEAGE, serial)
        assert "--overwrite" in caught.value.hint
    assert counters.seen(LINEAGE) == 5
    counters.admit("cd" * 16, 1)  # another bundle has its own
    assert counters.seen(LINEAGE) == 5 and counters.seen("cd" * 16) == 1


def test_only_its_owner_reads_it_and_nothing_else_is_left(counters: Counters) -> None:
    counters.admit(LINEAGE, 1)
    assert stat.S_IMODE(counters.path.stat().st_mode) == 0o600
    assert sorted(os.listdir(counters.path.parent)) == ["device.key", "device.key.counters"]


def test_a_trial_is_not_counted(counters: Counters) -> None:
    counters.admit(LINEAGE, 3)
    counters.admit(LINEAGE, TRIAL)
    counters.admit("cd" * 16, TRIAL)
    assert json.loads(counters.path.read_text())["counters"] == {LINEAGE: 3}


def test_the_key_may_be_reached_by_another_name(counters: Counters, device_key: Path, tmp_path: Path) -> None:
    counters.admit(LINEAGE, 2)
    (tmp_path / "link.key").symlink_to(device_key)
    with pytest.raises(BundleError, match="version 1"):
        Counters(tmp_path / "link.key", keys.load(device_key)).admit(LINEAGE, 1)


CHANGES = {
    "a lower number": lambda text: text.replace('": 5', '": 4'),
    "an entry less": lambda text: json.dumps(json.loads(text) | {"counters": {}}),
    "no mac": lambda text: json.dumps({"counters": json.loads(text)["counters"]}),
    "a mac that is none": lambda text: json.dumps(json.loads(text) | {"mac": None}),
    "not ASCII": lambda text: json.dumps(json.loads(text) | {"mac": "ä"}),
    "a list": lambda text: "[]",
    "nothing": lambda text: "",
    "no JSON": lambda text: text[:-1],
    "deeply nested": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_counters_are_refused(name: str, counters: Counters) -> None:
    counters.admit(LINEAGE, 5)
    counters.path.write_text(CHANGES[name](counters.path.read_text()))
    for serial in (5, 6):
        with pytest.raises(BundleError, match="were changed"):
            counters.admit(LINEAGE, serial)


def test_counters_of_another_key_are_refused(counters: Counters, tmp_path: Path) -> None:
    counters.admit(LINEAGE, 5)
    other = tmp_path / "other.key"
    keys.create(other)
    shutil.copy(counters.path, f"{other}.counters")
    with pytest.raises(BundleError, match="another key's"):
        Counters(other, keys.load(other)).admit(LINEAGE, 5)


def test_counters_that_cannot_be_written_are_an_error(counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    counters.admit(LINEAGE, 1)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(BundleError, match="cannot be kept: No space"):
        counters.admit(LINEAGE, 2)
    assert counters.seen(LINEAGE) == 1
    assert sorted(os.listdir(counters.path.parent)) == ["device.key", "device.key.counters"]


def _count(path: Path, lineage: str) -> None:
    for serial in range(1, 21):
        Counters(path, keys.load(path)).admit(lineage, serial)


def test_writers_at_the_same_time_lose_nothing(counters: Counters, device_key: Path) -> None:
    names = [f"{k:032x}" for k in range(4)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_count, args=(device_key, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [counters.seen(name) for name in names] == [20] * 4


# Bundles


def test_a_bundle_that_is_put_back_is_refused(lab: Lab, tmp_path: Path, device_key: Path) -> None:
    target, old = tmp_path / "m.shadow", tmp_path / "old.shadow"
    first = convert(lab, target)
    opened(target)
    shutil.copytree(target, old)
    second = convert(lab, target, overwrite=True)
    assert (first.serial, second.serial) == (1, 2) and first.lineage == second.lineage
    opened(old)  # nobody has opened the new one yet
    opened(target)
    with pytest.raises(BundleError, match="version 1; this device has opened version 2"):
        shadownet.Interpreter(old)
    np.save(tmp_path / "x.npy", digits()[:1])
    done = shadow("run", old, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert done.returncode == 3 and "version 1" in done.stderr and "hint: " in done.stderr
    assert not (tmp_path / "y.npy").exists()
    opened(target)
    # As the hint says: converting over what came back gives the next version of all.
    assert convert(lab, old, overwrite=True).serial == 3
    opened(old)


def test_bundles_of_their_own_do_not_meet(lab: Lab, tmp_path: Path, device_key: Path) -> None:
    one, two = (convert(lab, tmp_path / f"{k}.shadow") for k in range(2))
    assert one.lineage != two.lineage and one.serial == two.serial == 1
    other = tmp_path / "other.key"
    keys.create(other)
    moved = convert(lab, tmp_path / "0.shadow", overwrite=True, key=other)  # that key does not open what was there
    assert moved.lineage not in (one.lineage, two.lineage) and moved.serial == 1


def test_a_conversion_that_fails_counts_nothing(
    lab: Lab, tmp_path: Path, device_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m.shadow"
    convert(lab, target)
    opened(target)
    before = (tmp_path / "keys" / "device.key.counters").read_bytes()

    def refuse(*_: Any, **__: Any) -> None:
        raise MismatchError("no")

    monkeypatch.setattr("shadownet.converter.verify", refuse)
    with pytest.raises(MismatchError):
        convert(lab, target, overwrite=True)
    assert (tmp_path / "keys" / "device.key.counters").read_bytes() == before
    opened(target)


def test_sealing_for_another_device_keeps_the_version(lab: Lab, tmp_path: Path, device_key: Path) -> None:
    target, copy, other = tmp_path / "m.shadow", tmp_path / "copy.shadow", tmp_path / "other.key"
    keys.create(other)
    convert(lab, target)
    first = convert(lab, target, overwrite=True)
    bundle.reseal(target, copy, device_key, other, False)
    assert (header(copy).lineage, header(copy).serial) == (first.lineage, 2)
    with shadownet.Interpreter(copy, key=other):
        pass
    assert Counters(other, keys.load(other)).seen(first.lineage) == 2
