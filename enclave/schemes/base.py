"""What a scheme is: how a layer's weights are hidden, how the true result comes back, and what it admits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from enclave.restore import Restore
from enclave.rng import Rng

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one linear layer as a scheme sees them.

    ``rows`` is float32 [groups, filters, d]: each row one filter, flattened. A convolution or a dense layer has
    one group unless it is grouped; a depthwise convolution has one group per input channel, with
    ``multiplier`` filters in each. ``integer`` weights are integer-valued and must stay so.
    """

    rows: Array
    depthwise: bool = False
    integer: bool = False
    last_dense: bool = False


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


class Scheme(Protocol):
    """One published (or our own) way to split the work. A scheme is one module; see enclave/schemes/__init__.py."""

    @property
    def name(self) -> str: ...
    @property
    def mask(self) -> MaskRule: ...
    @property
    def tuned(self) -> bool:
        """Whether layers may go out in widths that the accelerator's kernels like, for one fixed height and width."""
        ...

    @property
    def protects(self) -> tuple[str, ...]: ...
    @property
    def leaks(self) -> tuple[str, ...]: ...

    def obfuscate(self, layer: LayerWeights, ratio: float, rng: Rng) -> Obfuscated:
        """Hide a layer's weights. ``ratio`` is the obfuscation ratio r, M = ceil(r * n)."""
        ...
