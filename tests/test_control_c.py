"""Control-C leaves nothing behind: no process, no temporary file, no half of a result. ``run`` and ``convert`` are in
test_processes.py."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from boundary_helpers import DIGITS, PATIENCE_S, Lab, end, gone, marked, start, stop, the_lab, wait_for, worker  # noqa: F401

VICTIMS = DIGITS.parent / "victims"
VERBS = {
    "verify": ["BUNDLE", "--model", "MODEL"],
    "demo": ["-o", "OUT/demo"],
    "bench": ["MODEL", "--rounds", "100000"],
    "attack": ["BUNDLE", "--model", "MODEL"],
    "arena": ["--models", VICTIMS / "cnn_scratch.tflite", "--out", "OUT/arena", "--report", "OUT/arena/M.md"],
}


def ready(verb: str, pids: list[int]) -> bool:
    """Whether the verb is at work: it has the workers that it starts."""
    return len(pids) > 3 if verb == "arena" else bool(pids if verb == "attack" else worker(pids, "enclave"))


@pytest.mark.parametrize(
    "verb", [pytest.param(v, marks=[] if v in ("verify", "demo") else pytest.mark.slow) for v in VERBS]
)
def test_control_c_leaves_nothing(lab: Lab, tmp_path: Path, verb: str) -> None:
    out, tmp = tmp_path / "out", tmp_path / "tmp"
    out.mkdir()
    known = {"BUNDLE": lab.bundle("digits_cnn"), "MODEL": lab.model("digits_cnn")}
    words = [str(known.get(str(word), word)).replace("OUT", str(out)) for word in VERBS[verb]]
    env = {"SHADOWNET_KEY": str(lab.key)}
    process = start(["-m", "shadownet", verb, *words], tmp, env=env)
    try:
        assert wait_for(lambda: ready(verb, marked(tmp)))
        time.sleep(4.0 if verb == "arena" else 0.3)  # its processes must be past the start of Python
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        printed, err = process.communicate(timeout=PATIENCE_S)
        if process.returncode != 0:  # it may have been through by then
            assert process.returncode == 130 and printed == "", err
        assert "Traceback" not in err
        assert gone(marked(tmp)) and os.listdir(tmp) == []
        assert not [p for p in out.rglob("*") if p.name.startswith(".")], "half of something"
    finally:
        end(process)
        for pid in marked(tmp):
            stop(pid)
