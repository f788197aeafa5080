#!/usr/bin/env python3
"""Run every scheme against every attack and write SECURITY_RESULTS.md.

    python tools/security_results.py [--real DIR] [--out DIR] [--seeds 3]

Victims are the committed digit networks (models/victims, models/digits) with their public relatives, attacked at work
and stolen whole as well; and, with --real, trained models from a folder, whose public relative is made here: the model
itself with noise of 30 % on each filter, a close relative. The results folder is resumed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ROOT = Path(__file__).resolve().parent.parent
VICTIMS = ROOT / "models" / "victims"
REAL = ("minivgg_cifar10_float32.tflite", "resnet20_cifar10_float32.tflite")
SCHEMES = (
    "none,shadownet:artifact,shadownet:paper,shadownet:fast,groupcover:4,mix:8,slalom,darknetz:last3,delta,"
    "shadownet:paper+exact"
)
TAKING_PART = "A5,A10,A11,A12,A14,A15,A16"
UNCHECKED = "shadownet:artifact+unchecked,shadownet:artifact+exact,shadownet:artifact+exact+unchecked"
STOLEN = "none,shadownet:artifact,shadownet:paper,shadownet:artifact+exact,mix:8,delta"  # whole models
INTEGER = "groupcover:4,mix:8,shadownet:paper"
REAL_INTEGER = "resnet8_cifar10_int8.tflite"
FEW = 80  # training samples of the overfitted victim
NOISE = 0.3
CONVOLUTION, DEPTHWISE, DENSE = 3, 4, 9  # builtin operators


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, metavar="DIR", help="folder with trained models")
    parser.add_argument("--out", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--seeds", default="3", metavar="N")
    args = parser.parse_args()
    out, seeds = args.out, ["--seeds", args.seeds, "--out", str(args.out)]
    scratch, tuned, perceptron = (victim(name) for name in ("cnn_scratch", "cnn_tuned_3", "mlp_scratch"))
    data = ["--data", str(VICTIMS / "data.npz")]
    arena("--models", scratch, tuned, perceptron, "--schemes", SCHEMES, *seeds)
    arena("--models", str(ROOT / "models/digits/digits_cnn_int8.tflite"), "--schemes", INTEGER, *seeds)
    arena("--models", tuned, perceptron, "--schemes", SCHEMES, "--attacks", TAKING_PART, *data, *seeds)
    arena("--models", perceptron, "--schemes", UNCHECKED, "--attacks", "A14,A18", *data, *seeds)
    for models, schemes, budgets, samples in (
        ([tuned], "shadownet:artifact,shadownet:paper", "50", data),
        ([perceptron, victim("mlp_tuned_3")], STOLEN, "0,50", data),
        ([victim("mlp_few")], "shadownet:artifact,shadownet:paper,mix:8", "50", ["--data", few(out)]),
    ):
        arena("--models", *models, "--schemes", schemes, "--attacks", "A13", "--budgets", budgets, *samples, *seeds)
    if args.real:
        arena("--models", str(args.real / REAL_INTEGER), "--schemes", INTEGER, *seeds)
    for name in REAL if args.real else ():
        base = out / "relatives" / name
        base.parent.mkdir(parents=True, exist_ok=True)
        base.write_bytes(relative((args.real / name).read_bytes()))
        arena("--models", str(args.real / name), "--schemes", SCHEMES, "--base", str(base), *seeds)
    arena("--out", str(out), "--report", str(ROOT / "SECURITY_RESULTS.md"))
    return 0


def victim(name: str) -> str:
    return str(VICTIMS / f"{name}.tflite")


def few(out: Path) -> str:
    """The victims' data with the overfitted one's own training set."""
    with np.load(VICTIMS / "data.npz") as arrays:
        found = {name: array[:FEW] if name.endswith("_owner") else array for name, array in arrays.items()}
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "few.npz", **found)
    return str(out / "few.npz")


def arena(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "shadownet", "arena", *arguments], check=True, stdout=subprocess.DEVNULL)


def relative(content: bytes) -> bytes:
    """The model with noise on its weights: each filter moved by NOISE of its norm."""
    model, rng, done = schema.ModelT.InitFromPackedBuf(bytearray(content), 0), np.random.default_rng(0), set()
    for graph in model.subgraphs:
        for op in graph.operators:
            kind = model.operatorCodes[op.opcodeIndex].builtinCode
            if kind not in (CONVOLUTION, DEPTHWISE, DENSE):
                continue
            tensor = graph.tensors[op.inputs[1]]
            if tensor.type != schema.TensorType.FLOAT32 or tensor.buffer in done:
                continue
            done.add(tensor.buffer)
            weights = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(tensor.shape)
            filters = (
                weights.reshape(-1, weights.shape[-1]).T if kind == DEPTHWISE else weights.reshape(len(weights), -1)
            )
            moved = filters + _noise(filters, rng)
            moved = moved.T if kind == DEPTHWISE else moved
            model.buffers[tensor.buffer].data = np.frombuffer(moved.astype(np.float32).tobytes(), np.uint8)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _noise(filters: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(size=filters.shape)
    sizes = np.linalg.norm(filters, axis=1) / np.maximum(np.linalg.norm(noise, axis=1), 1e-12)
    return NOISE * noise * sizes[:, None]


if __name__ == "__main__":
    sys.exit(main())
