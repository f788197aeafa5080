"""A13: train what was recovered on the answers of the victim, and say how close it comes.

Adam on the cross-entropy of hard labels; what may move is the caller's choice (biases only, or everything). An attacker
without the leak does the same from the public model or from fresh weights: that is the black box every figure is
normalised by. Sources: surrogates after Zhang et al., S&P 2024 (arXiv:2310.07152); FGSM, Goodfellow et al. 2015
(arXiv:1412.6572); PGD, Madry et al. 2018 (arXiv:1706.06083); membership by confidence, Yeom et al. 2018
(arXiv:1709.01604), calibrated by how hard samples are, Watson et al. 2022 (arXiv:2111.08440), read at a fixed
false-positive rate as in Carlini et al. 2022 (arXiv:2112.03570); by the norm of the gradient with respect to the input,
Rezaei and Liu 2021 (arXiv:2005.08679).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shadownet.attacks.network import LINEAR, Network

Array = np.ndarray[Any, Any]

BATCH = 32
EPSILON = 0.1  # of the input's range, for adversarial examples
PGD_STEPS = 10
SHADOWS, SHADOW_STEPS = 2, 400
LOW_RATE = 0.01  # the false-positive rate at which membership inference is read


def biases(network: Network) -> list[int]:
    """Parameters that are vectors: biases and what is left of BatchNorm."""
    return [t for t, a in network.parameters.items() if a.ndim == 1]


def train(
    network: Network, x: Array, labels: Array, movable: Iterable[int], steps: int = 600, rate: float = 3e-3,
    spread: float = 0.0, seed: int = 0,
) -> None:  # fmt: skip
    """Fit ``network`` in place to ``labels`` [N] on ``x`` [N, ...]; only parameters ``movable`` change.

    ``spread`` is the deviation of a normal prior around where they start; 0 means none.
    """
    if not len(x) or not steps:
        return
    rng = np.random.default_rng(seed)
    movable = list(movable)
    start = {t: network.parameters[t] for t in movable}
    first = {t: np.zeros_like(network.parameters[t]) for t in movable}
    second = {t: np.zeros_like(network.parameters[t]) for t in movable}
    for step in range(1, steps + 1):
        pick = rng.permutation(len(x))[:BATCH]
        values, tape = network.forward(x[pick])
        found = network.gradients(tape, network.logits, _slope(values[network.logits], labels[pick]))
        now = rate * 0.5 * (1.0 + np.cos(np.pi * step / steps))
        for t in movable:
            if t not in found:
                continue
            g: Array = found[t]
            if spread:
                g = g + (network.parameters[t] - start[t]) / (spread**2 * len(x))
            first[t] = 0.9 * first[t] + 0.1 * g
            second[t] = 0.999 * second[t] + 0.001 * g * g
            move: Array = first[t] / (1 - 0.9**step) / (np.sqrt(second[t] / (1 - 0.999**step)) + 1e-8)
            network.parameters[t] = np.asarray(network.parameters[t] - now * move, np.float32)


def fresh(network: Network, seed: int) -> Network:
    """The same architecture with He-normal weights and biases of zero: the black box without a public model."""
    rng = np.random.default_rng(seed)
    twin = network.copy()
    for op in twin.ops:
        if op.kind in LINEAR and op.inputs[1] in twin.parameters:
            shape = twin.parameters[op.inputs[1]].shape
            fan_in = int(np.prod(shape[1:3] if op.kind == "DEPTHWISE_CONV_2D" else shape[1:]))
            twin.parameters[op.inputs[1]] = np.asarray(rng.normal(0, np.sqrt(2 / fan_in), shape), np.float32)
            if op.input(2) in twin.parameters:
                twin.parameters[op.inputs[2]] = np.zeros_like(twin.parameters[op.inputs[2]])
    return twin


def cross_entropy(network: Network, x: Array, labels: Array) -> float:
    chosen = probabilities(network, x)[np.arange(len(x)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean()) if len(x) else 0.0


def probabilities(network: Network, x: Array) -> Array:
    """Softmax of the scores, float64 [N, classes]."""
    scores = network.scores(x).reshape(len(x), -1).astype(np.float64)
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    out: Array = e / e.sum(axis=1, keepdims=True)
    return out


@dataclass(frozen=True)
class Quality:
    """One model beside the victim: ``accuracy`` on true labels, ``fidelity`` agreement of top classes, ``fgsm`` and
    ``pgd`` the shares of adversarial examples that carry over to the victim, membership inference as area under the
    curve and as true-positive rate at 1 % false positives, ``gradient_auc`` the area for inference by the gradient's
    norm (None without members)."""

    accuracy: float
    fidelity: float
    fgsm: float
    pgd: float
    member_auc: float | None
    member_tpr: float | None
    gradient_auc: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def quality(
    model: Network, victim: Network, x: Array, y: Array, members: tuple[Array, Array] | None = None,
    others: Sequence[Network] = (),
) -> Quality:  # fmt: skip
    """Measure ``model`` on held-out data ``x`` [N, ...], ``y`` [N]; ``members`` are training data of the victim.

    ``others`` are :func:`shadows`, by which membership inference is calibrated.
    """
    answers, theirs = model.classify(x), victim.classify(x)
    usable = theirs == y
    reach = EPSILON * float(x.max() - x.min())
    fgsm, pgd = (transfer(model, victim, x[usable], y[usable], reach, steps) for steps in (1, PGD_STEPS))
    auc = tpr = gradient = None
    if members is not None:
        auc, tpr = membership(model, members, (x, y), others)
        gradient, _ = separation(*(-gradient_norms(model, *side) for side in (members, (x, y))))
    return Quality(float((answers == y).mean()), float((answers == theirs).mean()), fgsm, pgd, auc, tpr, gradient)


def transfer(model: Network, victim: Network, x: Array, y: Array, reach: float, steps: int) -> float:
    """Share of examples within ``reach`` (largest norm), made on ``model``, that the victim gets wrong. [N] > 0."""
    if not len(x):
        return 0.0
    low, high = float(x.min()), float(x.max())
    moved: Array = x.astype(np.float32)
    for _ in range(steps):
        values, tape = model.forward(moved)
        slope = model.gradients(tape, model.logits, _slope(values[model.logits], y)).get(model.input)
        if slope is None:
            return 0.0
        stride = reach if steps == 1 else 2.5 * reach / steps
        moved = np.clip(moved + stride * np.sign(slope), x - reach, x + reach).clip(low, high)
    return float((victim.classify(moved) != y).mean())


def shadows(network: Network, x: Array, y: Array, seed: int) -> list[Network]:
    """Networks of the same architecture, each trained on half of samples that are no members."""
    rng, found = np.random.default_rng(seed), []
    for k in range(SHADOWS):
        part = rng.permutation(len(x))[: len(x) // 2]
        found.append(fresh(network, seed + k))
        train(found[-1], x[part], y[part], list(network.parameters), SHADOW_STEPS, seed=seed + k)
    return found


def membership(
    model: Network, members: tuple[Array, Array], outsiders: tuple[Array, Array], others: Sequence[Network] = ()
) -> tuple[float, float]:
    """:func:`separation` by the confidence in the true label, less what models that never saw the sample have in it.

    Each side is samples [N, ...] and labels [N]; without ``others`` it is the confidence alone.
    """

    def confidence(network: Network, side: tuple[Array, Array]) -> Array:
        p = probabilities(network, side[0])[np.arange(len(side[0])), side[1].astype(np.int64)].clip(1e-12, 1 - 1e-12)
        out: Array = np.log(p) - np.log1p(-p)
        return out

    inside, outside = (
        confidence(model, side) - sum(confidence(other, side) for other in others) / max(len(others), 1)
        for side in (members, outsiders)
    )
    return separation(inside, outside)


def gradient_norms(model: Network, x: Array, y: Array) -> Array:
    """Euclidean norm of d cross-entropy / d input for each sample, float64 [N]: small where the model was fitted."""
    found = []
    for i in range(0, len(x), 256):
        values, tape = model.forward(x[i : i + 256])
        slope = _slope(values[model.logits], y[i : i + 256]) * len(x[i : i + 256])
        gradient = model.gradients(tape, model.logits, slope).get(model.input, np.zeros_like(x[i : i + 256]))
        found.append(np.linalg.norm(gradient.reshape(len(gradient), -1).astype(np.float64), axis=1))
    return np.concatenate(found)


def separation(inside: Array, outside: Array) -> tuple[float, float]:
    """(area under the curve, true-positive rate at 1 % false positives) of taking large values for members."""
    below = np.searchsorted(np.sort(outside), inside, "left") + np.searchsorted(np.sort(outside), inside, "right")
    auc = float(below.mean() / (2 * len(outside)))
    bar = np.sort(outside)[::-1][int(LOW_RATE * len(outside))]
    return auc, float((inside > bar).mean())


def _slope(scores: Array, labels: Array) -> Array:
    """d (mean cross-entropy) / d scores."""
    flat = scores.reshape(len(scores), -1).astype(np.float64)
    e = np.exp(flat - flat.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    p[np.arange(len(p)), labels.astype(np.int64)] -= 1.0
    return (p / len(p)).reshape(scores.shape)
