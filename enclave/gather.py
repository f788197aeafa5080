"""Gathering: the input of a layer put together from several tensors while it is masked, where a trusted segment that
does nothing else would have to write it first. The C loop does it; without that, segments run as ever."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
WAYS = ("copy", "max", "mean")  # numbered as in _native.c


@dataclass(frozen=True)
class Gather:
    """Channels of tensors [batch, height, width, channels], as (tensor, first, count), side by side; then pooled in one
    of ``WAYS`` over windows of ``size``, (0, 0) for all positions."""

    pieces: list[tuple[int, int, int]]
    way: int
    size: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def parse(cls, record: dict[str, Any]) -> Gather:
        """Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is none."""
        pieces = [(int(t), int(first), int(count)) for t, first, count in record["pieces"]]
        size, stride = ((int(height), int(width)) for height, width in (record["size"], record["stride"]))
        if not pieces or any(first < 0 or count < 1 for _, first, count in pieces):
            raise ValueError("no channels to gather")
        if min(size) < 0 or min(stride) < 1:
            raise ValueError("no windows to gather from")
        return cls(pieces, WAYS.index(record["how"]), size, stride)

    @property
    def channels(self) -> int:
        return sum(count for _, _, count in self.pieces)

    def sources(self) -> list[int]:
        """The tensors that it reads."""
        return [t for t, _, _ in self.pieces]


@dataclass(frozen=True)
class Window:
    """A gather with known shapes: ``source`` and ``target`` are [batch, height, width] before and after pooling,
    ``widths`` the channels of each piece's tensor."""

    gather: Gather
    source: Shape
    target: Shape
    size: tuple[int, int]
    widths: list[int]


def window(gather: Gather, known: dict[int, Shape], wanted: Shape) -> Window | None:
    """``known`` has the shapes of tensors, ``wanted`` is that of the result as LiteRT computes it. None where shapes
    are not those that the gather was written for, or a pooling pads."""
    shapes = [known[t] for t in gather.sources()]
    if any(len(shape) != 4 or shape[:3] != shapes[0][:3] for shape in shapes):
        return None
    if any(first + count > shape[3] for (_, first, count), shape in zip(gather.pieces, shapes, strict=True)):
        return None
    batch, height, width = shapes[0][:3]
    size = (height, width) if gather.size == (0, 0) else gather.size
    reached = [(d - s) // by + 1 for d, s, by in zip((height, width), size, gather.stride, strict=True)]
    # With padding there would be more positions than these.
    if min(batch, *size, *reached) < 1 or math.prod((batch, *reached)) * gather.channels != math.prod(wanted):
        return None
    return Window(gather, shapes[0][:3], (batch, *reached), size, [shape[3] for shape in shapes])
