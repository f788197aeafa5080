"""What protection costs: contenders in turn, in one run, with nothing of ours running in another's turn.

Contenders: the unprotected model in LiteRT, everything inside the enclave, and the protected model for each scheme
and way of checking; with the accelerator litert-gpu, the unprotected model on the GPU as well. Masks are prepared
before the turns that use them; making them is a row of its own. Between turns everybody's worker processes fall
asleep, and their CPU time during others' turns is measured and reported. A turn is one inference that is not timed and
one that is.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.converter import convert
from shadownet.inputs import random_inputs
from shadownet.progress import quiet, track
from shadownet.session import DEFAULT_MASK_MEMORY, Session
from shadownet.wire.arena import Arena, aligned
from shadownet.wire.errors import WorkerError
from shadownet.wire.paths import resolve_key

Array = np.ndarray[Any, Any]

WARM_UP = 3
SETTLE_S = 0.004  # workers poll for up to 2 ms after a run before they sleep
TRIES = 3
SETS = 10  # sets of masks made at a time, for one input; fewer for batches, whose sets are larger
TRACED = 5  # inferences whose layers are timed, after the race
STREAM = 16  # inferences in one go, for the rate: as many as one message takes
UNPROTECTED = {"scheme": "none", "masks": "none", "integrity": "none"}
INTRUSION = 0.02  # share of a turn that others' workers may take at most


@dataclass
class Contender:
    """``run`` is one inference; ``prepare`` gets masks ready for some; ``pids`` its worker processes."""

    name: str
    facts: dict[str, Any]
    run: Callable[[], object]
    prepare: Callable[[int], object] = lambda n: None
    session: Session | None = None
    seconds: list[float] = field(default_factory=list)
    inputs: list[Array] = field(default_factory=list)
    bundle: Path = Path()

    @property
    def pids(self) -> list[int]:
        return self.session.pids if self.session else []


@dataclass(frozen=True)
class Setting:
    """What is measured: ``batch`` images at a time, threads per process, rounds in turn.

    ``bundles`` of the same model take part as they are, beside those that are made for ``schemes`` and ``integrity``.
    """

    model: Path
    schemes: list[str]
    integrity: list[str]
    num_threads: int
    rounds: int
    batch: int = 1
    key: str | None = None
    bundles: tuple[Path, ...] = ()
    accelerator: str = "litert-cpu"


def bench(setting: Setting) -> dict[str, Any]:
    """Measure one model. Raises ``WorkerError`` if worker processes ran in others' turns: then figures mean nothing."""
    with tempfile.TemporaryDirectory() as directory:
        contenders = [_plain(setting)]
        if setting.accelerator == "litert-gpu":
            contenders.append(_plain_gpu(setting))
        try:
            contenders.append(_protected(setting, "tee", "none", Path(directory)))
            for scheme in setting.schemes:
                for integrity in setting.integrity:
                    contenders.append(_protected(setting, scheme, integrity, Path(directory)))
            contenders += [_opened(setting, bundle.name, bundle) for bundle in setting.bundles]
            intruded = _race(contenders, setting.rounds, max(1, SETS // setting.batch))
            rows = [_row(c, contenders[0]) for c in contenders]
            masked = [c for c in contenders if c.session and c.facts["masks"] == "prepared one-time"]
            sustained = [_sustained(c) for c in masked]
            rates = [_rate(c) for c in masked]
            layers = {c.name: _layers(c, setting) for c in masked}
            alone = {c.name: _alone(c, setting) for c in masked}
        finally:
            for contender in contenders:
                if contender.session:
                    contender.session.close()
    return {
        "model": setting.model.stem,
        "threads": setting.num_threads,
        "batch": setting.batch,
        "accelerator": setting.accelerator,
        "rounds": setting.rounds,
        "rows": rows,
        "sustained": sustained,
        "rates": rates,
        "layers": layers,
        "accelerator_alone_ms": alone,
        "intruded": intruded,
        "environment": environment(),
    }


def _plain(setting: Setting) -> Contender:
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        interpreter = Interpreter(model_path=str(setting.model), num_threads=setting.num_threads)
        for detail in interpreter.get_input_details() if setting.batch > 1 else []:
            interpreter.resize_tensor_input(detail["index"], _batched(tuple(detail["shape"]), setting.batch))
        interpreter.allocate_tensors()
    return Contender("unprotected", dict(UNPROTECTED), interpreter.invoke)


def _plain_gpu(setting: Setting) -> Contender:
    """The whole model on the GPU in float32, from writing inputs to reading outputs. Raises ``WorkerError`` without."""
    from ai_edge_litert.compiled_model import CompiledModel, GpuOptions, HardwareAccelerator, Options

    gpu = GpuOptions(enforce_f32=True)
    name = "unprotected, on the GPU"
    try:
        model = CompiledModel.from_file(str(setting.model), options=Options(HardwareAccelerator.GPU, gpu_options=gpu))
    except RuntimeError as error:
        if "not accelerated" not in str(error):
            raise WorkerError("LiteRT finds no GPU for the unprotected model", "see docs/accelerators.md") from None
        both = HardwareAccelerator.GPU | HardwareAccelerator.CPU
        model = CompiledModel.from_file(str(setting.model), options=Options(both, gpu_options=gpu))
        name += ", ops that it lacks on the CPU"
    signature = next(iter(model.get_signature_list()))
    for k, tensor in enumerate(model.get_input_tensor_details(signature).values()):
        shape = tuple(tensor["shape"])
        if _batched(shape, setting.batch) != shape:
            model.resize_input_tensor(k, _batched(shape, setting.batch), strict=False)
    details = model.get_input_tensor_details(signature), model.get_output_tensor_details(signature)
    sides = [[(math.prod(t["shape"]), np.dtype(t["dtype"])) for t in side.values()] for side in details]
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    values = [np.zeros(size, dtype) for size, dtype in sides[0]]

    def run() -> None:
        for buffer, value in zip(inputs, values, strict=True):
            buffer.write(value)
        model.run_by_index(0, inputs, outputs)
        for buffer, (size, dtype) in zip(outputs, sides[1], strict=True):
            buffer.read(size, dtype)

    return Contender(name, dict(UNPROTECTED), run)


def _batched(shape: tuple[int, ...], batch: int) -> tuple[int, ...]:
    """The shape for a batch; a model whose first dimension is no batch of one is left alone."""
    return (batch, *shape[1:]) if shape and shape[0] == 1 else shape


def _protected(setting: Setting, scheme: str, integrity: str, directory: Path) -> Contender:
    name = scheme if integrity == "none" else f"{scheme}, checked {integrity}"
    bundle = directory / "".join(c if c.isalnum() else "_" for c in name)
    for _ in range(TRIES):  # what a trial run finds imprecise stays inside, and is then no contender
        made = convert(setting.model, bundle, scheme=scheme, integrity=integrity, key=setting.key, overwrite=True)
        if made["layers_outsourced"] or scheme == "tee":
            break
    return _opened(setting, name, bundle)


def _opened(setting: Setting, name: str, bundle: Path) -> Contender:
    session = Session(bundle, resolve_key(setting.key), setting.num_threads, setting.accelerator)
    specs = [replace(s, shape=_batched(s.shape, setting.batch)) for s in session.entries[0][0]]
    session.allocate(0, [spec.shape for spec in specs])
    inputs = random_inputs(specs, 0)
    options = session.manifest["options"]
    masked = any(layer["masked"] for layer in session.manifest["layers"])
    facts = {
        "scheme": session.manifest["scheme"],
        "masks": "prepared one-time" if masked else "none",
        "activations": options["activations"] if masked else "none",
        "integrity": options["integrity"] if session.manifest["layers"] else "nothing outsourced",
        "obfuscation_ratio": options["ratio"],
    }
    contender = Contender(name, facts, lambda: session.invoke(inputs), session.prepare, session)
    contender.inputs, contender.bundle = inputs, bundle
    return contender


def _race(contenders: list[Contender], rounds: int, sets: int) -> float:
    """Run everybody in turn; returns the largest share of a turn that somebody else's workers were running.

    Masks are made for ``sets`` rounds at a time.
    """
    for contender in contenders:
        contender.prepare(WARM_UP)
        for _ in range(WARM_UP):
            contender.run()
    before = {c.name: c.session.stats() for c in contenders if c.session}
    intruded = 0.0
    for done in track(range(rounds), "measuring"):
        if done % sets == 0:
            for contender in contenders:
                contender.prepare(2 * min(sets, rounds - done))
        for contender in contenders:
            time.sleep(SETTLE_S)
            others = [pid for c in contenders if c is not contender for pid in c.pids]
            contender.run()  # not timed: everybody's turn begins with its own data in the cache, not another's
            busy = _cpu_seconds(others)
            start = time.perf_counter()
            contender.run()
            contender.seconds.append(time.perf_counter() - start)
            intruded = max(intruded, (_cpu_seconds(others) - busy) / contender.seconds[-1])
    for contender in contenders:
        if contender.session:
            after = contender.session.stats()
            contender.facts["phases"] = _phases(before[contender.name], after, 2 * rounds)
            contender.facts["enclave_bytes"] = {name: after[f"{name}_bytes"] for name in ("tracked", "resident")}
    if intruded > INTRUSION:
        raise WorkerError(
            f"worker processes ran during {intruded:.0%} of another contender's turn; these figures mean nothing",
            "run it again on a machine with nothing else running",
        )
    return intruded


def _cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes so far, threads included."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total * 1e-9


def _phases(before: dict[str, Any], after: dict[str, Any], rounds: int) -> dict[str, float]:
    """Mean milliseconds per inference and phase, as the enclave saw it, and what crossed."""
    spent = {name: (after[name] - before[name]) / rounds for name in after if isinstance(after[name], (int, float))}
    total = spent["total_seconds"]
    known = {
        "accelerator and waiting": spent["accelerator_seconds"],
        "copy and check": spent["reading_seconds"],
        "restore and kernels": spent["finishing_seconds"],
        "mask and send": spent["sending_seconds"],
        "preparing checks": spent["checking_seconds"],
    }
    phases = {name: round(seconds * 1e3, 4) for name, seconds in known.items()}
    phases["segments and the rest"] = round((total - sum(known.values())) * 1e3, 4)
    crossed = spent["bytes_to_accelerator"] + spent["bytes_from_accelerator"]
    return phases | {"bytes": round(crossed), "crossings": round(spent["crossings"])}


def _row(contender: Contender, reference: Contender) -> dict[str, Any]:
    ratios = np.array(contender.seconds) / np.array(reference.seconds)
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {
        "name": contender.name,
        "median_ms": float(np.median(contender.seconds)) * 1e3,
        "ratio": float(np.median(contender.seconds) / np.median(reference.seconds)),
        "pairwise_ratio": [round(float(v), 3) for v in (low, middle, high)],
        **contender.facts,
    }


def _sustained(contender: Contender) -> dict[str, Any]:
    """Making a set of masks and using it, again and again."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        contender.prepare(1)
        made = time.perf_counter()
        contender.run()
        seconds.append((made - start, time.perf_counter() - start))
    masks, both = np.median(np.array(seconds), axis=0) * 1e3
    return {"name": contender.name, "masks_ms": float(masks), "inference_with_masks_ms": float(both)}


def _rate(contender: Contender) -> dict[str, Any]:
    """Inferences in a row, one after the other and two under way at a time, with masks prepared."""
    session = contender.session
    assert session is not None
    shapes, rates = [spec.shape for spec in session.inputs], {}
    for name, pipelined in (("one after the other", False), ("pipelined", True)):
        session.allocate(0, shapes, pipelined)
        count = max(1, min(STREAM, DEFAULT_MASK_MEMORY // max(1, session.prepare(1)["bytes"])))
        requests, seconds = [contender.inputs] * count, []
        for _ in range(TRACED):
            session.prepare(count - session.stats()["masks_ready"])
            start = time.perf_counter()
            session.invoke_many(requests)
            seconds.append((time.perf_counter() - start) / count)
        rates[name] = float(np.median(seconds[1:])) * 1e3
    return {"name": contender.name, "ms_per_inference": rates}


def _alone(contender: Contender, setting: Setting) -> float:
    """Milliseconds of the accelerator's part by itself: its layers in order in one process, nothing to wait for."""
    from accelerator.backends import create

    assert contender.session is not None
    layers = contender.session.manifest["layers"]
    with quiet():
        backend = create(setting.accelerator, str(contender.bundle / "accelerator.tflite"), setting.num_threads)
    sides = [[_batched(tuple(layer[side]), setting.batch) for layer in layers] for side in ("input", "output")]
    arena = Arena.create(sum(aligned(4 * max(map(math.prod, shapes))) for shapes in sides), "bench")
    outputs = aligned(4 * max(map(math.prod, sides[0])))
    views = zip(layers, *sides, strict=True)
    backend.open(
        [(k["signature"], arena.array(0, i, np.float32), arena.array(outputs, o, np.float32)) for k, i, o in views]
    )
    seconds = []
    for _ in range(setting.rounds):
        start = time.perf_counter()
        for layer in range(len(layers)):
            backend.run(layer)
        seconds.append(time.perf_counter() - start)
    arena.close()
    return float(np.median(seconds)) * 1e3


def _layers(contender: Contender, setting: Setting) -> list[dict[str, Any]]:
    """Median milliseconds of each layer: in the accelerator and on the way, and in the enclave."""
    session = Session(contender.bundle, resolve_key(setting.key), setting.num_threads, setting.accelerator, trace=True)
    try:
        session.allocate(0, [value.shape for value in contender.inputs])
        session.prepare(TRACED + WARM_UP)
        spent: dict[tuple[str, str], list[float]] = {}
        for done in track(range(TRACED + WARM_UP), "measuring each layer"):
            session.invoke(contender.inputs)
            for event in session.events():
                if done >= WARM_UP:
                    spent.setdefault((event["name"], event["kind"]), []).append(event["seconds"] * 1e3)
    finally:
        session.close()
    rows = []
    for layer in session.manifest["layers"]:
        name = layer["signature"]
        away, both = (float(np.median(spent.get((name, kind), [0.0]))) for kind in ("wait", "work"))
        rows.append({"layer": name, "accelerator_ms": away, "enclave_ms": both - away, "macs": layer["macs"]})
    return rows


def environment() -> str:
    """One line on where this was measured."""
    import importlib.metadata

    pairs = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in pairs}
    model = facts.get("model name", platform.machine())
    if "cpu family" in facts:  # virtual machines often tell no more by name than who made it
        model += f" (family {facts['cpu family']})"
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, "
        f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}, numpy {np.__version__}"
    )
