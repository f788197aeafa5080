"""Randomness. Everything secret comes from here, and here everything comes from the operating system's CSPRNG."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from Crypto.Cipher import AES

Array = np.ndarray[Any, Any]

_REKEY = 1 << 30  # bytes of key stream under one key


class Rng:
    """Random arrays from AES-256-CTR key streams, each keyed with 32 fresh bytes of ``os.urandom``."""

    def __init__(self) -> None:
        self._left = 0

    def bytes(self, size: int) -> bytes:
        """``size`` random bytes."""
        if not size:
            return b""
        if size > self._left:
            self._cipher = AES.new(os.urandom(32), AES.MODE_CTR, nonce=b"")
            self._left = max(_REKEY, size)
        self._left -= size
        return self._cipher.encrypt(bytes(size))

    def _u64(self, count: int) -> Array:
        return np.frombuffer(self.bytes(8 * count), "<u8")

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> Array:
        """float64 in [low, high), 53 random bits each."""
        unit = (self._u64(int(np.prod(shape))) >> 11) * 2.0**-53
        return (low + (high - low) * unit).reshape(shape)

    def normal(self, sigma: float, shape: tuple[int, ...]) -> Array:
        """float32 from N(0, sigma^2) by Box and Muller (1958), 32 random bits each."""
        count = int(np.prod(shape))
        half = (count + 1) // 2
        bits = np.frombuffer(self.bytes(8 * half), "<u4")
        radius = np.sqrt(-2.0 * np.log((bits[:half] + np.float32(1.0)) * np.float32(2.0**-32), dtype=np.float32))
        angle = bits[half:] * np.float32(2 * np.pi * 2.0**-32)
        out = np.empty(2 * half, np.float32)
        np.multiply(radius, np.cos(angle, dtype=np.float32), out=out[:half])
        np.multiply(radius, np.sin(angle, dtype=np.float32), out=out[half:])
        out *= np.float32(sigma)
        return out[:count].reshape(shape)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Array:
        """int64 in [low, high). The bias of the modulo is below (high - low) / 2^64."""
        values = self._u64(int(np.prod(shape))) % np.uint64(high - low)
        return values.astype(np.int64).reshape(shape) + low

    def residues(self, prime: int, shape: tuple[int, ...]) -> Array:
        """int64, exactly uniform in [0, prime): draws of as many bits as ``prime`` has, too large ones drawn again."""
        shift = np.uint64(64 - prime.bit_length())
        values = self._u64(int(np.prod(shape))) >> shift
        while (beyond := np.flatnonzero(values >= np.uint64(prime))).size:
            values[beyond] = self._u64(beyond.size) >> shift
        return values.astype(np.int64).reshape(shape)

    def permutation(self, count: int) -> Array:
        """A uniform permutation of 0..count-1 (int64): the order of random 64-bit keys."""
        return np.argsort(self._u64(count), kind="stable")

    def signs(self, count: int) -> Array:
        """float64 vector of +1 and -1."""
        return 1.0 - 2.0 * (np.frombuffer(self.bytes(count), np.uint8) & 1)


class Stream(Rng):
    """The same from one seed: draws are repeated by another stream of the same ``seed`` (32 bytes) and ``number``."""

    def __init__(self, seed: bytes, number: int) -> None:
        self._cipher = AES.new(seed, AES.MODE_CTR, nonce=number.to_bytes(8, "big"))
        self._left = 1 << 62  # AES-CTR's counter ends far beyond any tensor: it is never keyed again
