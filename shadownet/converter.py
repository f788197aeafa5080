"""``convert``: a ``.tflite`` model becomes a bundle, which is tried before it is handed over."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from enclave import keys, schemes
from enclave.rng import Rng
from shadownet import bundle
from shadownet.analysis import Reference
from shadownet.graph import Graph, load
from shadownet.inputs import random_inputs, split_batch
from shadownet.lower import Lowered, Lowering, interface_spec
from shadownet.media import load_array
from shadownet.metadata import normalization
from shadownet.partition import Partition, partition
from shadownet.progress import note
from shadownet.verify import Verdict, verify
from shadownet.wire.errors import InputError, MismatchError, ModelError

Array = np.ndarray[Any, Any]

RANDOM_SAMPLES = 2
MAX_CALIBRATION = 32


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    scheme: str = "shadownet",
    ratio: float = 1.2,
    activations: str = "float",
    integrity: str = "none",
    outsource: str = "all",
    calibration: str | os.PathLike[str] | list[Array] | None = None,
    base: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert ``model`` into the bundle directory ``output`` and verify it through the real runtime.

    ``ratio`` is the obfuscation ratio r (M = ceil(r n) filters leave for n), 1 to 8. ``calibration`` holds samples
    [N, …] (a ``.npy`` path or one array per input) that set the size of the activation masks; without it random
    inputs do, which is said on stderr. ``outsource`` is "all" or op ids, comma-separated. ``activations`` and
    ``integrity`` know only "float" and "none" in this version.

    Returns a summary (layers, bytes, seconds, verdict). Raises ``ModelError`` for a file that LiteRT does not run,
    ``InputError`` for arguments, ``BundleError`` for the key, ``MismatchError`` if the bundle computes something
    else; then nothing is left behind.
    """
    start = time.perf_counter()
    chosen = schemes.get(scheme)
    _check_options(ratio, activations, integrity, base)
    target = Path(output)
    key_path = bundle.ensure_key(key)
    device_key = keys.load(key_path)
    graph, _ = load(model)
    with bundle.new_directory(target, overwrite) as work, Reference(os.fspath(model), graph) as reference:
        partitions = {e: _partition(graph, e, reference, outsource) for e in graph.entry_points()}
        samples = _samples(partitions, calibration)
        folded, rms = _observe(reference, partitions, samples)
        lowered = Lowering(graph, chosen, ratio, Rng()).run(partitions, folded, rms)
        manifest = {
            "scheme": chosen.name,
            "options": {"ratio": ratio, "activations": activations, "integrity": integrity, "outsource": outsource},
            "layers": lowered.layers,
            "normalization": normalization(graph.metadata),
            "entries": {
                str(e): [[interface_spec(p, t).to_json() for t in side] for side in (p.graph.inputs, p.graph.outputs)]
                for e, p in partitions.items()
            },
        }
        bundle.write(work, manifest, lowered.accelerator, lowered.program, lowered.blobs, device_key)
        verdict = _try(work, key_path, reference, partitions, samples)
    return _summary(target, chosen.name, partitions, lowered, verdict, time.perf_counter() - start)


def _check_options(ratio: float, activations: str, integrity: str, base: object) -> None:
    if not 1.0 <= ratio <= 8.0:
        raise InputError(f"the obfuscation ratio must be between 1 and 8, not {ratio}")
    for name, value, known in (("activations", activations, "float"), ("integrity", integrity, "none")):
        if value != known:
            raise InputError(f"{name} {value!r} is not in this version", f"use {known!r}")
    if base is not None:
        raise InputError("no scheme of this version takes a public base model")


def _partition(graph: Graph, entry: int, reference: Reference, outsource: str) -> Partition:
    return partition(graph, entry, reference.shapes(entry), parse_outsource(outsource))


def parse_outsource(text: str) -> str | set[int]:
    """ "all", "none" or a comma-separated list of op ids. Raises ``InputError``."""
    if text in ("all", "none"):
        return text
    try:
        return {int(part) for part in text.split(",")}
    except ValueError:
        raise InputError(
            f"--outsource {text!r} is neither all, none, nor a list of op ids", "shadownet inspect MODEL lists the ids"
        ) from None


def _samples(
    partitions: dict[int, Partition], calibration: str | os.PathLike[str] | list[Array] | None
) -> dict[int, list[list[Array]]]:
    """Inputs per entry: the user's for the main one, random ones elsewhere."""
    samples = {}
    for entry, part in partitions.items():
        specs = [interface_spec(part, t) for t in part.graph.inputs]
        if calibration is not None and entry == 0:
            arrays = calibration if isinstance(calibration, list) else [load_array(Path(calibration))]
            samples[entry] = split_batch(arrays, specs)[:MAX_CALIBRATION]
            if not samples[entry]:
                raise InputError("the calibration data holds no sample")
        else:
            samples[entry] = [random_inputs(specs, seed) for seed in range(RANDOM_SAMPLES)]
    if calibration is None and any(p.linear for p in partitions.values()):
        note("no --calibration: random inputs set the size of the activation masks")
    return samples


def _observe(
    reference: Reference, partitions: dict[int, Partition], samples: dict[int, list[list[Array]]]
) -> tuple[dict[int, dict[int, Array]], dict[int, dict[int, float]]]:
    """Run the original: values of folded weights, and the rms of each linear layer's input."""
    folded: dict[int, dict[int, Array]] = {}
    rms: dict[int, dict[int, float]] = {}
    for entry, part in partitions.items():
        tensors = sorted({lin.input for lin in part.linear})
        try:
            squares = [np.square(reference.observe(entry, sample, tensors)) for sample in samples[entry]]
        except ModelError as error:
            raise ModelError(str(error), "give inputs that the model accepts with --calibration X.npy") from None
        mean = np.sqrt(np.mean(squares, axis=0)) if tensors else []
        # A layer that saw only zeros still gets a mask.
        rms[entry] = {t: float(v) if np.isfinite(v) and v > 0 else 1.0 for t, v in zip(tensors, mean, strict=True)}
        folded[entry] = dict(zip(part.folded, reference.values(entry, part.folded), strict=True)) if part.folded else {}
    return folded, rms


def _try(
    work: Path, key: Path, reference: Reference, partitions: dict[int, Partition], samples: dict[int, list[list[Array]]]
) -> Verdict:
    """Run the new bundle beside the original. Raises ``MismatchError`` if they differ."""
    verdict = verify(work, key, reference, partitions, {e: s[:RANDOM_SAMPLES] for e, s in samples.items()})
    if not verdict.ok:
        raise MismatchError(
            f"the converted model does not compute what the original does: {verdict.why}",
            "try inputs like the real ones with --calibration X.npy",
        )
    return verdict


def _summary(
    target: Path, scheme: str, partitions: dict[int, Partition], lowered: Lowered, verdict: Verdict, seconds: float
) -> dict[str, Any]:
    return {
        "bundle": str(target),
        "scheme": scheme,
        "layers_outsourced": len(lowered.layers),
        "linear_macs_outsourced": sum(layer["macs"] for layer in lowered.layers),
        "ops": sum(len(p.graph.ops) for p in partitions.values()),
        "bytes": sum(f.stat().st_size for f in target.iterdir()),
        "seconds": round(seconds, 3),
        "verdict": verdict.to_json(),
    }
