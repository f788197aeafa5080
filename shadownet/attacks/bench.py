"""Attacks against one bundle, scored: what the commands attack, check and arena print. Belongs to the bench.

Everything here holds the truth, so no strategy imports it. Weights first (each attack on each layer, beside random rows
and the public model itself), then the whole model: stolen with labelled queries, beside what the same queries buy
without the leak (black box) and the victim itself (white box).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shadownet.attacks import registry, surrogate
from shadownet.attacks.base import public_base
from shadownet.attacks.network import Network, skeleton
from shadownet.attacks.outcome import FIXED, Outcome, by_layer, in_its_units, lost, weighed
from shadownet.attacks.score import LayerScore, score_layer
from shadownet.attacks.steal import Stolen, steal
from shadownet.attacks.truth import TrueLayer, read_truth
from shadownet.attacks.view import AdversaryView, Knowledge, Oracle, PublicLayer, read_transcript, read_view
from shadownet.progress import track
from shadownet.wire.errors import BundleError, InputError, ModelError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Data:
    """Samples: the attacker's own ``queries`` [Q, ...], held-out ``x``, ``y``, and ``members`` of the training set.

    ``labels`` [Q] are the true ones of the queries, for models of the attacker's own that membership is judged against.
    """

    queries: Array
    x: Array
    y: Array
    members: tuple[Array, Array] | None = None
    labels: Array | None = None


@dataclass(frozen=True, eq=False)
class Theft:
    """A stolen model beside its bounds and controls, at one budget of labelled queries."""

    queries: int
    stolen: surrogate.Quality
    black_box: surrogate.Quality
    white_box: surrogate.Quality
    null: surrogate.Quality
    base: surrogate.Quality | None
    pieces: tuple[dict[str, Any], ...]
    fitted: str
    seconds: float
    model: bytes

    @property
    def normalised(self) -> dict[str, float]:
        """0: as good as the same queries without the leak; 1: as good as holding the victim."""
        names = ["accuracy", "fidelity", "fgsm", "pgd"] + ["member_auc"] * (self.stolen.member_auc is not None)
        return {
            name: _between(getattr(self.stolen, name), getattr(self.black_box, name), getattr(self.white_box, name))
            for name in names
        }

    def to_json(self) -> dict[str, Any]:
        bounds = {k: getattr(self, k) for k in ("stolen", "black_box", "white_box", "null", "base")}
        return {k: v.to_json() if v is not None else None for k, v in bounds.items()} | {
            "queries": self.queries, "normalised": self.normalised, "pieces": list(self.pieces),
            "fitted": self.fitted, "seconds": self.seconds,
        }  # fmt: skip


def open_view(
    bundle: str | os.PathLike[str], base: str | os.PathLike[str] | None = None,
    transcript: str | os.PathLike[str] | None = None, other: str | os.PathLike[str] | None = None,
) -> AdversaryView:  # fmt: skip
    """The adversary's view, with a public model, a transcript and another bundle of the same model if they are given.

    Raises what reading raises.
    """
    view = read_view(bundle)
    if not view.layers:
        raise BundleError("the bundle has no outsourced layer: there is nothing to attack")
    if base is not None:
        bits = str(view.parameters.get("bits") or "12/12").split("/")[0]
        rows = public_base(base, view.layers, int(bits))
        if all(one is None for one in rows):
            raise InputError(f"no layer of {base} fits the bundle", "--base takes a model of the same architecture")
        view = replace(view, base=rows)
    if transcript is not None:
        crossed = read_transcript(transcript)
        if not {c.layer for c in crossed} & {layer.name for layer in view.layers}:
            raise InputError(f"{transcript} is not a transcript of this bundle", "shadownet run --record DIR makes one")
        view = replace(view, knowledge=Knowledge.TRANSCRIPT, transcript=crossed)
    if other is not None:
        view = replace(view, other=read_view(other))
    return view


def open_truth(
    bundle: str | os.PathLike[str], model: str | os.PathLike[str], key: str | os.PathLike[str] | None
) -> tuple[TrueLayer, ...]:
    """The truth, with the sealed half's pairs where the key is at hand. Raises ``InputError``, ``ModelError``."""
    try:
        return read_truth(bundle, model, key)
    except BundleError:
        return read_truth(bundle, model, sealed=False)


def weigh(
    view: AdversaryView, truth: Sequence[TrueLayer] | None, attacks: Sequence[registry.Attack], seed: int = 0
) -> list[Outcome]:
    """Run the ``attacks`` on weights on every layer they apply to; those that apply nowhere are left out."""
    attacks = [attack for attack in attacks if attack.on_weights]
    jobs = [(attack, layer) for attack in attacks for layer in view.layers]
    done: dict[str, list[tuple[PublicLayer, str, LayerScore | None, float]]] = {}
    for attack, layer in track(jobs, "attacking"):
        start = time.perf_counter()
        found = attack.run(view, layer)
        seconds = time.perf_counter() - start
        if found is not None:
            score = None if truth is None else score_layer(found, truth[layer.index], view.prior(layer), seed)
            if score is not None and (layer.numbers == FIXED or not found.scaled):
                score = in_its_units(score)
            done.setdefault(attack.name, []).append((layer, found.form, score, seconds))
    total = sum(layer.filters for layer in view.layers)
    return [weighed(attack, done[attack.name], total) for attack in attacks if attack.name in done]


def read_data(path: str | os.PathLike[str]) -> Data:
    """Read an ``.npz``: x_attacker, x_test, y_test (and x_owner, y_owner), or x and y, cut in two. ``InputError``."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError):
        raise InputError(f"cannot read {path}", "--data takes an .npz with arrays x and y") from None
    labels = {k: v.astype(np.int64).ravel() for k, v in found.items() if k.startswith("y")}
    if {"x_attacker", "x_test", "y_test"} <= found.keys():
        members = (found["x_owner"], labels["y_owner"]) if {"x_owner", "y_owner"} <= found.keys() else None
        data = Data(found["x_attacker"], found["x_test"], labels["y_test"], members, labels.get("y_attacker"))
    elif {"x", "y"} <= found.keys():
        half = len(found["x"]) // 2
        data = Data(found["x"][:half], found["x"][half:], labels["y"][half:])
    else:
        raise InputError(f"{path} has neither x and y nor x_attacker, x_test and y_test")
    if len(data.x) != len(data.y) or not len(data.x) or not len(data.queries):
        raise InputError(f"{path} holds no samples, or not as many labels as samples")
    return data


def theft(
    view: AdversaryView, model: str | os.PathLike[str], data: Data, budget: int,
    base: str | os.PathLike[str] | None = None, seed: int = 0,
) -> Theft:  # fmt: skip
    """Steal with ``budget`` labels and compare. Raises ``ModelError`` where the architecture cannot be refitted."""
    victim = Network.load(model)
    if data.x[0].size != int(np.prod(victim.input_shape)):
        raise InputError(f"the samples do not have the model's input shape {list(victim.input_shape)}")
    data = replace(data, x=data.x.reshape(-1, *victim.input_shape).astype(np.float32))
    if data.members is not None:
        data = replace(data, members=(data.members[0].reshape(-1, *victim.input_shape), data.members[1]))
    public = Network.load(base) if base is not None else None
    if public is not None and not _alike(public, victim):
        raise InputError(f"{base} is of another architecture than the bundle", "stealing needs the same architecture")
    empty = Network(skeleton(victim.content))
    queries = data.queries[np.random.default_rng(seed).permutation(len(data.queries))]
    start = time.perf_counter()
    ours = replace(view, oracle=Oracle(victim.classify, budget))
    got = steal(ours, public or empty, queries, seed)
    seconds = time.perf_counter() - start
    _is_not_the_victim(got, victim)
    x = queries[: got.queries].reshape(-1, *victim.input_shape).astype(np.float32)
    labels = victim.classify(x)

    shadows: list[Network] = []
    if data.members is not None and data.labels is not None:
        own = data.queries.reshape(-1, *victim.input_shape).astype(np.float32)
        shadows = surrogate.shadows(empty, own, data.labels, seed)

    def measured(network: Network) -> surrogate.Quality:
        return surrogate.quality(network, victim, data.x, data.y, data.members, shadows)

    # The black box is the better of what such an attacker may start from: a weak bound would flatter the attack.
    blind = [surrogate.fresh(empty, seed)] + ([] if public is None else [public.copy()])
    for candidate in blind:
        surrogate.train(candidate, x, labels, list(candidate.parameters), seed=seed)
    black_box = max((measured(candidate) for candidate in blind), key=lambda quality: quality.accuracy)
    return Theft(
        queries=got.queries, stolen=measured(got.network), black_box=black_box, white_box=measured(victim),
        null=measured(surrogate.fresh(empty, seed + 1)), base=None if public is None else measured(public),
        pieces=tuple(asdict(piece) for piece in got.pieces), fitted=got.fitted, seconds=seconds,
        model=got.network.tflite(),
    )  # fmt: skip


def _alike(a: Network, b: Network) -> bool:
    shapes = [{t: v.shape for t, v in network.parameters.items()} for network in (a, b)]
    return shapes[0] == shapes[1] and [op.kind for op in a.ops] == [op.kind for op in b.ops]


def _is_not_the_victim(got: Stolen, victim: Network) -> None:
    """The third control: an evaluation script that scores the victim would call every attack perfect."""
    for t, mine in got.network.parameters.items():
        assert not np.shares_memory(mine, victim.parameters[t]), "the object scored is the victim"
    same = all(np.array_equal(mine, victim.parameters[t]) for t, mine in got.network.parameters.items())
    assert not same, "the object scored is the victim"


def _between(value: float, low: float, high: float) -> float:
    """Where ``value`` lies from ``low`` to ``high``; 0 where these leave no room."""
    return (value - low) / (high - low) if high - low > 1e-9 else 0.0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % confidence interval by Student's t); the width is infinite for a single value."""
    from scipy.special import stdtrit

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("inf")
    return mean, float(stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(len(values)))


__all__ = [
    "Data", "ModelError", "Outcome", "Theft", "by_layer", "interval", "lost", "open_truth", "open_view", "read_data",
    "theft", "weigh",
]  # fmt: skip
