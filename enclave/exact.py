"""Exact activations: integers mod p behind one-time pads, computed in limbs on float32 hardware.

The idea is Slalom's (Tramer and Boneh, ICLR 2019). What crosses is x + r mod p, and r is uniform in Z_p and used once,
so what crosses is uniform whatever x is: nothing is learnt from it, however often an input is repeated. The enclave
knows W r mod p beforehand and takes it off the answer; p is above twice the largest |W x|, so that nothing is lost.

Accelerators multiply floats. A float32 sum of integer products is exact, in any order, while the sum of the magnitudes
stays below 2^24; residues of 30 bits are far beyond that. So residues are sent in limbs, digits of an odd base stacked
along the batch, and weights are cut into limbs too (filters of their own), just so finely that the L1 norm of every
filter times the largest digit stays below 2^24.

All integers here are float64 and below 2^50 in magnitude, where each operation that is used is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enclave import limbs
from enclave.restore import Restore
from enclave.rng import Rng

Array = np.ndarray[Any, Any]

WIDE = 1 << 50  # every integer here is smaller

# The largest primes below 2^16, 2^17, …, 2^46, as distances from those powers.
_BELOW = (15, 1, 5, 1, 3, 9, 3, 15, 3, 39, 5, 39, 57, 3, 35, 1, 5, 9, 41, 31, 5, 25, 45, 7, 87, 21, 11, 57, 17, 55, 21)
PRIMES = tuple((1 << k) - below for k, below in enumerate(_BELOW, 16))


def prime_above(bound: int) -> int:
    """The smallest prime of the list above ``bound``. Raises ``ValueError`` if there is none."""
    for prime in PRIMES:
        if prime > bound:
            return prime
    raise ValueError("no prime of the list is large enough")


def largest_sum(rows: Array, largest: float) -> int:
    """The largest magnitude of a sum over integer filters [groups, n, d] with inputs of magnitude ``largest``."""
    return int(np.abs(rows).sum(axis=-1, dtype=np.float64).max(initial=0)) * int(largest)


def balance(t: Array, modulus: int, quotient: Array | None = None) -> Array:
    """Reduce integers ``t`` (float64, below 2^50) in place to the residue nearest zero modulo an odd number.

    ``quotient`` receives the multiple that was taken off. t / modulus is never closer to half an integer than
    1 / (2 modulus), and t * (1 / modulus) errs by less than |t / modulus| 2^-51.9: rounding it finds the right
    multiple, and the residue is the one of its class in [-(modulus - 1) / 2, (modulus - 1) / 2].
    """
    quotient = np.multiply(t, 1.0 / modulus, out=quotient)
    np.rint(quotient, out=quotient)
    t -= quotient * modulus
    return t


@dataclass(frozen=True)
class Digits:
    """Balanced digits: ``count`` of an odd ``base``, each in [-(base - 1) / 2, (base - 1) / 2]."""

    count: int
    base: int

    @property
    def largest(self) -> int:
        return (self.base - 1) // 2

    def cut(self, t: Array, out: Array) -> None:
        """Write the digits of integers ``t`` (float64, overwritten) to ``out`` [count, *t.shape], the lowest first."""
        rest = np.empty_like(t)
        for digit in out[:-1]:
            digit[...] = balance(t, self.base, rest)
            t, rest = rest, t
        out[-1] = t

    def join(self, parts: Sequence[Array], prime: int, largest: int) -> Array:
        """Add up what was computed from each digit: float64, right modulo ``prime``, and below 2^50.

        ``parts`` are float64, magnitudes at most ``largest``, and may be overwritten.
        """
        total, size = parts[-1], largest
        for part in parts[-2::-1]:
            if size * self.base + largest >= WIDE:
                total, size = balance(total, prime), prime // 2
            total *= self.base
            total += part
            size = size * self.base + largest
        return total


@dataclass(frozen=True)
class Weights:
    """How a layer's weights are cut: ``count`` digits of ``base`` per filter, in each of ``groups``; see limbs.join."""

    groups: int
    count: int
    base: int

    def join(self, y: Array) -> Array:
        return limbs.join(y, self.groups, self.count, self.base)


@dataclass(frozen=True)
class Product:
    """One linear layer computed in limbs: of its ``weights``, and of its inputs (``digits``).

    ``bound``: no honest accumulator is larger in magnitude; below 2^24.
    """

    weights: Weights
    digits: Digits
    bound: int

    @property
    def largest(self) -> int:
        """What an accumulator's worth of limbs adds up to at most, per digit of the input."""
        return self.bound * sum(int(self.weights.base**k) for k in range(self.weights.count))

    def join(self, answers: Sequence[Array] | Array, prime: int) -> Array:
        """Answers [*positions, channels in limbs] per digit -> float64 [*positions, channels], nearest zero."""
        parts = [self.weights.join(answer) for answer in answers]
        return balance(self.digits.join(parts, prime, self.largest), prime)

    def fits(self, prime: int) -> bool:
        """Whether putting the answers together stays within exact float64."""
        return prime // 2 * self.digits.base + self.largest < WIDE

    def to_json(self) -> dict[str, list[int] | int]:
        weights, digits = self.weights, self.digits
        return {
            "weights": [weights.groups, weights.count, weights.base],
            "digits": [digits.count, digits.base],
            "bound": self.bound,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Product:
        """Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is none."""
        made = cls(
            Weights(*(int(v) for v in record["weights"])),
            Digits(*(int(v) for v in record["digits"])),
            int(record["bound"]),
        )
        if min(made.digits.count, made.weights.count) < 1 or made.digits.base % 2 == 0 or made.bound >= limbs.LIMIT:
            raise ValueError("no product in limbs")
        return made


def plan(rows: Array, prime: int, sending: float = 0.0) -> tuple[Array, Product]:
    """Cut integer filters [groups, n, d] for inputs in Z_p, with the least work: (float32 rows, product).

    Work is limbs of inputs times limbs of weights, and ``sending`` for each limb of inputs. Limb l of filter k stands
    at row l * n + k of its group. Raises ``ValueError`` if no cut keeps the sums exact.
    """
    values = np.rint(rows).astype(np.int64)
    largest = int(np.abs(values).max(initial=0))
    least, found = math.inf, None
    for count in range(1, largest.bit_length() + 2):
        if count > least:
            break
        cut, base = _cut(values, count, largest)
        norm = max(1, int(np.abs(cut).sum(axis=-1).max(initial=0)))
        digits = _digits(prime, (limbs.LIMIT - 1) // norm)
        if digits is None:
            continue
        product = Product(Weights(values.shape[0], count, base), digits, norm * digits.largest)
        work = digits.count * (count + sending)
        if product.fits(prime) and work < least:
            least, found = work, (cut.astype(np.float32), product)
    if found is None:
        raise ValueError("the layer's sums cannot be kept exact")
    return found


def _cut(values: Array, count: int, largest: int) -> tuple[Array, int]:
    """``count`` balanced digits of the smallest odd base that does, one below the other: (rows, base)."""
    base = _odd_root(2 * largest + 1, count)
    half, out = base // 2, []
    for _ in range(count):
        digit = (values + half) % base - half
        out.append(digit)
        values = (values - digit) // base
    return np.concatenate(out, axis=1), base


def _digits(prime: int, largest: int) -> Digits | None:
    """The fewest balanced digits, none above ``largest``, that hold every residue; None if none do."""
    if largest < 1:
        return None
    count = 1
    while (2 * largest + 1) ** count < prime:
        count += 1
    return Digits(count, _odd_root(prime, count))


def _odd_root(value: int, count: int) -> int:
    """The smallest odd base, at least 3, with base^count >= value."""
    base = max(3, int(value ** (1 / count)) - 2 | 1)
    while base**count < value:
        base += 2
    return base


@dataclass(frozen=True)
class Residues:
    """What the enclave must know to run one layer in Z_p: the ``public`` product, and the one of its ``pop`` masks."""

    prime: int
    public: Product
    pop: Product
    late: bool = False  # restored after unmasking, in floats: the pop mask has the public rows' channels

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Residues:
        """Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what is none."""
        public, pop = (Product.from_json(record[name]) for name in ("public", "pop"))
        made = cls(int(record["prime"]), public, pop, bool(record["late"]))
        if made.prime not in PRIMES or not (made.public.fits(made.prime) and made.pop.fits(made.prime)):
            raise ValueError("no arithmetic mod p")
        return made

    def to_json(self) -> dict[str, Any]:
        return {"prime": self.prime, "public": self.public.to_json(), "pop": self.pop.to_json(), "late": self.late}

    def pad(self, rng: Rng, shape: tuple[int, ...]) -> Array:
        """A fresh one-time pad: float64, uniform over the residues nearest zero."""
        return rng.residues(self.prime, shape).astype(np.float64) - self.prime // 2

    def image(self, answers: list[Array]) -> Array:
        """A pop mask from what the enclave computed of each digit of the pad: float64, residues nearest zero."""
        flat = [answer.reshape(-1, answer.shape[-1]) for answer in answers]
        out = np.empty((len(flat[0]), flat[0].shape[1] // self.pop.weights.count))
        for block in _blocks(len(out), len(flat) * flat[0].shape[1]):
            out[block] = self.pop.join([part[block] for part in flat], self.prime)
        return out.reshape(*answers[0].shape[:-1], -1)

    def send(self, x: Array, pad: Array | None, target: Array) -> None:
        """Write x + pad mod p, in limbs along the batch, to ``target``. ``x`` are integers below p / 2.

        Written is the residue nearest zero, which is unique: nothing but x + pad mod p shows.
        """
        digits = self.public.digits
        flat, out = np.ascontiguousarray(x).reshape(-1), target.reshape(digits.count, -1)
        for block in _blocks(flat.size, 1):
            if pad is None:
                masked = flat[block].astype(np.float64)
            else:
                masked = balance(flat[block] + pad.reshape(-1)[block], self.prime)
            digits.cut(masked, out[:, block])

    def possible(self, answer: Array) -> bool:
        """Whether an honest accelerator may have given this (float32): integers within the proven bound."""
        flat, bound = answer.reshape(-1), np.float32(self.public.bound)
        return all(_integers(flat[block], bound) for block in _blocks(flat.size, 1))

    def receive(self, answer: Array, restore: Restore, pop: Array | None) -> Array:
        """The true sums, float64 [*positions, n], from an answer that is :meth:`possible`."""
        count, channels = self.public.digits.count, answer.shape[-1]
        stacked = answer.reshape(count, -1, channels)
        out = np.empty((stacked.shape[1], restore.slot.shape[1]))
        for block in _blocks(len(out), count * channels):
            joined = self.public.join(stacked[:, block], self.prime)
            y = joined if self.late else restore.apply(joined)
            if pop is not None:
                y -= pop.reshape(-1, y.shape[-1])[block]
            y = balance(y, self.prime)
            out[block] = restore.apply(y) if self.late else y
        return out.reshape(answer.shape[0] // count, *answer.shape[1:-1], -1)

    def restorable(self, restore: Restore) -> bool:
        """Whether this restoring map stays within exact float64, or need not be exact."""
        if self.late:
            return True
        sums = np.abs(restore.coefficient.astype(np.float64)).sum(axis=0)
        whole = np.array_equal(np.rint(restore.coefficient), restore.coefficient)
        return whole and bool((sums.max() + 1) * self.prime / 2 < WIDE)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Cut ``rows`` of ``width`` numbers each into blocks that stay in cache through several passes."""
    step = max(1, (1 << 16) // width)
    return (slice(at, at + step) for at in range(0, rows, step))


def _integers(values: Array, bound: np.float32) -> bool:
    if not (values.max() <= bound and values.min() >= -bound):  # NaN fails too
        return False
    return bool((np.rint(values) == values).all())
