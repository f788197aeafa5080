"""From a bundle to a working model: weights, their order, biases, and a ``.tflite`` file that runs.

    1. weights of each layer by the attack that fits (:func:`registry.believed`), never chosen by the truth
    2. their order: as in the public model where there is one; else from what crossed (:mod:`order`); the classifier's
       rows by the labels; else unknown
    3. biases: from what crossed; else the public model's; then fitted to labelled answers, if there are any
    4. where an order stayed unknown, everything is fitted: a surrogate that starts from what was recovered

The attacker knows the architecture: a public model of the same, or an empty skeleton, is the file whose numbers are
replaced. THREAT_MODEL.md says that architecture leaks; see also :func:`shadownet.attacks.network.skeleton`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shadownet.attacks import registry, surrogate
from shadownet.attacks.network import Network
from shadownet.attacks.order import BELIEVED, Ordered, order_layer, refine, repair
from shadownet.attacks.recovery import Recovery, assign
from shadownet.attacks.view import AdversaryView, PublicLayer
from shadownet.graph import Op
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]

RUNS = 32  # recorded runs that take part in ordering
BIAS_RATE = 1e-2
BIAS_SPREAD = 0.3  # how far biases are expected from where they start
ENOUGH = 40  # labels below which nothing is held out to choose by
# Where fitting biases alone gets the held-out loss below SURE, fitting everything must make it so much smaller: a few
# labels are noise, and weights that do well without them deserve the benefit of the doubt.
MARGIN, SURE = 0.5, 0.7


@dataclass(frozen=True)
class Piece:
    """How one layer was got: ``attack``; ``order`` is "natural", "public model", "transcript", "labels" or "unknown";
    ``doubt`` the share of the next layer's input that the order leaves unexplained, None where nothing crossed."""

    layer: str
    attack: str
    form: str
    order: str
    doubt: float | None


@dataclass(frozen=True, eq=False)
class Stolen:
    """The stolen model. ``fitted`` says which parameters labels were used for: "nothing", "biases", "everything"."""

    network: Network
    pieces: tuple[Piece, ...]
    queries: int
    fitted: str


@dataclass(eq=False)
class _Layer:
    layer: PublicLayer
    op: Op
    attack: str
    recovery: Recovery
    weights: Array  # in the op's layout, filters in ``order``
    order: str = "unknown"
    doubt: float | None = None


def steal(view: AdversaryView, skeleton: Network, inputs: Array | None = None, seed: int = 0) -> Stolen:
    """Steal with everything that ``view`` has.

    ``skeleton`` gives the architecture, and where to start from: a public model, or an empty one. ``inputs`` [N, ...]
    are the attacker's own samples: the view's oracle labels as many of them as its budget allows. Raises
    ``InputError`` if skeleton and bundle are of different architectures.
    """
    network = skeleton.copy()
    layers = [_recover(view, layer, network) for layer in view.layers]
    inside = _start_where_nothing_is_known(network, layers, seed)
    _in_order(view, network, layers)
    queries, x, labels = 0, np.zeros((0, *network.input_shape), np.float32), np.zeros(0, np.int64)
    if view.oracle is not None and inputs is not None and view.oracle.left:
        x = inputs[: view.oracle.left].reshape(-1, *network.input_shape).astype(np.float32)
        labels = np.asarray(view.oracle(x)).astype(np.int64)
        queries = len(x)
    _classes(network, layers, x, labels)
    fitted = _fit(network, layers, x, labels, inside, seed)
    pieces = tuple(Piece(one.layer.name, one.attack, one.recovery.form, one.order, one.doubt) for one in layers)
    return Stolen(network, pieces, queries, fitted)


def _recover(view: AdversaryView, layer: PublicLayer, network: Network) -> _Layer:
    op = next((op for op in network.linear() if (op.id, op.kind) == (layer.op_id, layer.kind)), None)
    if op is None or layer.numbers not in ("float", "fixed"):
        why = "layers of 8 bits are not supported" if op is not None else f"layer {layer.name} is not in it"
        raise InputError(f"the skeleton cannot take the stolen weights: {why}", "a file of the same architecture")
    name, found = registry.believed(view, layer)
    known = network.parameters[op.inputs[1]]
    shape = known.shape
    if found.rows.size != int(np.prod(shape)):
        raise InputError("the skeleton is of another architecture than the bundle", "its layers differ in size")
    weights = from_rows(found.rows, shape, layer.depthwise)
    if layer.numbers == "fixed":
        weights = in_real_units(weights, known, layer.depthwise, found.ordered and view.prior(layer) is not None)
    network.parameters[op.inputs[1]] = weights
    order = "unknown"
    if found.ordered:
        exposed = name == "A0"
        order = "public model" if not exposed else "unknown" if layer.depthwise or not _kept(view, layer) else "natural"
    return _Layer(layer, op, name, found, weights, order)


def _start_where_nothing_is_known(network: Network, layers: Sequence[_Layer], seed: int) -> bool:
    """Draw weights for layers that stayed inside, where the skeleton is empty; whether any stayed inside."""
    outside = {one.op.id for one in layers}
    inside = [op for op in network.linear() if op.id not in outside]
    drawn = surrogate.fresh(network, seed).parameters if inside else {}
    for op in inside:
        if not network.parameters[op.inputs[1]].any():
            network.parameters[op.inputs[1]] = drawn[op.inputs[1]]
    return bool(inside)


def _kept(view: AdversaryView, layer: PublicLayer) -> bool:
    """The released code leaves the last dense layer as it is; at r = 1 rows are permuted all the same."""
    if view.scheme == "shadownet:artifact":
        return layer.index == len(view.layers) - 1 and layer.kind == "FULLY_CONNECTED"
    return view.scheme.partition(":")[0] in registry.IN_CLEAR


def from_rows(rows: Array, shape: tuple[int, ...], depthwise: bool) -> Array:
    """Rows [groups, n, d] -> weights in TFLite's layout, float32."""
    if depthwise:
        return np.ascontiguousarray(rows.transpose(2, 0, 1)).reshape(shape).astype(np.float32)
    return np.ascontiguousarray(rows).reshape(shape).astype(np.float32)


def in_real_units(weights: Array, known: Array, depthwise: bool, matched: bool) -> Array:
    """Integer filters of unknown steps, in TFLite's layout, as real ones: as large as their counterparts in the public
    model, if they are ``matched`` with its filters ``known``; else all of He's size, which fitting then mends."""
    axes = tuple(range(weights.ndim - 1)) if depthwise else tuple(range(1, weights.ndim))
    size = np.sqrt(np.square(weights).sum(axis=axes, keepdims=True))
    wanted = np.sqrt(np.square(known).sum(axis=axes, keepdims=True)) if matched else np.full_like(size, np.sqrt(2.0))
    out: Array = (weights * (wanted / np.maximum(size, 1e-12))).astype(np.float32)
    return out


def _in_order(view: AdversaryView, network: Network, layers: Sequence[_Layer]) -> None:
    """Order and biases from what crossed, last layer first: its input tells the order of those before."""
    sent = _sent(view, layers)
    for one in reversed(layers):
        if one.op.inputs[0] not in sent:
            continue
        natural = one.order in ("natural", "public model")
        found = order_layer(network, one.op, one.weights, sent, scaled=_scaled(view, one))
        if found is None:
            if one.layer.depthwise:
                del sent[one.op.inputs[0]]
            continue
        better = None
        if one.attack == "A4" and one.layer.groups == 1 and _scaled(view, one):
            weights = np.take(one.weights, found.order, axis=0)
            better = repair(network, one.op, weights, found, one.layer.rows[0], sent)
        if better is not None:
            one.weights, bias, left = better
            found = Ordered(np.arange(len(left)), found.gain, bias, float(np.median(left)), left)
        one.doubt = found.doubt
        if not found.believed:
            if one.layer.depthwise:
                del sent[one.op.inputs[0]]
            continue
        if not natural or one.layer.depthwise:
            _rearrange(network, one, found, sent)
        if one.op.input(2) in network.parameters:
            network.parameters[one.op.inputs[2]] = found.bias.astype(np.float32)
    _settle(network, layers, sent)


def _settle(network: Network, layers: Sequence[_Layer], sent: Mapping[int, Array]) -> None:
    """Biases once more, first layer first, from what the network itself computes: the first input crosses in clear."""
    if not layers or layers[0].layer.masked or layers[0].op.inputs[0] not in sent:
        return
    first = layers[0].op.inputs[0]
    clean = {first: sent[first]}
    nothing = np.zeros((len(sent[first]), *network.input_shape), np.float32)
    for one in layers:
        x = one.op.inputs[0]
        if x not in clean:
            clean[x] = network.forward(nothing, {first: clean[first]}, x)[0][x]
        if one.order == "unknown" or one.op.input(2) not in network.parameters:
            return  # nothing behind an unknown order can be computed
        found = refine(network, one.op, clean, sent)
        if found is not None and found.believed:
            network.parameters[one.op.inputs[2]] = found.bias.astype(np.float32)
            one.doubt = found.doubt


def _sent(view: AdversaryView, layers: Sequence[_Layer]) -> dict[int, Array]:
    """What crossed, by the tensor of the skeleton that it is (masked); the same runs for all. One-time pads tell
    nothing, so exact layers are left out."""
    found: dict[int, Array] = {}
    for one in layers:
        crossings = view.crossings(one.layer)[:RUNS] if one.layer.numbers == "float" else []
        if crossings:
            found[one.op.inputs[0]] = np.concatenate([c.sent for c in crossings])
    count = min((len(x) for x in found.values()), default=0)
    return {t: x[:count] for t, x in found.items()}


def _scaled(view: AdversaryView, one: _Layer) -> bool:
    return one.recovery.scaled and view.scheme == "shadownet:artifact"


def _rearrange(network: Network, one: _Layer, found: Ordered, sent: dict[int, Array]) -> None:
    axis = one.weights.ndim - 1 if one.layer.depthwise else 0
    gain = found.gain.reshape([-1 if k == axis else 1 for k in range(one.weights.ndim)])
    weights = np.take(one.weights, found.order, axis=axis) * gain
    network.parameters[one.op.inputs[1]] = weights.astype(np.float32)
    if one.layer.depthwise:  # its input crossed in the order of slots; from here on it is in natural order
        multiplier = one.layer.per_group
        x = sent[one.op.inputs[0]]
        sent[one.op.inputs[0]] = x[..., found.order[::multiplier] // multiplier]
    one.order = "transcript"


def _classes(network: Network, layers: Sequence[_Layer], x: Array, labels: Array) -> None:
    """The classifier's rows by the labels, where all layers before it are in order."""
    if not layers or not len(x):
        return
    last = layers[-1]
    if last.order != "unknown" or last.op.outputs[0] != network.logits or last.layer.kind != "FULLY_CONNECTED":
        return
    if any(one.order == "unknown" for one in layers[:-1]):
        return
    scores = network.scores(x)
    scores = (scores - scores.mean(axis=0)) / np.maximum(scores.std(axis=0), 1e-9)
    member = np.eye(scores.shape[1])[labels]
    rows, classes = assign(scores.T @ (member - member.mean(axis=0)))
    order = rows[np.argsort(classes)]
    network.parameters[last.op.inputs[1]] = network.parameters[last.op.inputs[1]][order]
    last.order = "labels"


def _fit(network: Network, layers: Sequence[_Layer], x: Array, labels: Array, inside: bool, seed: int) -> str:
    """Fit to the labels what is not known yet."""
    if not len(x):
        return "nothing"
    if inside or any(one.order == "unknown" for one in layers):
        surrogate.train(network, x, labels, list(network.parameters), seed=seed)
        return "everything"
    known = {one.op.input(2) for one in layers if one.doubt is not None and one.doubt < BELIEVED}
    missing = [t for t in surrogate.biases(network) if t not in known]
    # Few labels fit few numbers: what crossed has told the other biases better than labels can.
    if not known and len(x) >= ENOUGH and _everything_is_better(network, x, labels, missing, seed):
        surrogate.train(network, x, labels, list(network.parameters), seed=seed)
        return "everything"
    surrogate.train(network, x, labels, missing, rate=BIAS_RATE, spread=BIAS_SPREAD, seed=seed)
    return "biases"


def _everything_is_better(network: Network, x: Array, labels: Array, few: Sequence[int], seed: int) -> bool:
    """Whether held-out answers say that fitting all weights beats fitting ``few``."""
    cut = len(x) * 4 // 5
    narrow, wide = network.copy(), network.copy()
    surrogate.train(narrow, x[:cut], labels[:cut], few, rate=BIAS_RATE, spread=BIAS_SPREAD, seed=seed)
    surrogate.train(wide, x[:cut], labels[:cut], list(wide.parameters), seed=seed)
    left = [surrogate.cross_entropy(model, x[cut:], labels[cut:]) for model in (narrow, wide)]
    return left[1] < left[0] * (MARGIN if left[0] < SURE else 1.0)
