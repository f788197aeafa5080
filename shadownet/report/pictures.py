"""What the accelerator sees: one feature map in the enclave, as it crosses, and as an attacker gets it back.

For each scheme the model is converted into a folder that goes away, under a key that goes away, and run; so are the
meter's predictions made (:mod:`shadownet.attacks.meter`). The attacker repeats the picture (A15) and runs inputs of its
own (A16); the scorer, who holds the truth, keeps the better of the two, matches channels, and measures

    distance = sqrt(1 - rho^2)      rho: correlation with the true map, so the attacker's scale and offset are free

The pictures show activations of the owner's model: whoever sees the page sees them.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.analysis import Reference
from shadownet.graph import load
from shadownet.inputs import random_inputs
from shadownet.interface import interface_spec
from shadownet.media import Pixels, load_inputs
from shadownet.metadata import normalization
from shadownet.partition import partition
from shadownet.progress import note, track
from shadownet.report.documents import items, number, record, text
from shadownet.wire.errors import InputError
from shadownet.wire.tensors import TensorSpec

Array = np.ndarray[Any, Any]
Json = dict[str, Any]

REPEATS = 24  # of the picture
RUNS = 40  # of the attacker's own inputs
SMALLEST = 4  # a map of fewer pixels a side shows nothing
MAX_SIDE = 256
MAX_PNG = 1 << 20
# Eight colours of growing lightness from blue to yellow, told apart with every kind of colour vision (after cividis).
COLOURS = np.array([(0, 32, 77), (38, 60, 108), (77, 85, 111), (107, 109, 113),
                    (139, 134, 119), (173, 160, 112), (211, 190, 93), (255, 233, 69)], float)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What is shown: ``image`` [1, h, w, c], and the true input ``x`` [1, h, w, n] of the layer with id ``op``."""

    model: Path
    image: Array
    spec: TensorSpec
    op: int
    x: Array


def take(
    model: str | os.PathLike[str],
    picture: Path,
    schemes: Sequence[str] | None,
    base: str | os.PathLike[str] | None = None,
) -> Json:
    """The pictures of ``picture`` under each scheme (all that apply if None), NAME[:VARIANT][+exact].

    Raises ``InputError`` for a model without an image-like input or a hidden feature map, and what converting raises.
    """
    from enclave.schemes import every

    names = schemes or [s.name for s in every() if base is not None or not s.needs_base]
    subject = _subject(Path(model), picture)
    channel = int(np.argmax(subject.x[0, 1:-1, 1:-1].std(axis=(0, 1))))  # borders show the padding
    shown = [_scheme(subject, name, channel, base) for name in track(list(names), "taking pictures")]
    return {
        "pictures": {
            "model": subject.model.stem, "op": subject.op, "channel": channel, "input": png(_visible(subject.image[0])),
            "inside": png(coloured(subject.x[0, ..., channel])), "schemes": shown, "repeats": REPEATS, "runs": RUNS,
        }
    }  # fmt: skip


def _subject(model: Path, picture: Path) -> Subject:
    graph, _ = load(model)
    with Reference(os.fspath(model), graph) as reference:
        part = partition(graph, 0, reference.shapes(0), "all")
        specs = [interface_spec(part, t) for t in part.graph.inputs]
        if len(specs) != 1 or len(specs[0].shape) != 4:
            raise InputError("pictures need a model with one image-like input [1, height, width, channels]")
        hidden = [lin for lin in part.linear if not lin.public_input and len(lin.input_shape) == 4]
        chosen = next((lin for lin in hidden if min(lin.input_shape[1:3]) >= SMALLEST), None)
        if chosen is None:
            raise InputError("the model has no hidden feature map that could be shown")
        samples, used = load_inputs([picture], specs, Pixels(metadata=normalization(graph.metadata)))
        if used:
            note(used)
        reference.observe(0, samples[0], [chosen.input])
        (x,) = reference.values(0, [chosen.input])
    return Subject(model, samples[0][0], specs[0], chosen.op.id, x.astype(np.float64))


def _scheme(subject: Subject, name: str, channel: int, base: str | os.PathLike[str] | None) -> Json:
    """One scheme: what crossed for the layer, and what its attacker makes of it."""
    from enclave import keys
    from enclave.schemes import get
    from shadownet.attacks import lab
    from shadownet.attacks.view import Knowledge, read_view
    from shadownet.converter import convert

    plain, _, activations = name.partition("+")
    scheme = get(plain)
    with tempfile.TemporaryDirectory() as folder:
        key, bundle = Path(folder) / "device.key", Path(folder) / "m.shadow"
        keys.create(key)
        convert(
            subject.model, bundle, scheme=plain, activations=activations or None, key=key,
            calibration=[subject.image], base=base if scheme.needs_base else None,
        )  # fmt: skip
        view = read_view(bundle)
        layer = next((one for one in view.layers if one.op_id == subject.op), None)
        if layer is None:
            return {
                "name": scheme.name + name[len(plain) :],
                "seen": None,
                "stolen": None,
                "attack": "",
                "distance": None,
            }
        chain = [view.layers[0], layer]
        own = [random_inputs([subject.spec], seed)[0] for seed in range(RUNS)]
        low, high = float(subject.image.min()), float(subject.image.max())
        if subject.image.dtype.kind == "f":  # as large as the picture's values
            own = [((x + 1) / 2 * (high - low) + low).astype(x.dtype) for x in own]
        crossed = lab.record(bundle, [subject.image] * REPEATS + own, key, keep=[one.name for one in chain])
    view = replace(view, knowledge=Knowledge.TRANSCRIPT, transcript=crossed)
    attack, got = min(_attacks(view, chain, subject), key=lambda found: _distance(found[1], subject.x)[0])
    distance, match = _distance(got, subject.x)
    sent = _joined(view.crossings(layer)[0].sent, subject.x.shape)
    return {
        "name": scheme.name + name[len(plain) :], "seen": png(coloured(sent[0, ..., match[channel]])),
        "stolen": png(coloured(got[0, ..., match[channel]])), "attack": attack, "distance": distance,
    }  # fmt: skip


def _attacks(view: Any, chain: list[Any], subject: Subject) -> list[tuple[str, Array]]:
    """What each attack on activations makes of the map. They see the transcript, and know which inputs they sent."""
    from shadownet.attacks import averaging, peeling

    messages = [_joined(c.sent, subject.x.shape) for c in view.crossings(chain[1])]
    found = [("A15, averaging repeats", averaging.mean(messages[:REPEATS])[0])]
    first, second = chain
    if not first.masked and first is not second and second.input_shape == subject.x.shape:
        image = view.crossings(first)[0].sent
        if peeling.patches(image, first.geometry).shape[:-1] == subject.x.shape[:-1]:  # it may feed the second
            found.append(("A16, regression from the input", peeling.attack(view, chain)[0](image)))
    return found


def _joined(sent: Array, shape: tuple[int, ...]) -> Array:
    """What crossed, as one map: exact activations cross as digits, stacked along the batch, of an odd base."""
    limbs = sent.reshape(-1, *shape).astype(np.float64)
    base = 2 * np.abs(limbs).max(initial=0) + 1
    return np.tensordot(base ** np.arange(len(limbs)), limbs, axes=(0, 0)) if len(limbs) > 1 else limbs[0]


def _distance(got: Array, true: Array) -> tuple[float, Array]:
    """(distance over the whole map, channel of ``got`` for each true one): channels may cross in another order."""
    from shadownet.attacks.recovery import assign

    n = true.shape[-1]
    mine, real = ((a.reshape(-1, n) - a.reshape(-1, n).mean(axis=0)).T for a in (got, true))
    cosine = real @ mine.T / np.maximum(np.outer(np.linalg.norm(real, axis=1), np.linalg.norm(mine, axis=1)), 1e-30)
    natural = np.trace(np.abs(cosine))
    rows, match = assign(np.abs(cosine))
    if np.abs(cosine)[rows, match].sum() < 1.2 * natural + 1e-9:  # an order is believed only where it explains more
        match = np.arange(n)
    a, b = got[..., match].ravel(), true.ravel()
    spread = float(a.std() * b.std())
    rho = float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread > 0 else 0.0
    return float(np.sqrt(max(1.0 - rho * rho, 0.0))), match


def coloured(values: Array) -> Array:
    """A map [h, w] as uint8 [h, w, 3], stretched over all but its extreme hundredths."""
    values = _small(values)
    low, high = np.quantile(values, (0.01, 0.99))
    place = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1) * (len(COLOURS) - 1)
    at = np.minimum(place.astype(int), len(COLOURS) - 2)
    part = (place - at)[..., None]
    mixed: Array = COLOURS[at] * (1 - part) + COLOURS[at + 1] * part
    return np.rint(mixed).astype(np.uint8)


def _visible(image: Array) -> Array:
    """An input [h, w, c] as uint8 [h, w, 3]: as a picture if it has one or three channels, else its first channel."""
    values = image if image.shape[-1] in (1, 3) else image[..., :1]
    values = _small(values.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    pixels = np.rint(255 * (values - low) / (high - low if high > low else 1.0)).astype(np.uint8)
    return np.repeat(pixels, 3 // pixels.shape[-1], axis=-1)


def _small(values: Array) -> Array:
    step = -(-max(values.shape[:2]) // MAX_SIDE)
    return values[::step, ::step]


def png(pixels: Array) -> str:
    """uint8 [h, w, 3] as base64 of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def parse(value: Any) -> Json:
    """Check pictures that come from a file. Raises as :mod:`~shadownet.report.documents` does."""
    shown = record(value["pictures"])
    schemes = [
        {
            "name": text(s["name"]), "seen": _png(s["seen"]), "stolen": _png(s["stolen"]), "attack": text(s["attack"]),
            "distance": number(s["distance"]),
        }
        for s in items(shown["schemes"])[:50]
    ]  # fmt: skip
    return {
        "model": text(shown["model"]), "op": number(shown["op"]), "channel": number(shown["channel"]),
        "input": _png(shown["input"]), "inside": _png(shown["inside"]), "schemes": schemes,
        "repeats": number(shown["repeats"]), "runs": number(shown["runs"]),
    }  # fmt: skip


def _png(value: Any) -> str | None:
    """Base64 of a PNG file of a bounded size, nothing else."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_PNG:
        raise ValueError("no picture")
    content = base64.b64decode(value, validate=True)
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("no PNG")
    return base64.b64encode(content).decode()
