"""What a scheme is: how a layer's weights are hidden, how the true result comes back, and what it admits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from enclave.restore import Restore
from enclave.rng import Rng

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one linear layer as a scheme sees them.

    ``rows`` is float32 [groups, filters, d]: each row one filter, flattened, its input channel running fastest. A
    convolution or a dense layer has one group unless it is grouped; a depthwise convolution has one group per input
    channel, with ``multiplier`` filters in each. ``integer`` weights are integer-valued and must stay so; unless they
    may be ``rounded``, their results must be restored exactly. ``channels`` is the input's last dimension.
    """

    rows: Array
    depthwise: bool = False
    integer: bool = False
    rounded: bool = False
    last_dense: bool = False
    channels: int = 0


@dataclass(frozen=True)
class Obfuscated:
    """A scheme's answer. ``rows`` are float32 [groups, M, d] (float64 for integers), public; ``restore`` undoes them
    and gets sealed."""

    rows: Array
    restore: Restore


@dataclass(frozen=True)
class MaskRule:
    """How large the additive activation masks of float layers are.

    ``relative``: sigma in units of the tensor's rms; otherwise ``absolute`` is sigma itself.
    """

    relative: float = 0.0
    absolute: float = 0.0

    def sigma(self, rms: float) -> float:
        return self.absolute if self.absolute else self.relative * rms


@dataclass(frozen=True)
class Claims:
    """A scheme's row of the table: what it hides and what that costs, in a few words, with the source."""

    weights: str
    activations: str
    cost: str
    source: str


@dataclass(frozen=True)
class Place:
    """Where a linear layer stands: its ``position`` among ``count`` linear layers."""

    position: int
    count: int
    depthwise: bool


@runtime_checkable
class Scheme(Protocol):
    """One published (or our own) way to split the work. A scheme is one module; see docs/adding_a_scheme.md."""

    @property
    def name(self) -> str: ...
    @property
    def claims(self) -> Claims: ...
    @property
    def leaks(self) -> tuple[str, ...]:
        """What is known against it, with attack and source; printed wherever the scheme is chosen."""
        ...

    @property
    def mask(self) -> MaskRule | None:
        """Masks of float activations; None sends them in clear."""
        ...

    @property
    def masks_input(self) -> bool:
        """Whether the first layer's input is masked even without ``--mask-input``."""
        ...

    @property
    def activations(self) -> str:
        """The default for ``--activations``: "float" or "exact"."""
        ...

    @property
    def needs_base(self) -> bool:
        """Whether the accelerator gets a public model's weights, and the enclave adds the difference."""
        ...

    @property
    def tuned(self) -> bool:
        """Whether layers may go out in widths that the accelerator's kernels like, for one fixed height and width."""
        ...

    def keeps(self, place: Place) -> str:
        """Why this layer stays in the enclave, or ""."""
        ...

    def obfuscate(self, layer: LayerWeights, ratio: float, rng: Rng) -> Obfuscated:
        """Hide a layer's weights. ``ratio`` is the obfuscation ratio r, M = ceil(r * n)."""
        ...


@dataclass(frozen=True)
class Plain:
    """What most schemes have in common; a scheme without anything else publishes its weights as they are."""

    name: str
    claims: Claims
    leaks: tuple[str, ...]
    mask: MaskRule | None = None
    masks_input: bool = False
    activations: str = "float"
    needs_base: bool = False
    tuned: bool = False

    def keeps(self, place: Place) -> str:
        return ""

    def obfuscate(self, layer: LayerWeights, ratio: float, rng: Rng) -> Obfuscated:
        return Obfuscated(layer.rows, Restore.natural(layer.rows.shape[0] * layer.rows.shape[1]))


NOISE = MaskRule(relative=8.0)  # sigma of float masks, in units of the tensor's rms

FLOAT_MASKS = (
    "activations: float masks are noise; repeated inputs average them out (A15), and the known first input "
    "lets layers be peeled by regression (A16)"
)
PUBLIC = "architecture, shapes, timing, the first layer's input unless it is masked"


def slots(n: int, ratio: float) -> int:
    """M = ceil(r n), not fooled by the binary representation of r."""
    return math.ceil(round(ratio * n, 6))


def is_count(text: str, low: int, high: int) -> bool:
    """Whether a variant is a number in these bounds."""
    return text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high
