"""Finding mask filters among public rows, and the factors of the rows behind them, from the rows alone.

A row x = (w - f) / s and its mask filter f are collinear up to w / s, so mask filters are the hubs of a graph of
correlations. Two things sharpen it. Trained filters are smooth and sparse where masks are white: distances are taken
in a metric in which w is small. And the public ratio tells how many masks there are: choosing that many hubs so that
every row lies near one is a facility location problem, which needs no threshold.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np

from shadownet.attacks.recovery import TINY, cosines
from shadownet.attacks.view import Geometry

Array = np.ndarray[Any, Any]

SWEEPS = 60
SHRINK = 10.0  # as many imaginary filters of average size join each channel's estimate for the metric
SHRINK_NOISE = 0.5  # and for the regression, which has weights of its own against accidents
RIDGE = 0.05
TAILS = (math.inf, 3.0, 1.0, 0.5)  # degrees of freedom of the weights' distribution that are tried


def threshold(d: int) -> float:
    """Above it a cosine of rows of length d is no accident: 5 standard deviations, between 0.2 and 0.9."""
    return min(max(5.0 / math.sqrt(d), 0.2), 0.9)


def hubs_by_threshold(cosine: Array, t: float) -> Array:
    """Rows with some cosine below -t and none above t: mask filters, in ShadowNet's sign. Boolean [M]."""
    c = cosine - 2.0 * np.eye(len(cosine))
    out: Array = (c.max(axis=1) <= t) & ((cosine + 2.0 * np.eye(len(cosine))).min(axis=1) < -t)
    return out


def hubs_by_cover(affinity: Array, count: int, start: Array) -> Array:
    """``count`` rows such that the sum over rows of the affinity to the nearest of them is largest: indices, sorted.

    ``affinity`` [M, M]; a hub covers itself with 1. Starts from the rows marked in ``start`` (boolean [M]), adds and
    drops greedily to the right number, then swaps while that helps (PAM, with the deltas of all swaps at once).
    """
    a = affinity.copy()
    np.fill_diagonal(a, 1.0)
    hubs = np.flatnonzero(start)
    while len(hubs) > count:
        hubs = np.delete(hubs, int(_losses(a, hubs).argmin()))
    return _swap(a, _add(a, hubs, count))


def _losses(a: Array, hubs: Array) -> Array:
    """What dropping each hub would cost, [hubs]."""
    owner, first, second = _best_two(a, hubs)
    return np.bincount(owner, weights=first - second, minlength=len(hubs))


def _best_two(a: Array, hubs: Array) -> tuple[Array, Array, Array]:
    """(position of each row's nearest hub, the affinity to it, the affinity to the second nearest), [M] each."""
    everyone, near = np.arange(len(a)), a[:, hubs]
    owner = near.argmax(axis=1)
    first = near[everyone, owner]
    near[everyone, owner] = -1.0
    return owner, first, near.max(axis=1)


def _add(a: Array, hubs: Array, count: int) -> Array:
    """Add what helps most until there are ``count`` hubs. Gains only shrink, so old ones are bounds (lazy greedy)."""
    chosen = [int(k) for k in hubs]
    best = a[:, hubs].max(axis=1) if len(hubs) else np.full(len(a), -1.0)
    heap = [(-float(gain), k) for k, gain in enumerate(np.maximum(a - best[:, None], 0.0).sum(axis=0))]
    heapq.heapify(heap)
    while len(chosen) < count:
        _, k = heapq.heappop(heap)
        if k in chosen:
            continue
        gain = float(np.maximum(a[:, k] - best, 0.0).sum())
        if heap and gain < -heap[0][0]:
            heapq.heappush(heap, (-gain, k))
            continue
        chosen.append(k)
        best = np.maximum(best, a[:, k])
    return np.array(chosen, dtype=np.int64)


def _swap(a: Array, hubs: Array) -> Array:
    hubs = hubs.copy()
    for _ in range(SWEEPS if len(hubs) else 0):
        owner, first, second = _best_two(a, hubs)
        gain = np.maximum(a - first[:, None], 0.0).sum(axis=0)
        order = np.argsort(owner, kind="stable")  # each hub covers itself at least, so no segment is empty
        lost = np.maximum(a, second[:, None])[order] - np.maximum(a, first[:, None])[order]
        delta = gain[None] + np.add.reduceat(lost, np.searchsorted(owner[order], np.arange(len(hubs))), axis=0)
        delta[:, hubs] = -np.inf
        out, new = np.unravel_index(int(delta.argmax()), delta.shape)
        if delta[out, new] <= 1e-9:
            break
        hubs[out] = new
    return np.sort(hubs)


def whiten(rows: Array, sample: Array, geometry: Geometry) -> Array:
    """``rows`` [p, d] in a metric in which filters like ``sample`` [q, d] are white: same shape.

    The covariance is taken as (kernel positions) x (channels), the latter diagonal; both are shrunk, since there are
    few filters. Layers whose filters are not kernels of channels keep their metric.
    """
    k, c = geometry.kernel[0] * geometry.kernel[1], geometry.channels
    if k * c != rows.shape[1]:
        return rows
    shaped = sample.reshape(len(sample), k, c)
    size = max(float(np.square(shaped).mean()), TINY)
    spread = shaped.transpose(1, 0, 2).reshape(k, -1)
    spatial = spread @ spread.T / (len(sample) * c * size) + RIDGE * np.eye(k)
    channel = np.square(shaped).mean(axis=1).sum(axis=0) / size
    channel = (channel + SHRINK) / (len(sample) + SHRINK)
    out = inverse_root(spatial) @ rows.reshape(len(rows), k, c) / np.sqrt(channel)
    return out.reshape(rows.shape)


def inverse_root(matrix: Array) -> Array:
    """The symmetric inverse square root of a positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    out: Array = (vectors / np.sqrt(np.maximum(values, TINY))) @ vectors.T
    return out


def slopes(x: Array, f: Array, geometry: Geometry) -> tuple[Array, Array]:
    """(slopes b of x = b f + noise, their standard errors), float64 [n], for rows x and their mask filters f, [n, d].

    The noise is w / s: trained weights, correlated within a kernel, different in size from channel to channel and with
    heavy tails, while f is white. A channel in which w is small tells b almost exactly; least squares would not
    listen to it. So each channel's kernel counts as one draw of a multivariate t, fitted by expectation
    maximisation (Lange, Little, Taylor, JASA 1989), its tail chosen by likelihood.
    """
    plain = plain_slopes(x, f)
    k, c = geometry.kernel[0] * geometry.kernel[1], geometry.channels
    if k * c != x.shape[1] or len(x) < 2:
        return plain, _error(x - plain[:, None] * f, f)
    fits = [_fit(x.reshape(-1, k, c), f.reshape(-1, k, c), plain, tail) for tail in TAILS]
    return max(fits, key=lambda fit: fit[2])[:2]


def plain_slopes(x: Array, f: Array) -> Array:
    """Least squares, which here is the orthogonality of w and f: <x, f> / |f|^2."""
    out: Array = np.einsum("nd,nd->n", x, f) / np.maximum(np.einsum("nd,nd->n", f, f), TINY)
    return out


def _error(noise: Array, f: Array) -> Array:
    """Standard errors of least squares, [n]."""
    out: Array = np.sqrt(np.square(noise).mean(axis=1) / np.maximum(np.square(f).sum(axis=1), TINY))
    return out


def _fit(x: Array, f: Array, start: Array, tail: float, rounds: int = 3, steps: int = 6) -> tuple[Array, Array, float]:
    """(slopes [n], standard errors [n], log likelihood) under one tail; x and f are [n, k, c]."""
    n, k, c = x.shape
    b, weight, channel = start, np.ones((n, c)), np.ones(c)
    pull, power = weight, weight
    scale = np.ones((n, 1))
    score = -math.inf
    for _ in range(rounds):
        noise = x - b[:, None, None] * f
        scale = (np.square(noise).sum(axis=1) * weight / channel).sum(axis=1)[:, None] / (k * c) + TINY
        spread = (noise * np.sqrt(weight / channel / scale)[:, None]).transpose(1, 0, 2).reshape(k, -1)
        spatial = spread @ spread.T / (n * c)
        spatial = spatial * k / max(float(np.trace(spatial)), TINY) + 1e-3 * np.eye(k)
        root = inverse_root(spatial)
        xw, fw = root @ x, root @ f
        cross, power = np.einsum("nkc,nkc->nc", xw, fw), np.einsum("nkc,nkc->nc", fw, fw)
        square = np.einsum("nkc,nkc->nc", xw, xw)
        for _ in range(steps):
            error = np.maximum(square - 2 * b[:, None] * cross + np.square(b)[:, None] * power, TINY)
            relative = error / (scale * channel)
            weight = np.ones((n, c)) if math.isinf(tail) else (tail + k) / (tail + relative)
            scale = (weight * error / channel).mean(axis=1, keepdims=True) / k + TINY
            channel = ((weight * error / scale).sum(axis=0) / k + SHRINK_NOISE) / (n + SHRINK_NOISE)
            pull = weight / channel
            b = (pull * cross).sum(axis=1) / np.maximum((pull * power).sum(axis=1), TINY)
        error = np.maximum(square - 2 * b[:, None] * cross + np.square(b)[:, None] * power, TINY)
        score = _likelihood(error / (scale * channel), k, tail)
        score -= 0.5 * k * float(np.log(scale * channel).sum()) + 0.5 * n * c * float(np.linalg.slogdet(spatial)[1])
    # Fisher information of a t location; the weights alone would claim too much.
    known = (pull * power / scale).sum(axis=1) * (1.0 if math.isinf(tail) else (tail + k) / (tail + k + 2.0))
    return b, 1.0 / np.sqrt(np.maximum(known, TINY)), score


def _likelihood(relative: Array, k: int, tail: float) -> float:
    """Sum of the log densities of a standard k-variate t at squared radii ``relative``; normal if tail is infinite."""
    if math.isinf(tail):
        return float(-0.5 * relative.sum() - 0.5 * k * math.log(2 * math.pi) * relative.size)
    one = math.lgamma((tail + k) / 2) - math.lgamma(tail / 2) - 0.5 * k * math.log(tail * math.pi)
    return float(one * relative.size - 0.5 * (tail + k) * np.log1p(relative / tail).sum())


def nearest(rows: Array, hubs: Array, signed: bool) -> tuple[Array, Array, Array]:
    """(the other rows' indices [n], the hub of each [n], the affinity [n]); ``signed``: hubs point the other way."""
    rest = np.setdiff1d(np.arange(len(rows)), hubs)
    c = cosines(rows[rest], rows[hubs])
    affinity = -c if signed else np.abs(c)
    best = affinity.argmax(axis=1)
    return rest, hubs[best], affinity[np.arange(len(rest)), best]
