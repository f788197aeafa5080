"""The verbs run and verify."""

from __future__ import annotations

import argparse
import os
import secrets
import time
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shadownet import timeline
from shadownet.cli.output import as_json, human
from shadownet.interpreter import check
from shadownet.media import Pixels, load_array, load_inputs
from shadownet.progress import note, track
from shadownet.session import Session
from shadownet.wire.errors import BundleError, InputError, MismatchError
from shadownet.wire.manifest import read_manifest
from shadownet.wire.paths import resolve_key
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]


def run(args: argparse.Namespace) -> None:
    """Run every sample of the input; print the last outputs in short, times and counters."""
    if args.num_runs < 1:
        raise InputError("--num_runs must be at least 1")
    transcript = _transcript(args.record) if args.record else None
    session = Session(
        args.bundle, resolve_key(args.key), args.num_threads, args.accelerator, args.mask_input, args.mask_memory,
        args.enclave_memory, transcript, bool(args.trace), args.delegate,
    )  # fmt: skip
    try:
        specs = session.entries[0][0]
        pixels = Pixels(args.mean, args.std, session.manifest.get("normalization"))
        samples, used = load_inputs([Path(p) for p in args.input], specs, pixels)
        if used:
            note(used)
        session.allocate(0, [value.shape for value in samples[0]])
        for _ in track(range(args.masks), "making masks"):
            session.prepare(1)
        outputs, seconds = [], []
        runs = ((sample, again) for sample in samples for again in range(args.num_runs))
        for sample, again in track(runs, "running", len(samples) * args.num_runs):
            if again == 0:
                values = [check(spec, value) for spec, value in zip(session.inputs, sample, strict=True)]
            start = time.perf_counter()
            result = session.invoke(values)
            seconds.append(time.perf_counter() - start)
            if again == args.num_runs - 1:
                outputs.append(result)
        stats = session.stats()
        if args.trace:
            timeline.write(args.trace, session.timeline())
        names = session.outputs
    finally:
        session.close()
    if args.output:
        _save(args.output, outputs, names)
    _report(args, outputs, names, seconds, stats)


def _transcript(directory: str) -> str:
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {directory}: {error.strerror}") from None
    path = os.path.join(directory, "transcript.npz")
    if os.path.exists(path):
        raise InputError(f"{path} exists already", "give another directory to --record")
    return path


def _save(path: str, outputs: list[list[Array]], specs: list[TensorSpec]) -> None:
    """One .npy with the samples stacked, or an .npz with one array per output."""
    columns = [_stack(column) for column in zip(*outputs, strict=True)]
    target = Path(path)
    work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(work, "xb") as file:
            if len(columns) == 1:
                np.lib.format.write_array(file, columns[0], allow_pickle=False)
            else:
                _save_named(file, [spec.name for spec in specs], columns)
        os.replace(work, target)
    except (OSError, ValueError) as error:
        work.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error}") from None


def _save_named(file: BinaryIO, names: list[str], columns: list[Array]) -> None:
    """Write an ``.npz``; names that are taken or that NumPy could not read back get a number."""
    with zipfile.ZipFile(file, "w") as archive:
        for i, (name, column) in enumerate(zip(names, columns, strict=True)):
            plain = "".join(c if c.isalnum() or c in "._-:" else "_" for c in name)
            unique = plain if plain and names.index(name) == i and plain.strip(".") else f"{plain}_{i}"
            with archive.open(f"{unique}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, column, allow_pickle=False)


def _stack(values: tuple[Array, ...]) -> Array:
    if any(v.shape != values[0].shape for v in values):
        raise InputError("outputs of different samples have different shapes; run them one at a time")
    return np.concatenate(values) if values[0].ndim and values[0].shape[0] == 1 else np.stack(values)


def _report(
    args: argparse.Namespace,
    outputs: list[list[Array]],
    specs: list[TensorSpec],
    seconds: list[float],
    stats: dict[str, Any],
) -> None:
    runs = len(seconds)
    summary = {
        "samples": len(outputs),
        "runs": runs,
        "median_ms": float(np.median(seconds)) * 1e3,
        "first_ms": seconds[0] * 1e3,
        "bytes_to_accelerator": stats["bytes_to_accelerator"] // runs,
        "bytes_from_accelerator": stats["bytes_from_accelerator"] // runs,
        "crossings": stats["crossings"] // runs,
        "masks_made_inline": stats["masks_made_inline"],
        "outputs": [
            {"name": s.name, "shape": list(v.shape), "dtype": v.dtype.name, **_top(v)}
            for s, v in zip(specs, outputs[-1], strict=True)
        ],
    }
    if args.enclave_memory:
        memory = {name: stats[f"memory_{name}"] for name in ("budget", "peak", "smallest", "shared")}
        summary["memory"] = memory | {
            "unsealed_per_run": stats["bytes_unsealed"] // runs,
            "unsealing_ms_per_run": 1e3 * stats["unsealing_seconds"] / runs,
        }
    if args.json:
        as_json(summary)
        return
    for sample, result in enumerate(outputs[:20]):
        for spec, value in zip(specs, result, strict=True):
            top = _top(value).get("top")
            what = (
                ", ".join(f"class {c} ({v:.4g})" for c, v in top) if top else f"{value.dtype.name} {list(value.shape)}"
            )
            print(f"sample {sample}: {spec.name}: {what}")
    if len(outputs) > 20:
        print(f"… and {len(outputs) - 20} more samples; --output keeps them all")
    crossed = summary["bytes_to_accelerator"] + summary["bytes_from_accelerator"]
    print(
        f"{runs} run{'s' if runs > 1 else ''}, median {summary['median_ms']:.2f} ms; "
        f"per run {human(crossed)}B crossed in {summary['crossings']} calls"
    )
    if args.enclave_memory:
        print(_memory(summary["memory"]))


def _memory(memory: dict[str, Any]) -> str:
    return (
        f"enclave memory: at most {human(memory['peak'])}B held of {human(memory['budget'])}B, "
        f"{human(memory['smallest'])}B would do; per run {human(memory['unsealed_per_run'])}B unsealed "
        f"in {memory['unsealing_ms_per_run']:.1f} ms"
    )


def _top(value: Array) -> dict[str, Any]:
    """The three largest of a vector of scores."""
    flat = value.reshape(-1)
    if value.dtype.kind not in "fiu" or flat.size < 2 or max(value.shape) != flat.size or not flat.size <= 100_000:
        return {}
    order = np.argsort(-flat.astype(np.float64), kind="stable")[:3]
    return {"top": [[int(i), float(flat[i])] for i in order]}


def _same_interface(bundle: str, parts: dict[int, Any], model: str) -> None:
    """A bundle of a model with other inputs or outputs cannot be compared. Raises ``MismatchError``."""
    from shadownet.interface import interface_spec

    claimed: Any = read_manifest(Path(bundle)).get("entries")
    ours = {
        str(e): [[(s.dtype, list(s.shape)) for s in side] for side in sides]
        for e, sides in (
            (e, [[interface_spec(p, t) for t in side] for side in (p.graph.inputs, p.graph.outputs)])
            for e, p in parts.items()
        )
    }
    try:
        theirs = {e: [[(s["dtype"], s["shape"]) for s in side] for side in sides] for e, sides in claimed.items()}
    except (AttributeError, KeyError, TypeError):
        raise BundleError("the bundle's manifest is damaged", "convert the model again") from None
    if theirs != ours:
        raise MismatchError(f"the bundle was made from a model with other inputs or outputs than {model}")


def verify(args: argparse.Namespace) -> None:
    """Compare a bundle with the original model; exit code 1 if they differ."""
    from shadownet.analysis import Reference
    from shadownet.graph import load
    from shadownet.inputs import random_inputs, split_batch
    from shadownet.interface import interface_spec
    from shadownet.partition import partition
    from shadownet.verify import tolerance_for
    from shadownet.verify import verify as compare

    graph, _ = load(args.model)
    with Reference(args.model, graph) as reference:
        parts = {e: partition(graph, e, reference.shapes(e), "none") for e in graph.entry_points()}
        specs = {e: [interface_spec(p, t) for t in p.graph.inputs] for e, p in parts.items()}
        samples = {e: [random_inputs(s, seed) for seed in range(4)] for e, s in specs.items()}
        if args.inputs:
            samples[0] = split_batch([load_array(Path(args.inputs))], specs[0])
            if not samples[0]:
                raise InputError("there is no sample in the inputs")
        _same_interface(args.bundle, parts, args.model)
        # The sealed half holds the manifest's hash: nobody can widen this.
        allowed = (
            tolerance_for(read_manifest(Path(args.bundle))["options"]) if args.tolerance is None else args.tolerance
        )
        verdict = compare(args.bundle, resolve_key(args.key), reference, parts, samples, allowed)
    if args.json:
        as_json(verdict.to_json())
    else:
        print(
            f"{'same' if verdict.ok else 'DIFFERENT'} on {verdict.samples} samples under LiteRT's {verdict.kernels} "
            f"kernels: largest float difference {verdict.worst:.1e} of the largest value, {verdict.differing:.2%} of "
            f"integer elements differ, top class agrees on {verdict.top[0]} of {verdict.top[1]}"
        )
    if not verdict.ok:
        raise MismatchError(f"the bundle does not compute what {args.model} does: {verdict.why}")
