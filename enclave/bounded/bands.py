"""Linear layers in bands of output rows, with weights that come a few filters at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from enclave.bounded.storage import PAGE, Paged
from enclave.integrity import Geometry, Public

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

DENSE = ("FULLY_CONNECTED", "BATCH_MATMUL")


class Frame:
    """A layer as images of rows: ``source`` [images, rows, columns, channels] and ``target``, as many images.

    The positions of dense layers are the rows of one image with one column.
    """

    def __init__(self, public: Public, source: Shape, target: Shape) -> None:
        self.public = public
        if public.kind in DENSE:
            rows = math.prod(target[:-1])
            source, target = (1, rows, 1, math.prod(source) // max(rows, 1)), (1, rows, 1, target[-1])
        if len(source) != 4 or len(target) != 4:
            raise ValueError("no layer of rows")
        self.source, self.target = source, target
        self._whole = Geometry(public, source, target)
        self._transposed = public.kind == "TRANSPOSE_CONV"

    def reach(self, first: int, end: int) -> tuple[int, int]:
        """Input rows [from, to) that output rows [first, end) depend on; empty where they see padding alone."""
        (kernel, stride, dilation), top = self._along_rows(), self._whole.top
        if self._transposed:
            start, stop = -(-(first + top - kernel + 1) // stride), (end - 1 + top) // stride + 1
        else:
            start, stop = first * stride - top, (end - 1) * stride + (kernel - 1) * dilation - top + 1
        start = min(max(start, 0), self.source[1])
        return start, min(max(stop, start), self.source[1])

    def _along_rows(self) -> tuple[int, int, int]:
        return self.public.kernel[0], self.public.stride[0], self.public.dilation[0]

    def widest(self, rows: int) -> int:
        """The most input rows that a band of ``rows`` output rows depends on."""
        kernel, stride, dilation = self._along_rows()
        reach = (
            (rows + kernel - 2) // stride + 2 if self._transposed else (rows - 1) * stride + (kernel - 1) * dilation + 1
        )
        return min(reach, self.source[1])

    def bands(self, rows: int) -> Iterator[tuple[int, int]]:
        """Cut an image's output rows into bands of at most ``rows``."""
        return ((at, min(at + rows, self.target[1])) for at in range(0, self.target[1], rows))

    def geometry(self, first: int, end: int, images: int, filters: int) -> Geometry:
        """The layer on output rows [first, end) and the input rows that they reach, of ``images`` at once."""
        start, stop = self.reach(first, end)
        stride = self.public.stride[0]
        band = copy.copy(self._whole)
        band.source = (images, stop - start, *self.source[2:])
        band.target = (images, end - first, self.target[2], filters)
        band.top += first - start * stride if self._transposed else start - first * stride
        return band


@dataclass(frozen=True)
class Weights:
    """A layer's weights in ``file``, where ``public`` says that they are."""

    file: Paged
    public: Public

    @property
    def filters(self) -> int:
        return sum(used for _, _, used in self.public.parts)

    @property
    def depth(self) -> int:
        """Channels that a filter sees."""
        return 1 if self._depthwise else self.public.parts[0][1][-1]

    @property
    def _depthwise(self) -> bool:
        return self.public.kind == "DEPTHWISE_CONV_2D"

    @property
    def nbytes(self) -> int:
        return 4 * sum(math.prod(shape) for _, shape, _ in self.public.parts)

    @property
    def least(self) -> int:
        """Bytes that are read at once at least: a page's worth of filters, or all of a depthwise layer's, which lie
        interleaved."""
        if self._depthwise:
            return self.nbytes
        return min(self.nbytes, max(PAGE, *(4 * math.prod(shape[1:]) for _, shape, _ in self.public.parts)))

    def pieces(self, limit: int) -> Iterator[tuple[slice, slice, Array]]:
        """(filters, their input channels, weights [kh, kw, depth, filters]) of at most ``limit`` bytes, or ``least``.

        Depthwise: all filters, depth 1. The arrays are not counted: the caller has set ``limit`` aside.
        """
        kernel = self.public.kernel
        per_group, first = self.filters // self.public.groups, 0
        for at, shape, used in self.public.parts:
            if self._depthwise:
                whole = np.empty(shape, np.float32)
                self.file.read_into(at, whole)
                yield slice(first, first + used), slice(None), whole.reshape(*kernel, 1, shape[-1])
                first += used
                continue
            size, done = 4 * math.prod(shape[1:]), 0
            while done < used:
                group, inside = divmod(first + done, per_group)
                count = min(max(limit // size, 1), used - done, per_group - inside)
                rows = np.empty((count, *shape[1:]), np.float32)
                self.file.read_into(at + done * size, rows)
                taps = rows.reshape(count, *(shape[1:3] if len(shape) == 4 else (1, 1)), shape[-1])
                channels = slice(group * shape[-1], (group + 1) * shape[-1])
                # Widened parts hold each filter's own taps first.
                yield slice(first + done, first + done + count), channels, taps[:, :, : kernel[1]].transpose(1, 2, 3, 0)
                done += count
            first += used


def linear(geometry: Geometry, x: Array, weights: Weights, limit: int) -> Array:
    """The layer's true sums: float32 [images, rows, columns, filters] from float32 x of the geometry's source.

    Sums of integers below 2^24 are exact in any order; others are rounded in another order than LiteRT's.
    """
    out = np.zeros(geometry.target, np.float32)
    for filters, channels, taps in weights.pieces(limit):
        if taps.shape[2] == 1 and weights.public.kind == "DEPTHWISE_CONV_2D":
            _depthwise(geometry, x, taps[:, :, 0], out)
            continue
        for ky, kx, near, far in _taps(geometry):
            source, target = (near, far) if weights.public.kind == "TRANSPOSE_CONV" else (far, near)
            patch = x[:, source[0], source[1], channels]
            sums = patch.reshape(-1, patch.shape[-1]) @ taps[ky, kx]
            out[:, target[0], target[1], filters] += sums.reshape(*patch.shape[:-1], taps.shape[3])
    return out


def _depthwise(geometry: Geometry, x: Array, taps: Array, out: Array) -> None:
    channels = x.shape[-1]
    split = out.reshape(*out.shape[:-1], channels, taps.shape[-1] // channels)
    for ky, kx, near, far in _taps(geometry):
        split[:, near[0], near[1]] += x[:, far[0], far[1], :, None] * taps[ky, kx].reshape(channels, -1)


def _taps(geometry: Geometry) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
    """For each tap of the kernel: (row, column, slices on the near side, slices on the far side)."""
    for ky in range(geometry.public.kernel[0]):
        for kx in range(geometry.public.kernel[1]):
            rows, columns = geometry.meets(0, ky), geometry.meets(1, kx)
            yield ky, kx, (rows[0], columns[0]), (rows[1], columns[1])
