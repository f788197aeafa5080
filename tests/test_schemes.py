"""Every scheme: what it makes public, and that the true result comes back from it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boundary_helpers import Lab, Secrets, digits, infer, shadow, the_lab
from build import Model, litert, parted
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from seeded import SeededRng
from test_transform import CASES, Case, finished, layer, layout, on_accelerator, recognised

import shadownet
from enclave import schemes
from enclave.exact import Residues
from enclave.rng import Rng
from enclave.schemes import LayerWeights, Obfuscated, Place, Scheme, mixing
from shadownet import tiling
from shadownet.graph import ModelWriter, load, parse
from shadownet.linear import LinearOp
from shadownet.lower import Lowering
from shadownet.quantized import Bits, constants, numbers
from shadownet.relatives import factored
from shadownet.wire.errors import InputError
from shadownet.wire.manifest import read_manifest

Array = np.ndarray[Any, Any]
ROOT = Path(__file__).resolve().parent.parent
NAMES = [*(s.name for s in schemes.every()), "darknetz:first2", "groupcover:8", "mix:4"]
MIXING = ["groupcover:4", "groupcover:8", "mix:4", "mix:8"]
__all__ = ["the_lab"]


# Restoring


def hidden_rows(hidden: Obfuscated, channels: int, depthwise: bool) -> Array:
    """Magnitudes [n, d] of all that is added up for an output, input channels in their natural order."""
    public = np.abs(hidden.rows.reshape(-1, hidden.rows.shape[-1]).astype(np.float64))
    if hidden.restore.order is not None and not depthwise:
        natural = np.argsort(hidden.restore.order)
        public = public.reshape(len(public), -1, channels)[..., natural].reshape(public.shape)
    terms = zip(hidden.restore.slot, np.abs(hidden.restore.coefficient), strict=True)
    return sum(coefficient[:, None] * public[slot] for slot, coefficient in terms)


def check_float(case: Case, scheme: Scheme, ratio: float, rng: Rng) -> None:
    """One float layer against float64, within what float32 may cost; see ``test_transform.tolerance``."""
    lin = recognised(case.content)
    rows = lin.rows(case.weights)
    hidden = scheme.obfuscate(LayerWeights(rows, lin.depthwise, channels=lin.input_shape[-1]), ratio, rng)
    sigma = scheme.mask.sigma(float(np.sqrt(np.mean(np.square(case.x))))) if scheme.mask else 0.0
    push = rng.normal(sigma, case.x.shape)
    answer = on_accelerator(lin, hidden.rows, hidden.restore.shuffle(case.x + push))
    got = finished(case, lin, hidden.restore.apply(answer) - on_accelerator(lin, rows, push))
    added = hidden_rows(hidden, lin.input_shape[-1], lin.depthwise).reshape(rows.shape) + np.abs(rows)
    magnitude = case.linear(np.abs(case.x) + np.abs(push), layout(lin, added))
    bias = 0.0 if case.bias is None else np.abs(case.bias)
    terms = rows.shape[-1] + hidden.restore.slot.shape[0] + 16
    allowed = terms * 2.0**-23 * (magnitude + bias) + np.finfo(np.float32).tiny
    expected = case.expected()
    assert got.shape == expected.shape and got.dtype == np.float32
    worst = np.max(np.abs(got - expected) / allowed, initial=0.0)
    assert worst <= 1.0, f"off by {worst:.3g} times what float32 may cost"


@pytest.mark.parametrize("kind", sorted(CASES))
@pytest.mark.parametrize("name", NAMES)
def test_a_float_layer_comes_back(name: str, kind: str) -> None:
    scheme = schemes.get(name)

    @given(CASES[kind], st.floats(1.0, 2.0), st.integers(0, 1 << 32))
    @settings(max_examples=8)
    def every(case: Case, ratio: float, seed: int) -> None:
        check_float(case, scheme, ratio, SeededRng(seed))

    every()


def check_exact(case: Case, scheme: Scheme, bits: Bits, rounded: bool, ratio: float, rng: Rng) -> None:
    """One layer in Z_p. What a ``rounded`` one may lose is half a step of each public weight."""
    lin = recognised(case.content)
    graph = parse(case.content).subgraphs[0]
    values = numbers(lin, graph, constants(lin, graph, {}), bits)
    weights = LayerWeights(values.rows, lin.depthwise, True, rounded, False, lin.input_shape[-1])
    hidden = scheme.obfuscate(weights, ratio, rng)
    np.testing.assert_array_equal(hidden.rows, np.rint(hidden.rows))
    try:
        cut = Lowering._residues(lin, values, hidden)
    except InputError:
        assume(False)
    residues, restore = Residues.from_json(cut.record["residues"]), hidden.restore
    levels = int(values.largest)
    x = np.random.default_rng(0).integers(-levels, levels + 1, case.x.shape).astype(np.float64)
    pad = residues.pad(rng, x.shape)
    natural = pad.copy() if restore.order is None or residues.late else pad[..., np.argsort(restore.order)]
    parts = np.empty((residues.pop.digits.count, *x.shape), np.float32)
    residues.pop.digits.cut(natural, parts)
    image = residues.image([on_accelerator(lin, cut.true, part) for part in parts])
    sent = np.empty((cut.stack * x.shape[0], *x.shape[1:]), np.float32)
    residues.send(restore.shuffle(x), pad, sent)
    answer = on_accelerator(lin.stacked(cut.stack), cut.public, sent)
    assert residues.possible(answer)
    got, want = residues.receive(answer, restore, image), case.linear(x, layout(lin, values.rows))
    if not rounded:
        assert not residues.late
        np.testing.assert_array_equal(got, want)
        return
    lost = np.broadcast_to(0.5 * np.abs(restore.coefficient).sum(axis=0)[:, None], (lin.filters, lin.depth))
    lost = lost * 1.01 + 1e-4 * hidden_rows(hidden, lin.input_shape[-1], lin.depthwise)  # coefficients are float32
    assert (np.abs(got - want) <= case.linear(np.abs(x), layout(lin, lost.reshape(values.rows.shape)))).all()


@pytest.mark.parametrize("kind", sorted(CASES))
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_integers_comes_back(name: str, kind: str) -> None:
    scheme = schemes.get(name)

    @given(
        CASES[kind], st.floats(1.0, 2.0), st.integers(0, 1 << 32), st.sampled_from(["12/12", "8/8", "16/10"]),
        st.booleans() if name in MIXING else st.just(False),
    )  # fmt: skip
    @settings(max_examples=8)
    def every(case: Case, ratio: float, seed: int, bits: str, rounded: bool) -> None:
        check_exact(case, scheme, Bits.parse(bits), rounded, ratio, SeededRng(seed))

    every()


@pytest.mark.parametrize("name", ["darknetz", "none", "slalom", "delta", "groupcover", "mix"])
def test_a_bundle_computes_what_the_model_does(name: str, lab: Lab, tmp_path: Path) -> None:
    model = lab.model("planted")
    options = {"base": model} if name == "delta" else {}
    summary = shadownet.convert(model, tmp_path / "m.shadow", scheme=name, key=lab.key, **options)
    kept = {"darknetz": 3, "mix": 1}.get(name, 0)
    assert summary["layers_outsourced"] == 5 - kept and summary["verdict"]["ok"]
    manifest = read_manifest(tmp_path / "m.shadow")
    assert manifest["scheme"] == schemes.get(name).name
    masked = [entry["masked"] for entry in manifest["layers"]]
    wanted = {"darknetz": [False] * 2, "none": [False] * 5, "groupcover": [False] + [True] * 4}
    assert masked == wanted.get(name, [True] * (5 - kept))


# Mixing


def mixed(name: str, n: int = 64, d: int = 400, **options: Any) -> tuple[LayerWeights, Obfuscated]:
    weights = replace(layer(n=n, depth=d, **options), channels=4)
    return weights, schemes.get(name).obfuscate(weights, 1.2, SeededRng(2))


def natural(hidden: Obfuscated) -> Array:
    """Public rows [M, d] with input channels in their natural order."""
    rows, order = hidden.rows[0].astype(np.float64), hidden.restore.order
    assert order is not None and sorted(order) == list(range(4))
    return rows.reshape(len(rows), -1, 4)[..., np.argsort(order)].reshape(rows.shape)


def cosines(a: Array, b: Array) -> Array:
    a, b = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (a, b))
    return np.abs(a @ b.T)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 40, 256])
def test_mixing_matrices_are_well_conditioned(size: int) -> None:
    for seed in range(20 if size < 100 else 2):
        matrix, inverse = mixing._dense(size, SeededRng(seed))
        assert np.linalg.cond(matrix) <= 2 * (1 + 1e-5)  # orthogonal up to the QR of float32 normals
        np.testing.assert_allclose(matrix @ inverse, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 12, 40, 256])
def test_integer_mixing_matrices_have_integer_inverses(size: int) -> None:
    """Also of the largest groups, whose draws must come to an end."""
    for seed in range(20 if size < 100 else 2):
        matrix, inverse = mixing._unimodular(size, SeededRng(seed))
        assert (matrix == np.rint(matrix)).all() and (inverse == np.rint(inverse)).all()
        np.testing.assert_array_equal(matrix @ inverse, np.eye(size))
        assert np.abs(inverse).max() <= 1024
        assert (np.count_nonzero(matrix, axis=1) >= min(2, size)).all()


@pytest.mark.parametrize("name", ["groupcover:64", "mix:64"])
def test_large_groups_of_integers_end(name: str) -> None:
    weights, hidden = mixed(name, n=128, integer=True)
    x = np.random.default_rng(0).integers(-9, 10, (3, 400)).astype(np.float64)
    got = hidden.restore.apply(hidden.restore.shuffle(x.reshape(3, 100, 4)).reshape(3, 400) @ hidden.rows[0].T)
    np.testing.assert_array_equal(got, x @ weights.rows[0].T)


class Noting(SeededRng):
    """Notes the mask filters that a scheme draws."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.drawn: list[Array] = []

    def normal(self, sigma: float, shape: tuple[int, ...]) -> Array:
        self.drawn.append(super().normal(sigma, shape))
        return self.drawn[-1]


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("name", ["mix:4", "mix:8", "mix:16"])
def test_mix_publishes_neither_a_filter_nor_a_mask_filter(name: str, integer: bool) -> None:
    weights, rng = replace(layer(n=64, depth=400, integer=integer), channels=4), Noting(1)
    hidden = schemes.get(name).obfuscate(weights, 1.2, rng)
    masks = np.concatenate([m for m in rng.drawn if m.shape[1] == 400 != m.shape[0]])
    assert len(masks) == hidden.rows.shape[1] - 64 > 0
    assert masks.std() == pytest.approx(float(weights.rows.std()), rel=0.1)  # matched to the weights
    public = natural(hidden)
    secret = np.concatenate([weights.rows[0], np.rint(masks) if integer else masks]).astype(np.float64)
    assert cosines(public, secret).max() < 0.97
    # Control: ShadowNet publishes its mask filters as they are.
    bare = schemes.get("shadownet").obfuscate(weights, 1.2, control := Noting(1)).rows[0]
    assert cosines(bare.astype(np.float64), np.rint(control.drawn[0]) if integer else control.drawn[0]).max() > 0.999


@pytest.mark.parametrize("name", MIXING)
def test_no_two_public_rows_of_mixing_are_collinear(name: str) -> None:
    """For rows of A [W; F], a condition number of at most 2 bounds |cos| by (4 - 1) / (4 + 1) if W and F are
    orthogonal (Kantorovich); 400 random weights are nearly so (0.05 is one deviation)."""
    _, hidden = mixed(name)
    public = hidden.rows[0].astype(np.float64)
    assert (cosines(public, public) - np.eye(len(public))).max() < 0.6 + 5 * 0.05
    _, control = mixed("shadownet:artifact")
    rows = control.rows[0].astype(np.float64)
    assert (cosines(rows, rows) - np.eye(len(rows))).max() > 0.95


@pytest.mark.parametrize("n", [5, 9, 17, 33])
def test_no_filter_is_left_alone_in_a_group(n: int) -> None:
    weights, hidden = mixed("groupcover:4", n=n)
    assert cosines(natural(hidden), weights.rows[0].astype(np.float64)).max() < 0.99
    terms = (hidden.restore.coefficient != 0).sum(axis=0)
    assert terms.min() >= 2 and terms.max() <= 4


def test_groups_are_dealt_at_random_and_slots_are_secret() -> None:
    _, hidden = mixed("groupcover:4")
    slots = hidden.restore.slot
    assert sorted(set(slots.ravel())) == list(range(64))
    neighbours = sum(set(slots[:, i]) == set(slots[:, i + 1]) for i in range(63))
    assert neighbours < 15  # about 3 in 63 for groups of four
    _, other = mixed("groupcover:4", seed=1)
    first, second = (schemes.get("mix").obfuscate(layer(n=32), 1.2, Rng()).rows for _ in range(2))
    assert not np.array_equal(first, second)
    assert other.rows.shape == hidden.rows.shape


def test_mixing_multiplies_rows_by_the_ratio() -> None:
    for name, ratio, rows in (("groupcover:4", 2.0, 64), ("mix:8", 1.2, 80), ("mix:8", 1.0, 72), ("mix:4", 2.0, 128)):
        assert schemes.get(name).obfuscate(layer(n=64), ratio, SeededRng(0)).rows.shape[1] == rows


@pytest.mark.parametrize("name", ["groupcover", "mix"])
@pytest.mark.parametrize(("groups", "d", "channels"), [(1, 12, 12), (1, 12, 3), (1, 12, 5), (1, 12, 1), (3, 12, 6)])
def test_channels_are_shuffled_where_rows_hold_all_of_them(name: str, groups: int, d: int, channels: int) -> None:
    weights = replace(layer(groups, n=8, depth=d), channels=channels)
    order = schemes.get(name).obfuscate(weights, 1.2, SeededRng(0)).restore.order
    if groups == 1 and channels > 1 and d % channels == 0:
        assert order is not None and sorted(order) == list(range(channels))
    else:
        assert order is None


# Places and names


def places(name: str, count: int = 5) -> list[bool]:
    return [bool(schemes.get(name).keeps(Place(k, count, False))) for k in range(count)]


def test_layers_stay_where_the_scheme_says() -> None:
    assert places("darknetz") == places("darknetz:last3") == [False, False, True, True, True]
    assert places("darknetz:first2") == [True, True, False, False, False]
    assert places("darknetz:last9") == places("tee") == [True] * 5
    for name in ("none", "slalom", "delta", "groupcover", "mix", "shadownet"):
        assert places(name) == [False] * 5
    for scheme in schemes.every():
        inside = bool(scheme.keeps(Place(0, 5, True)))
        assert inside == (scheme.name in ("tee", "mix:8")), scheme.name


def test_the_layers_of_darknetz_are_in_the_clear_and_those_of_tee_absent(lab: Lab, tmp_path: Path) -> None:
    model = lab.model("planted")
    graph, content = load(model)
    shadownet.convert(model, tmp_path / "d.shadow", scheme="darknetz:first2", key=lab.key)
    public = (tmp_path / "d.shadow" / "accelerator.tflite").read_bytes()
    weights = [graph.subgraphs[0].tensors[lin.weight].values().tobytes() for lin in parted(content).linear]
    assert [w in public for w in weights] == [False, False, True, True, True]
    shadownet.convert(model, tmp_path / "t.shadow", scheme="tee", key=lab.key)
    assert not (tmp_path / "t.shadow" / "accelerator.tflite").exists()


BAD = [
    "nosuch", "", ":", "shadownet:nosuch", "none:3", "darknetz:middle3", "darknetz:last", "darknetz:last0",
    "darknetz:3", "darknetz:lastx", "darknetz:last²", "darknetz:first99999", "mix:1", "mix:257", "mix:x", "mix:-4",
    "mix:4:4", "mix:²", "groupcover:0", "groupcover:1e3", "groupcover:" + "9" * 5000, "nosuch.py",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_names_that_mean_nothing_are_refused_with_a_hint(name: str) -> None:
    with pytest.raises(InputError) as caught:
        schemes.get(name)
    assert caught.value.hint


def test_names_lead_to_schemes() -> None:
    assert schemes.get("shadownet").name == "shadownet:paper"
    for name, full in (("mix", "mix:8"), ("mix:08", "mix:8"), ("groupcover", "groupcover:4"), ("darknetz:last03",) * 2):
        assert schemes.get(name).name == full.replace("last03", "last3")
    for scheme in schemes.every():
        assert schemes.get(scheme.name) == scheme
        assert scheme.leaks and all(vars(scheme.claims).values())


# Schemes from a file


def example() -> str:
    """The file that docs/adding_a_scheme.md shows."""
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding_a_scheme.md").read_text(), re.DOTALL)
    return text


def test_the_scheme_of_the_documentation_needs_one_file(lab: Lab, tmp_path: Path) -> None:
    assert len(example().splitlines()) < 40
    file, model, bundle = tmp_path / "shuffled.py", lab.model("planted"), tmp_path / "m.shadow"
    file.write_text(example())
    done = shadow("convert", model, "-o", bundle, "--scheme", file, "--key", lab.key)
    assert done.returncode == 0, done.stderr
    assert "5 of " in done.stdout and "every filter stands in the public half" in done.stdout
    assert read_manifest(bundle)["scheme"] == "shuffled"
    file.unlink()  # the enclave needs none of it
    x = np.random.default_rng(0).normal(0, 1, (1, 8, 8, 4)).astype(np.float32)
    with shadownet.Interpreter(bundle, key=lab.key) as it:
        it.allocate_tensors()
        np.testing.assert_allclose(infer(it, x), litert(model.read_bytes(), [x])[0], atol=1e-3)


@pytest.mark.parametrize("kind", sorted(CASES))
def test_the_scheme_of_the_documentation_handles_every_layer(kind: str, tmp_path: Path) -> None:
    (tmp_path / "shuffled.py").write_text(example())
    scheme = schemes.get(str(tmp_path / "shuffled.py"))

    @given(CASES[kind], st.integers(0, 1 << 32))
    @settings(max_examples=8)
    def every(case: Case, seed: int) -> None:
        check_float(case, scheme, 1.2, SeededRng(seed))
        check_exact(case, scheme, Bits(12, 12), False, 1.2, SeededRng(seed))

    every()


FILES = {
    "does not parse": "SCHEME = (",
    "fails": "raise SystemError('no')",
    "defines none": "x = 1",
    "defines something else": "SCHEME = 5",
    "lacks members": "class Scheme:\n    name = 'x'\nSCHEME = Scheme()",
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_is_no_scheme_is_refused(what: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILES[what])
    with pytest.raises(InputError, match="defines no scheme") as caught:
        schemes.get(str(tmp_path / "mine.py"))
    assert "adding_a_scheme" in caught.value.hint


def test_a_data_class_in_a_file_may_postpone_its_annotations(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from __future__ import annotations\n" + example())
    assert schemes.get(str(tmp_path / "mine.py")).name == "shuffled"


# Tiles


def convolution(height: int, width: int, channels: int, filters: int, **options: Any) -> LinearOp:
    net = Model(1).net()
    x = net.input(2, height, width, channels)
    amounts = options.pop("pad", None)
    source = net.pad(x, (0, 0), *amounts, (0, 0)) if amounts else x
    (lin,) = parted(net.output(net.conv(source, filters, **options)).model.content()).linear
    return lin


def run_tiles(lin: LinearOp, weights: Array, tiles: tiling.Tiles, x: Array) -> tuple[Array, bytes]:
    writer = ModelWriter("tiles")
    tiling.emit(lin, writer.subgraph("layer"), weights, tiles)
    content = writer.finish()
    return litert(content, [x])[0], content


@given(
    st.sampled_from([1, 3, 5]), st.integers(1, 3), st.sampled_from(["SAME", "VALID"]), st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_parts_side_by_side_are_the_plain_convolution(
    kernel: int, stride: int, padding: str, positions: int, across: int, first: int, padded: bool, seed: int
) -> None:
    wanted = across * positions  # any output width that the positions divide
    before = (1, 2) if padded else (0, 0)
    width = (wanted - 1) * stride + 1 if padding == "SAME" else (wanted - 1) * stride + kernel
    width -= sum(before)
    assume(width >= 1)
    pad = ((1, 0), before) if padded else None
    lin = convolution(kernel + 2, width, 3, 4, kernel=kernel, stride=stride, padding=padding, pad=pad)
    assert lin.output_shape[2] == wanted
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (first + 3, kernel, kernel, 3)).astype(np.float32)
    x = rng.normal(0, 1, lin.input_shape).astype(np.float32)
    tiles = [(first, 1), (3, positions)]
    got, _ = run_tiles(lin, weights, tiles, x)
    want, _ = run_tiles(lin, weights, [(first + 3, 1)], x)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_tiles_are_chosen_where_they_pay_and_fit() -> None:
    lin = convolution(32, 32, 32, 32)
    assert tiling.choose(lin, 39) == [(32, 1), (7, 2)]
    assert tiling.choose(lin, 64) == [(64, 1)]  # nothing over
    assert tiling.choose(convolution(32, 31, 32, 32), 39)[-1][1] == 1 or tiling.choose(
        convolution(32, 31, 32, 32), 39
    ) == [(39, 1)]  # no two positions in an odd width
    assert tiling.choose(convolution(32, 32, 32, 32, dilation=2), 39) == [(39, 1)]
    assert tiling.choose(convolution(4, 4, 3, 32), 39) == [(39, 1)]  # too small to pay


def test_the_manifest_tells_the_tiles_and_narrow_undoes_them(lab: Lab, tmp_path: Path) -> None:
    net = Model(2).net()
    x = net.conv(net.input(1, 32, 32, 16), 32, activation="RELU")
    net.output(net.conv(net.conv(x, 32, stride=2), 20, kernel=1))
    (tmp_path / "m.tflite").write_bytes(net.model.content())
    shadownet.convert(tmp_path / "m.tflite", tmp_path / "m.shadow", scheme="shadownet:fast", key=lab.key)
    layers = read_manifest(tmp_path / "m.shadow")["layers"]
    assert any(len(entry["tiles"]) > 1 for entry in layers)
    graph = parse((tmp_path / "m.shadow" / "accelerator.tflite").read_bytes())
    for entry, part in zip(layers, graph.subgraphs, strict=True):
        slots = entry["output"][-1]
        assert sum(filters for filters, _ in entry["tiles"]) == slots
        parts = [part.tensors[op.inputs[1]].values() for op in part.ops if op.kind == "CONV_2D"]
        assert [len(p) for p in parts] == [m * p for m, p in entry["tiles"]]
        kernel = 1 if entry["filters"] == 20 else 3
        assert tiling.narrow(parts, [tuple(t) for t in entry["tiles"]], kernel).shape[:3] == (slots, kernel, kernel)


# Delta


def perturbed(content: bytes, share: float, seed: int = 0) -> bytes:
    """The same model with other weights: each moved by ``share`` of its tensor's deviation."""
    rng, out = np.random.default_rng(seed), bytearray(content)
    graph = parse(content).subgraphs[0]
    for lin in parted(content).linear:
        values = graph.tensors[lin.weight].values()
        assert content.count(values.tobytes()) == 1
        moved = values + rng.normal(0, share * values.std(), values.shape)
        info = np.iinfo(values.dtype) if values.dtype.kind == "i" else None
        moved = np.clip(np.rint(moved), info.min, info.max) if info else moved
        at = content.index(values.tobytes())
        out[at : at + values.nbytes] = moved.astype(values.dtype).tobytes()
    return bytes(out)


def delta(lab: Lab, work: Path, victim: bytes, base: bytes, name: str = "m", **options: Any) -> dict[str, Any]:
    (work / "victim.tflite").write_bytes(victim)
    (work / "base.tflite").write_bytes(base)
    return shadownet.convert(
        work / "victim.tflite",
        work / f"{name}.shadow",
        scheme="delta",
        base=work / "base.tflite",
        key=lab.key,
        **options,
    )


def outputs(lab: Lab, bundle: Path, inputs: list[Array]) -> list[Array]:
    with shadownet.Interpreter(bundle, key=lab.key) as it:
        it.allocate_tensors()
        return [infer(it, x) for x in inputs]


def test_delta_computes_the_private_model(lab: Lab, tmp_path: Path) -> None:
    victim = lab.model("digits_cnn").read_bytes()
    base, inputs = perturbed(victim, 0.5), [x[None] for x in digits()[:20]]
    summary = delta(lab, tmp_path, victim, base, bits="16/16")
    assert summary["layers_outsourced"] == len(parted(victim).linear)
    off = 0.0
    for x, got in zip(inputs, outputs(lab, tmp_path / "m.shadow", inputs), strict=True):
        want, public = litert(victim, [x])[0], litert(base, [x])[0]
        np.testing.assert_allclose(got, want, atol=0.003)
        off = max(off, np.abs(want - public).max())
    assert off > 0.05  # control: the base computes something else
    layers = read_manifest(tmp_path / "m.shadow")["layers"]
    assert all(entry["private_macs"] == entry["macs"] for entry in layers)


def test_the_public_half_of_delta_is_a_function_of_the_base(lab: Lab, tmp_path: Path) -> None:
    base = lab.model("digits_cnn").read_bytes()
    publics = []
    for seed in range(2):
        victim = perturbed(base, 0.3, seed + 1)
        delta(lab, tmp_path, victim, base, str(seed))
        public = (tmp_path / f"{seed}.shadow" / "accelerator.tflite").read_bytes()
        secrets, graph = Secrets(), parse(victim).subgraphs[0]
        for lin in parted(victim).linear:
            secrets.add_values(f"weights {lin.op.id}", graph.tensors[lin.weight].values())
        assert len(secrets) > 100 and not secrets.found_in(public)
        publics.append(public)
    assert publics[0] == publics[1]


@pytest.mark.parametrize("share", [0.001, 0.05])
def test_a_factored_difference_stays_within_its_tolerance(share: float, lab: Lab, tmp_path: Path) -> None:
    victim = lab.model("digits_cnn").read_bytes()
    summary = delta(
        lab,
        tmp_path,
        victim,
        perturbed(victim, 0.1),
        delta_tolerance=share,
        activations="float",
        calibration=[digits()[:8]],
    )
    assert summary["layers_outsourced"] == len(parted(victim).linear)
    layers = read_manifest(tmp_path / "m.shadow")["layers"]
    cheaper = sum(entry["private_macs"] < entry["macs"] for entry in layers)
    assert bool(cheaper) == (share == 0.05)
    for lin in parted(victim).linear:
        rows = lin.rows(parse(victim).subgraphs[0].tensors[lin.weight].values())
        difference = np.random.default_rng(0).normal(0, 0.1 * rows.std(), rows.shape)
        allowed = share * float(np.linalg.norm(rows))
        factors = factored(lin, difference, allowed)
        if factors is not None:
            left, right = (f.astype(np.float64) for f in factors)
            assert np.linalg.norm(left @ right - difference[0]) <= allowed * (1 + 1e-5)
            assert right.shape[0] == 1 or np.linalg.norm(left[:, :-1] @ right[:-1] - difference[0]) > allowed
            assert right.shape[0] * sum(difference.shape[1:]) < difference[0].size


def test_a_difference_of_low_rank_costs_little_and_loses_nothing(lab: Lab, tmp_path: Path) -> None:
    victim = lab.model("digits_mlp").read_bytes()
    graph, base = parse(victim).subgraphs[0], bytearray(victim)
    for lin in parted(victim).linear:
        w = graph.tensors[lin.weight].values()
        rng = np.random.default_rng(lin.op.id)
        moved = w + np.outer(rng.normal(0, 0.2, len(w)), rng.normal(0, 0.2, w.shape[1])).astype(np.float32)
        at = victim.index(w.tobytes())
        base[at : at + w.nbytes] = moved.tobytes()
    delta(lab, tmp_path, victim, bytes(base), activations="float", delta_tolerance=1e-5)
    layers = read_manifest(tmp_path / "m.shadow")["layers"]
    assert all(entry["private_macs"] < entry["macs"] for entry in layers if entry["filters"] > 10)
    inputs = [x[None] for x in digits()[:5]]
    for x, got in zip(inputs, outputs(lab, tmp_path / "m.shadow", inputs), strict=True):
        np.testing.assert_allclose(got, litert(victim, [x])[0], atol=1e-3)


def test_delta_of_integer_models_is_bit_exact(lab: Lab, tmp_path: Path) -> None:
    victim = lab.model("digits_cnn_int8").read_bytes()
    summary = delta(lab, tmp_path, victim, perturbed(victim, 0.5), delta_tolerance=0.3)
    assert summary["layers_outsourced"] == len(parted(victim).linear) and summary["kept_inside"] == []
    with shadownet.Interpreter(tmp_path / "m.shadow", key=lab.key) as it:
        it.allocate_tensors()
        (detail,) = it.get_input_details()
        for image in digits()[:20]:
            x = image[None]
            if detail["dtype"] != np.float32:
                scale, zero = detail["quantization"]
                info = np.iinfo(detail["dtype"])
                x = np.clip(np.round(x / scale) + zero, info.min, info.max).astype(detail["dtype"])
            np.testing.assert_array_equal(infer(it, x), litert(victim, [x])[0])


def test_layers_that_the_base_does_not_have_stay_inside(lab: Lab, tmp_path: Path) -> None:
    def network(classes: int) -> bytes:
        net = Model(5).net()
        x = net.conv(net.input(1, 8, 8, 4), 6, activation="RELU")
        return net.output(net.dense(net.mean(x), classes)).model.content()

    victim = network(7)
    summary = delta(lab, tmp_path, victim, network(5), bits="16/16")
    assert summary["layers_outsourced"] == 1
    done = shadow("inspect", tmp_path / "m.shadow")
    assert done.returncode == 0, done.stderr
    x = np.random.default_rng(0).normal(0, 1, (1, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(outputs(lab, tmp_path / "m.shadow", [x])[0], litert(victim, [x])[0], atol=1e-2)


def test_delta_asks_for_its_base_and_others_refuse_one(lab: Lab, tmp_path: Path) -> None:
    model = lab.model("digits_mlp")
    with pytest.raises(InputError, match="needs the public model"):
        shadownet.convert(model, tmp_path / "m.shadow", scheme="delta", key=lab.key)
    with pytest.raises(InputError, match="takes no public base"):
        shadownet.convert(model, tmp_path / "m.shadow", scheme="mix", base=model, key=lab.key)
    for tolerance in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="tolerance"):
            shadownet.convert(model, tmp_path / "m.shadow", scheme="delta", base=model, key=lab.key,
                              delta_tolerance=tolerance)  # fmt: skip
