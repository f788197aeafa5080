"""Inputs: arrays from files, and random ones in a tensor's own shape and type."""

from __future__ import annotations

from typing import Any

import numpy as np

from shadownet.wire.errors import InputError
from shadownet.wire.tensors import DTYPES, TensorSpec

Array = np.ndarray[Any, Any]

RANDOM_SEED_QUIET = 1000


def random_inputs(specs: list[TensorSpec], seed: int) -> list[Array]:
    """Values that most models accept: floats in [-1, 1], small non-negative integers, all codes of 8-bit types."""
    rng = np.random.default_rng(seed)
    return [_random(spec, rng) for spec in specs]


def quiet_inputs(specs: list[TensorSpec]) -> list[list[Array]]:
    """For models with float inputs: nearly and entirely silent ones, which show what rounding noise can do."""
    if not any(spec.dtype == "float32" for spec in specs):
        return []
    loud = random_inputs(specs, RANDOM_SEED_QUIET)
    return [[v * v.dtype.type(level) if v.dtype.kind == "f" else v for v in loud] for level in (0.01, 0.0)]


def _random(spec: TensorSpec, rng: np.random.Generator) -> Array:
    if spec.dtype == "string":
        return np.full(spec.shape, b"shadow", object)
    dtype = DTYPES[spec.dtype]
    if dtype.kind in "fc":
        return rng.uniform(-1, 1, spec.shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(spec.shape) < 0.5
    if dtype.itemsize == 1 or (dtype.itemsize == 2 and spec.scale):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, spec.shape).astype(dtype)
    return rng.integers(0, 2, spec.shape).astype(dtype)


def _as_type(value: Array, spec: TensorSpec) -> Array:
    """``value`` in the type of ``spec``. Raises ``InputError`` where that would lose more than precision."""
    if spec.dtype == "string":
        fits = value.dtype.kind in "OSU"
        target = np.dtype(object)
    else:
        target = DTYPES[spec.dtype]
        fits = value.dtype.kind in "biufc" and np.can_cast(value.dtype, target, "same_kind")
        if fits and target.kind in "iu" and value.size:
            fits = np.iinfo(target).min <= value.min() and value.max() <= np.iinfo(target).max
    if not fits:
        raise InputError(f"input {spec.name!r} takes {spec.dtype}, and these {value.dtype.name} values do not fit")
    return value.astype(target)


def split_batch(arrays: list[Array], specs: list[TensorSpec]) -> list[list[Array]]:
    """Cut stacked samples [N, …] into N lists of tensors of the model's own shapes.

    A sample may come with or without the model's batch dimension of 1. Raises ``InputError``.
    """
    counts = {len(a) if a.ndim else 0 for a in arrays}
    if len(arrays) != len(specs) or len(counts) != 1:
        raise InputError(f"the model has {len(specs)} inputs; give as many arrays with equally many samples")
    samples = []
    for i in range(counts.pop()):
        sample = []
        for array, spec in zip(arrays, specs, strict=True):
            value = array[i]
            if value.size != int(np.prod(spec.shape)):
                raise InputError(
                    f"input {spec.name!r} takes the shape {list(spec.shape)}, a sample has {list(value.shape)}"
                )
            sample.append(np.ascontiguousarray(_as_type(value, spec).reshape(spec.shape)))
        samples.append(sample)
    return samples
