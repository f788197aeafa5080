"""The verb doctor: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from accelerator.backends import NAMES
from shadownet.cli.output import as_json
from shadownet.progress import track
from shadownet.wire.paths import resolve_key
from shadownet.workers import TFLITE_PYTHON, command, environment


def doctor(args: argparse.Namespace) -> int:
    checks = [
        _system(), _package("ai-edge-litert"), _package("numpy"), _package("pycryptodome"),
        _worker("enclave"), _worker("accelerator"), *track(_backends(), "trying backends", len(NAMES)),
        _loops(), _shared_memory(), _key(), _memory(),
    ]  # fmt: skip
    if args.json:
        as_json(checks)
    else:
        for check in checks:
            mark = "ok  " if check["ok"] else "none" if check["optional"] else "FAIL"
            print(f"{mark} {check['what']}: {check['found']}")
            if not check["ok"]:
                print(f"     hint: {check['hint']}")
        print("note: processes are no hardware isolation; this machine simulates an enclave")
    return 0 if all(check["ok"] or check["optional"] for check in checks) else 1


def _result(what: str, ok: bool, found: str, hint: str = "", optional: bool = False) -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": found, "hint": hint, "optional": optional}


def _system() -> dict[str, Any]:
    found = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    ok = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    return _result("system", ok, found, "shadownet runs on Linux on x86-64 and arm64")


def _package(name: str) -> dict[str, Any]:
    try:
        return _result(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return _result(name, False, "not installed", f"pip install {name}")


def _worker(package: str) -> dict[str, Any]:
    """Start a worker far enough to print its help: its imports work in the environment it will get."""
    try:
        done = subprocess.run([*command(package), "-h"], env=environment(), capture_output=True, text=True, timeout=60)
        found = (done.stderr.strip().splitlines() or ["?"])[-1]
        ok = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        ok, found = False, str(error)
    return _result(
        f"{package} worker", ok, "starts" if ok else found, "reinstall: pip install --force-reinstall shadownet"
    )


def _backends() -> Iterator[dict[str, Any]]:
    """Have each backend run a small layer, each in a process of its own as a driver may take it down.

    Only the default must be there."""
    for name in NAMES:
        answer: dict[str, Any] = {"ok": False, "found": "does not run", "hint": "its process died: try another driver"}
        try:
            asked = [*command("accelerator.survey", name), name]
            done = subprocess.run(asked, env=environment(), capture_output=True, timeout=60)
            answer = json.loads(done.stdout)[name]
            device = re.search(rb"Selected adapter: ([^,\n]*)", done.stderr)  # LiteRT's log knows which GPU it is
            if answer["ok"] and device:
                answer["found"] += f", on {device[1].decode(errors='replace')}"
        except subprocess.TimeoutExpired:
            answer["hint"] = "it did not answer within a minute: try another driver"
        except OSError as error:
            answer["hint"] = f"{asked[0]} cannot be started: {error.strerror}; see ${TFLITE_PYTHON}"
        except (ValueError, KeyError):
            pass
        yield _result(f"accelerator {name}", answer["ok"], answer["found"], answer["hint"], name != "litert-cpu")


def _loops() -> dict[str, Any]:
    """The C loops are optional: without them everything runs, slower."""
    missing = [name for name in ("enclave._native", "accelerator._serve") if importlib.util.find_spec(name) is None]
    if not missing:
        return _result("C loops", True, "built")
    return _result("C loops", True, f"{', '.join(missing)} not built, NumPy takes over; install gcc, then reinstall")


def _shared_memory() -> dict[str, Any]:
    try:
        os.close(os.memfd_create("doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        return _result("shared memory", True, "sealed memfd")
    except OSError as error:
        return _result("shared memory", False, str(error), "the kernel must be Linux 3.17 or newer")


def _key() -> dict[str, Any]:
    path = resolve_key(None)
    if not path.exists():
        return _result("device key", True, "none yet; convert makes one")
    mode = path.stat().st_mode & 0o777
    name = str(path).replace(os.path.expanduser("~"), "~", 1)
    return _result("device key", mode & 0o077 == 0, f"{name}, mode {mode:o}", f"others can read it: chmod 600 {path}")


def _memory() -> dict[str, Any]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    found = "no limit on address space" if soft == resource.RLIM_INFINITY else f"address space limited to {soft} bytes"
    return _result(
        "memory", soft == resource.RLIM_INFINITY or soft > 1 << 30, found, "raise it with ulimit -v unlimited"
    )
