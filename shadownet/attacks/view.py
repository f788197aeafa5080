"""What an adversary holds: explicit, graded, and nothing else.

A view is built from the public half of a bundle (``manifest.json``, ``accelerator.tflite``) and from what is handed in
by name. The sealed half is never opened, and nothing here imports code that could. The adversary is adaptive: told
the scheme and its parameters, never its secrets.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.graph import Graph, Op, Subgraph, load
from shadownet.wire.errors import BundleError, InputError, ModelError
from shadownet.wire.manifest import read_manifest

Array = np.ndarray[Any, Any]

PUBLIC_MODEL = "accelerator.tflite"
MAX_TRANSCRIPT = 8 << 30  # bytes of arrays that one transcript may unpack to
_LINEAR = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "TRANSPOSE_CONV": 4, "FULLY_CONNECTED": 2}  # rank of the weights


class Knowledge(IntEnum):
    """How much an adversary gets; each level includes those before it."""

    PUBLIC = 0  # the public half of the bundle
    TRANSCRIPT = 1  # and what crossed in runs that others made
    CHOSEN_INPUTS = 2  # and may run it on inputs of its choice, repeatedly
    MALICIOUS = 3  # and is the accelerator: may answer anything


@dataclass(frozen=True)
class Geometry:
    """How a layer's op reads its input. Pairs are (height, width); ``paddings`` is an absorbed PAD, [4, 2] or empty.

    ``kernel`` is (1, 1) for dense layers; ``channels`` the input channels that one filter reads, so that
    d = kernel[0] * kernel[1] * channels, in this order (1 channel for depthwise layers).
    """

    kernel: tuple[int, int]
    channels: int
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: str = ""
    paddings: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class PublicLayer:
    """One outsourced layer as the accelerator sees it.

    ``rows`` are float64 [groups, M, d], read-only: the public filters, a row each; depthwise layers have one group
    per input channel, [channels, multiplier, k * k]. ``filters`` is the layer's true number n of filters over all
    groups, as the manifest tells. ``index`` is the position in the file, ``op_id`` the op's id in the original.
    ``numbers`` is "float", "hybrid", "integer" or "fixed"; rows of all but the first are integer-valued, their limbs
    put together. ``digits`` of a residue stand one after the other along the batch of what is sent (exact activations).
    """

    name: str
    index: int
    op_id: int
    kind: str
    rows: Array
    filters: int
    depthwise: bool
    numbers: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    geometry: Geometry
    masked: bool
    digits: int = 1

    @property
    def groups(self) -> int:
        return int(self.rows.shape[0])

    @property
    def slots(self) -> int:
        """M, the public filters of one group."""
        return int(self.rows.shape[1])

    @property
    def depth(self) -> int:
        """d, the weights of one filter."""
        return int(self.rows.shape[2])

    @property
    def per_group(self) -> int:
        """n / groups, the true filters of one group."""
        return self.filters // self.groups


@dataclass(frozen=True, eq=False)
class Crossing:
    """One call of the accelerator: what the enclave ``sent`` and ``received`` for ``layer`` (a signature's name)."""

    layer: str
    sent: Array
    received: Array


class Oracle:
    """Labelled queries under a budget: ``oracle(inputs)`` gives a label for each of the N samples in ``inputs``.

    ``answer`` maps [N, ...] to [N]; ``used`` counts samples. Raises ``InputError`` over budget, before asking.
    """

    def __init__(self, answer: Callable[[Array], Array], budget: int) -> None:
        self._answer, self.budget, self.used = answer, budget, 0

    @property
    def left(self) -> int:
        return self.budget - self.used

    def __call__(self, inputs: Array) -> Array:
        if len(inputs) > self.left:
            raise InputError(f"{len(inputs)} queries asked, {self.left} of {self.budget} left")
        self.used += len(inputs)
        labels = np.asarray(self._answer(inputs))
        if len(labels) != len(inputs):
            raise InputError(f"the oracle gave {len(labels)} labels for {len(inputs)} inputs")
        return labels


@dataclass(frozen=True, eq=False)
class AdversaryView:
    """Everything an attack may use.

    ``parameters`` are the public options of the conversion (ratio, activations, integrity, ...). ``base`` has for each
    layer the rows of the same layer in a public model, float64 [groups, n, d], or None where that model has none.
    ``transcript`` and ``oracle`` are None unless given; a transcript needs :attr:`Knowledge.TRANSCRIPT`. ``inputs``
    [T, ...] are those of the transcript's runs, known where the adversary chose them (:attr:`Knowledge.CHOSEN_INPUTS`);
    ``features`` are then the inputs [T, ...] of layers in the public model on the same runs, by the layer's name.
    ``other`` is the public half of another bundle of the same model. ``interface`` is the manifest's description of the
    model's inputs and outputs.
    """

    scheme: str
    parameters: dict[str, Any]
    layers: tuple[PublicLayer, ...]
    knowledge: Knowledge = Knowledge.PUBLIC
    base: tuple[Array | None, ...] | None = None
    transcript: tuple[Crossing, ...] | None = None
    oracle: Oracle | None = None
    interface: dict[str, Any] = field(default_factory=dict)
    inputs: Array | None = None
    features: Mapping[str, Array] | None = None
    other: AdversaryView | None = None

    def __post_init__(self) -> None:
        if self.transcript is not None and self.knowledge < Knowledge.TRANSCRIPT:
            raise InputError("an adversary with the public files only has no transcript")
        if self.inputs is not None and self.knowledge < Knowledge.CHOSEN_INPUTS:
            raise InputError("an adversary that does not choose inputs knows the first layer's at most")
        if self.base is not None and len(self.base) != len(self.layers):
            raise InputError("a public base has one entry for each layer")

    def prior(self, layer: PublicLayer) -> Array | None:
        """The public model's rows of ``layer``, float64 [groups, n, d], or None."""
        return self.base[layer.index] if self.base is not None else None

    def crossings(self, layer: PublicLayer) -> list[Crossing]:
        """What crossed for ``layer``, in order; [] without a transcript."""
        return [c for c in self.transcript or () if c.layer == layer.name]

    def sent(self, layer: PublicLayer) -> list[Array]:
        """What was sent to ``layer`` in each run, [batch, ...]; digits of residues are put together, to float64."""
        return [c.sent if layer.digits == 1 else join_digits(c.sent, layer.digits) for c in self.crossings(layer)]


def read_view(
    bundle: str | os.PathLike[str],
    knowledge: Knowledge = Knowledge.PUBLIC,
    base: Sequence[Array | None] | None = None,
    transcript: str | os.PathLike[str] | None = None,
    oracle: Oracle | None = None,
) -> AdversaryView:
    """Build a view from the public half of the bundle directory ``bundle``.

    ``base`` comes from :func:`shadownet.attacks.base.align`; ``transcript`` is a file of ``run --record``. Raises
    ``BundleError`` or ``ModelError`` for a public half that cannot be read.
    """
    directory = Path(bundle)
    manifest = read_manifest(directory)
    layers: list[PublicLayer] = []
    if manifest["layers"]:
        graph, _ = load(directory / PUBLIC_MODEL)
        try:
            exact = manifest["options"].get("activations") == "exact"
            layers = [_layer(graph, k, record, exact) for k, record in enumerate(manifest["layers"])]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration):
            raise BundleError("manifest.json and accelerator.tflite do not fit together") from None
    return AdversaryView(
        scheme=str(manifest.get("scheme", "")),
        parameters=dict(manifest["options"]) | _told(str(manifest.get("scheme", ""))),
        layers=tuple(layers),
        knowledge=knowledge,
        base=None if base is None else tuple(base),
        transcript=None if transcript is None else read_transcript(transcript),
        oracle=oracle,
        interface={key: manifest.get(key) for key in ("entries", "normalization")},
    )


def _told(scheme: str) -> dict[str, Any]:
    """What a scheme's name tells: the size of its groups."""
    family, _, variant = scheme.partition(":")
    return {"group": int(variant)} if family in ("groupcover", "mix") and variant.isdigit() else {}


def read_transcript(path: str | os.PathLike[str]) -> tuple[Crossing, ...]:
    """Read a recording of ``accelerator/recorder.py``: ``NNNNNN.SIGNATURE.x`` and ``.y`` for each call.

    Raises ``InputError`` for anything that is not one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_TRANSCRIPT:
                raise InputError(f"{path} holds more than {MAX_TRANSCRIPT >> 30} GiB")
        with np.load(path, allow_pickle=False) as arrays:
            calls = sorted(name.removesuffix(".x") for name in arrays.files if name.endswith(".x"))
            return tuple(Crossing(call.split(".", 1)[1], arrays[f"{call}.x"], arrays[f"{call}.y"]) for call in calls)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, EOFError):
        raise InputError(f"{path} is not a transcript", "shadownet run --record DIR makes one") from None


def _layer(graph: Graph, index: int, record: dict[str, Any], exact: bool) -> PublicLayer:
    name = str(record["signature"])
    signature = next(s for s in graph.signatures if s.key == name)
    part = graph.subgraphs[signature.subgraph]
    ops = [op for op in part.ops if op.kind in _LINEAR]
    op = ops[0]
    parts = [part.tensors[op.input(1)].values().astype(np.float64) for op in ops]
    if any(weights.ndim != _LINEAR[op.kind] for weights in parts):
        raise ValueError(name)
    x = part.tensors[signature.inputs["x"]].shape
    weights = parts[0] if len(parts) == 1 else _joined(parts, record["tiles"])
    geometry = _geometry(part, op, weights.shape)
    rows = join_limbs(_rows(op.kind, weights, geometry, _channels(part, op)), int(record.get("limbs", 1)), exact)
    rows = np.ascontiguousarray(rows)
    rows.flags.writeable = False
    filters = int(record["filters"])
    if filters < 1 or filters % rows.shape[0]:
        raise ValueError(name)
    return PublicLayer(
        name=name, index=index, op_id=int(record["id"]), kind=str(record["op"]), rows=rows, filters=filters,
        depthwise=op.kind == "DEPTHWISE_CONV_2D", numbers=str(record.get("numbers", "float")), input_shape=x,
        output_shape=part.tensors[signature.outputs["y"]].shape, geometry=geometry,
        masked=bool(record.get("masked", True)), digits=int(record.get("input_limbs", 1)),
    )  # fmt: skip


def _joined(parts: list[Array], tiles: Any) -> Array:
    """A convolution that goes out in parts (:mod:`shadownet.tiling`): the first part's kernel is the layer's own, a
    widened part holds each filter's taps first."""
    kernel = parts[0].shape[2]
    return np.concatenate([p[: int(m), :, :kernel] for p, (m, _) in zip(parts, tiles, strict=True)])


def _channels(part: Subgraph, op: Op) -> int:
    """Channels of the op's own data input."""
    return part.tensors[op.inputs[2 if op.kind == "TRANSPOSE_CONV" else 0]].shape[-1]


def _geometry(part: Subgraph, op: Op, shape: tuple[int, ...]) -> Geometry:
    if op.kind == "FULLY_CONNECTED":
        return Geometry((1, 1), shape[1])
    options = op.options
    dilation = (getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1))
    pad = next((p for p in part.ops if p.kind == "PAD"), None)
    amounts = part.tensors[pad.input(1)].values() if pad is not None else ()
    return Geometry(
        kernel=(shape[1], shape[2]),
        channels=1 if op.kind == "DEPTHWISE_CONV_2D" else shape[3],
        stride=(options.strideH, options.strideW),
        dilation=dilation,
        padding={0: "SAME", 1: "VALID"}[options.padding],
        paddings=tuple((int(a), int(b)) for a, b in amounts),
    )


def _rows(kind: str, weights: Array, geometry: Geometry, channels: int) -> Array:
    """TFLite's layout -> [groups, rows of a group, d]."""
    if kind == "DEPTHWISE_CONV_2D":
        return weights.reshape(math.prod(geometry.kernel), channels, -1).transpose(1, 2, 0)
    groups = channels // geometry.channels if kind == "CONV_2D" else 1
    return weights.reshape(groups, -1, math.prod(geometry.kernel) * geometry.channels)


def join_limbs(rows: Array, limbs: int, exact: bool = False) -> Array:
    """Put integers back together: rows [groups, limbs * M, d], limb l of row k at l * M + k -> [groups, M, d].

    Digits of base 2^b lie in [-2^(b-1), 2^(b-1)); all limbs but the last use that range, so its smallest power of two
    is read off them. ``exact`` activations have odd bases b with digits up to (b - 1) / 2. The base itself is sealed,
    and no secret.
    """
    if limbs == 1:
        return rows
    groups, total, d = rows.shape
    if total % limbs:
        raise ModelError("a layer's limbs do not divide its rows")
    parts = rows.reshape(groups, limbs, total // limbs, d)
    low = parts[:, :-1]
    reach = max(-2 * float(low.min(initial=0)), 2 * (float(low.max(initial=0)) + 1), 2.0)
    base = 2 * float(np.abs(low).max(initial=1)) + 1 if exact else 2.0 ** math.ceil(math.log2(reach))
    joined: Array = np.tensordot(base ** np.arange(limbs), parts, axes=(0, 1))
    return joined


def join_digits(sent: Array, digits: int) -> Array:
    """Exact activations cross as balanced digits, the lowest first: [digits * batch, ...] -> float64 [batch, ...].

    The base is odd and sealed, and no secret: the largest digit of a residue shows it.
    """
    base = 2.0 * float(np.abs(sent).max(initial=1)) + 1.0
    parts = sent.reshape(digits, -1, *sent.shape[1:]).astype(np.float64)
    joined: Array = np.tensordot(base ** np.arange(digits), parts, axes=1)
    return joined
