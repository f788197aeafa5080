#!/usr/bin/env python3
"""Convert, run and verify models; print a Markdown row for each, as in models/README.md.

python tools/measure_zoo.py MODEL.tflite…
"""

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shadownet.inputs import random_inputs
from shadownet.session import Session
from shadownet.wire.paths import resolve_key

ROOT = Path(__file__).resolve().parent.parent
HEAD = "| model | layers outsourced | bytes crossed | bundle size | convert | peak: convert, enclave, accelerator |"


def peak(pid: int) -> float:
    """The largest resident set of a process so far, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(model: Path, directory: str) -> str:
    """One row. Conversion runs in a process of its own, so that its memory can be told."""
    bundle = Path(directory) / (model.stem + ".shadow")
    code = (
        "import sys, resource, shadownet\n"
        "s = shadownet.convert(sys.argv[1], sys.argv[2])\n"
        "print(s['layers_outsourced'], s['bytes'], s['seconds'],"
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(bundle)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    layers, size, seconds, memory = done.stdout.split()
    session = Session(bundle, resolve_key(None))
    try:
        specs = session.entries[0][0]
        session.allocate(0, [spec.shape for spec in specs])
        session.invoke(random_inputs(specs, 0))
        stats = session.stats()
        accelerator, enclave = (peak(pid) for pid in session.pids[-2:])
    finally:
        session.close()
    crossed = stats["bytes_to_accelerator"] + stats["bytes_from_accelerator"]
    return (
        f"| `{model.stem}` | {layers} | {crossed / 1e6:.1f} MB | {int(size) / 1e6:.1f} MB | {float(seconds):.1f} s "
        f"| {float(memory):.0f}, {enclave:.0f}, {accelerator:.0f} MB |"
    )


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    print(HEAD + "\n" + "|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as directory:
        for model in sys.argv[1:]:
            print(measure(Path(model), directory), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
