"""``convert``: a ``.tflite`` model becomes a bundle, which is tried before it is handed over."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enclave import keys, schemes
from enclave.rng import Rng
from enclave.schemes import Place, Scheme
from shadownet import bundle
from shadownet.analysis import Reference, Shapes
from shadownet.graph import Graph, load
from shadownet.inputs import quiet_inputs, random_inputs, split_batch
from shadownet.interface import interface_spec
from shadownet.lower import Lowered, Lowering
from shadownet.media import load_array
from shadownet.metadata import normalization
from shadownet.partition import Partition, partition, upstream
from shadownet.progress import note, track
from shadownet.quantized import Bits, constants, numbers, unfit
from shadownet.relatives import base_rows
from shadownet.selftest import agrees
from shadownet.simulator.profile import Device
from shadownet.simulator.profile import load as load_profile
from shadownet.verify import Verdict, tolerance_for, verify
from shadownet.wire.errors import InputError, MismatchError, ModelError
from shadownet.wire.precision import PRECISIONS

Array = np.ndarray[Any, Any]
Samples = dict[int, list[list[Array]]]

RANDOM_SAMPLES = 2
MAX_CALIBRATION = 32
DEFAULT_BITS = "12/12"

# Ops that blow a small absolute error up, worst first. Masks leave such an error behind (float32 rounding at the
# mask's size); where the trial run shows that it matters, the layers before these ops stay in the enclave.
AMPLIFIERS = (("LOG",), ("SQRT", "POW", "DIV"), ("RSQRT",))


@dataclass(frozen=True)
class Options:
    """What the user chose, checked."""

    scheme: Scheme
    ratio: float
    activations: str
    integrity: str
    outsource: str
    bits: Bits | None  # of exact activations; None for float ones
    base: Path | None
    delta_tolerance: float
    precision: str
    device: Device | None

    def to_json(self) -> dict[str, Any]:
        record = {name: value for name, value in vars(self).items() if name not in ("scheme", "base", "device")}
        return record | {"bits": str(self.bits) if self.bits else None}


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    scheme: str = "shadownet",
    ratio: float = 1.2,
    activations: str | None = None,
    integrity: str = "full",
    outsource: str = "all",
    calibration: str | os.PathLike[str] | list[Array] | None = None,
    base: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    bits: str | None = None,
    delta_tolerance: float = 0.0,
    precision: str = "float32",
    device: str | None = None,
) -> dict[str, Any]:
    """Convert ``model`` into the bundle directory ``output`` and verify it through the real runtime.

    ``ratio`` is the obfuscation ratio r (M = ceil(r n) filters leave for n), 1 to 8. ``calibration`` holds samples
    [N, …] (a ``.npy`` path or one array per input) that set the size of the activation masks; without it random
    inputs do, which is said on stderr. ``outsource`` is "all", "none", "auto" or op ids, comma-separated.
    ``activations`` is "float" (masks are noise) or "exact" (one-time pads mod p), None the scheme's own default; for
    exact ones ``bits`` W/X are those of weights and activations in float layers (default 12/12; 8-bit layers stay as
    they are). ``integrity`` is "full" (every answer is checked), "spot:F" (each with probability F, such as spot:0.1)
    or "none". ``base`` is the public model of schemes that need one (delta), and ``delta_tolerance`` the relative
    error (Frobenius) that the private difference may have when it is factored. ``precision`` is the coarsest in which
    an accelerator may compute: float32, or tf32, fp16 or bf16, for which float masks are smaller, integer layers stay
    inside, and answers cannot be checked. ``device`` names a profile, for which "auto" decides (docs/simulator.md);
    None: by a rule of thumb measured on a server.

    Returns a summary (layers, bytes, seconds, verdict). Raises ``ModelError`` for a file that LiteRT does not run,
    ``InputError`` for arguments, ``BundleError`` for the key, ``MismatchError`` if the bundle computes something
    else; then nothing is left behind.
    """
    start = time.perf_counter()
    options = checked_options(
        scheme, ratio, activations, integrity, outsource, base, bits, delta_tolerance, precision, device
    )
    target = Path(output)
    graph, content = load(model)
    key_path = bundle.ensure_key(key)
    with bundle.new_directory(target, overwrite) as work, Reference(os.fspath(model), graph) as reference:
        work_on = Conversion(graph, content, options, reference, calibration)
        lowered, verdict = work_on.run(work, target, key_path)
    return _summary(target, options.scheme.name, work_on, lowered, verdict, time.perf_counter() - start)


def checked_options(
    scheme: str, ratio: float, activations: str | None, integrity: str, outsource: str,
    base: str | os.PathLike[str] | None = None, bits: str | None = None, delta_tolerance: float = 0.0,
    precision: str = "float32", device: str | None = None,
) -> Options:  # fmt: skip
    """Check what the user chose. Raises ``InputError``."""
    chosen = schemes.get(scheme)
    activations = chosen.activations if activations is None else activations
    if not 1.0 <= ratio <= 8.0:
        raise InputError(f"the obfuscation ratio must be between 1 and 8, not {ratio}")
    if activations not in ("float", "exact"):
        raise InputError(f"activations are float or exact, not {activations!r}")
    if chosen.name == "slalom" and (activations != "exact" or integrity != "full"):
        raise InputError("slalom is exact activations and full integrity", "another scheme has weaker settings")
    if precision not in PRECISIONS:
        raise InputError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "float32" and activations == "exact":
        raise InputError(f"exact activations are integers up to 2^24, which {precision} does not hold")
    if bits is not None and activations == "float":
        raise InputError("bits are those of exact activations", "add --activations exact, or leave --bits out")
    if not 0.0 <= delta_tolerance < 1.0:
        raise InputError(f"the tolerance of the difference must be between 0 and 1, not {delta_tolerance}")
    if chosen.needs_base and base is None:
        raise InputError(f"{chosen.name} needs the public model that yours was trained from", "name it with --base")
    if not chosen.needs_base and (base is not None or delta_tolerance):
        raise InputError(f"{chosen.name} takes no public base model", "use --scheme delta")
    if device is not None and outsource != "auto":
        raise InputError("a device is for outsourcing what is worth it there", "add --outsource auto")
    if share_checked(integrity) and precision != "float32":
        raise InputError(
            f"answers computed in {precision} cannot be checked: the tolerance would be larger than most answers",
            "add --integrity none, or leave --precision at float32",
        )
    parse_outsource(outsource)
    fixed = Bits.parse(DEFAULT_BITS if bits is None else bits) if activations == "exact" else None
    public = None if base is None else Path(base)
    known = None if device is None else load_profile(device)
    return Options(
        chosen, float(ratio), activations, integrity, outsource, fixed, public, delta_tolerance, precision, known
    )


def share_checked(integrity: str) -> float:
    """The share of answers that is checked. Raises ``InputError``."""
    if integrity in ("none", "full"):
        return float(integrity == "full")
    name, _, text = integrity.partition(":")
    with contextlib.suppress(ValueError):
        if name == "spot" and 0 < float(text) <= 1:
            return float(text)
    raise InputError(f"integrity is none, spot:F or full, not {integrity!r}", "F is a probability, such as spot:0.1")


def parse_outsource(text: str) -> str | set[int]:
    """ "all", "none", "auto" or a comma-separated list of op ids. Raises ``InputError``."""
    if text in ("all", "none", "auto"):
        return text
    try:
        return {int(part) for part in text.split(",")}
    except ValueError:
        raise InputError(
            f"--outsource {text!r} is neither all, none, auto, nor a list of op ids",
            "shadownet inspect MODEL lists the ids",
        ) from None


class Conversion:
    """One conversion: partition, self-test, lower, write, try; what fails to be precise stays in the enclave."""

    def __init__(
        self, graph: Graph, content: bytes, options: Options, reference: Reference, calibration: Any = None
    ) -> None:
        self._graph, self._content, self._options, self._reference = graph, content, options, reference
        self._shapes: dict[int, Shapes] = {e: reference.shapes(e) for e in graph.entry_points()}
        self._refused: dict[int, dict[int, str]] = {e: {} for e in self._shapes}
        self._placed: dict[int, dict[int, str]] = {e: {} for e in self._shapes}
        self.partitions = self._partition()
        self._place()
        self._guessed = calibration is None
        self._calibration, self._trial = self._samples(calibration)
        self._self_test()

    def run(self, work: Path, target: Path, key: Path) -> tuple[Lowered, Verdict]:
        """Write a verified bundle into the empty directory ``work``, as the next version of ``target``.

        Raises ``MismatchError``, ``BundleError``."""
        device_key = keys.load(key)
        if self._guessed and self._options.bits is None and any(p.linear for p in self.partitions.values()):
            note("no --calibration: random inputs set the size of the activation masks")
        lowered, verdict = self._attempt(work, key, device_key)
        for kinds in (*AMPLIFIERS, ()):
            if verdict.ok:
                break
            if self._refuse_before(kinds):
                note(f"{verdict.why}: keeping the layers before {', '.join(kinds) or 'every op'} in the enclave")
                lowered, verdict = self._attempt(work, key, device_key)
        if not verdict.ok:
            raise MismatchError(
                f"the converted model does not compute what the original does: {verdict.why}",
                "try inputs like the real ones with --calibration X.npy",
            )
        bundle.stamp(work, device_key, bundle.next_version(target, key))
        return lowered, verdict

    def lower(self) -> Lowered:
        """What would be written, before any trial run."""
        lowering = Lowering(
            self._graph,
            self._options.scheme,
            self._options.ratio,
            Rng(),
            self._options.bits,
            share_checked(self._options.integrity), self._base, self._options.delta_tolerance,
            self._options.precision,
        )  # fmt: skip
        return lowering.run(self._content, self.partitions, self._folded, self._rms)

    def doubtful(self) -> bool:
        """Whether a trial run may find layers imprecise: those before an op that amplifies small errors."""
        kinds = {kind for group in AMPLIFIERS for kind in group}
        for part in self.partitions.values():
            before = upstream(part.graph, {op.id for op in part.graph.ops if op.kind in kinds})
            if any(lin.op.id in before for lin in part.linear):
                return True
        return False

    def _partition(self) -> dict[int, Partition]:
        outsource = parse_outsource(self._options.outsource)
        known = {op.id for e in self._shapes for op in self._graph.subgraphs[e].ops}
        if isinstance(outsource, set) and outsource - known:
            raise InputError(f"the model has no op {min(outsource - known)}", "shadownet inspect MODEL lists the ids")
        return {
            e: partition(
                self._graph,
                e,
                s,
                outsource,
                self._placed[e] | self._refused[e],
                self._options.ratio,
                self._options.device,
            )
            for e, s in self._shapes.items()
        }

    def _place(self) -> None:
        """Keep inside what the scheme wants there, and what a public base does not have."""
        scheme, base = self._options.scheme, self._options.base
        everything = [lin for part in self.partitions.values() for lin in part.linear]
        self._base = {} if base is None else base_rows(base, everything)
        for entry, part in self.partitions.items():
            for position, lin in enumerate(part.linear):
                why = scheme.keeps(Place(position, len(part.linear), lin.depthwise))
                if not why and base is not None and lin.op.id not in self._base:
                    why = "the public base has no such layer"
                if why:
                    self._placed[entry][lin.op.id] = why
        if any(self._placed.values()):
            self.partitions = self._partition()

    def _samples(self, calibration: Any) -> tuple[Samples, Samples]:
        """(inputs that set mask sizes, inputs of the trial run) per entry; the user's serve the main one."""
        sizes: Samples = {}
        trial: Samples = {}
        for entry, part in self.partitions.items():
            specs = [interface_spec(part, t) for t in part.graph.inputs]
            if calibration is not None and entry == 0:
                arrays = calibration if isinstance(calibration, list) else [load_array(Path(calibration))]
                sizes[entry] = split_batch(arrays, specs)[:MAX_CALIBRATION]
                if not sizes[entry]:
                    raise InputError("the calibration data holds no sample")
                trial[entry] = sizes[entry][:RANDOM_SAMPLES]
            else:
                sizes[entry] = [random_inputs(specs, seed) for seed in range(RANDOM_SAMPLES)]
                trial[entry] = [*sizes[entry], *quiet_inputs(specs)]
        return sizes, trial

    def _self_test(self) -> None:
        """Keep quantised layers inside whose kernel in LiteRT rounds differently from ours."""
        self._observe()
        for entry, part in self.partitions.items():
            for lin in track(part.linear, "testing number formats"):
                known = constants(lin, part.graph, self._folded[entry])
                values = numbers(lin, part.graph, known)
                if values.exact and self._options.precision != "float32":
                    self._refused[entry][lin.op.id] = f"its integers need float32, not {self._options.precision}"
                elif values.exact and not agrees(lin, part, self._graph, values, self._reference, lin.op.id):
                    self._refused[entry][lin.op.id] = "LiteRT's kernel for it rounds differently"
                if self._options.bits and (why := unfit(lin, numbers(lin, part.graph, known, self._options.bits))):
                    self._refused[entry][lin.op.id] = why
        if self._options.bits:
            # Fixed point errs by a share of the loudest value, a logarithm is about the faint ones. Trial inputs may
            # have none, real ones do.
            self._refuse_before(AMPLIFIERS[0])
        if any(self._refused.values()):
            self.partitions = self._partition()

    def _observe(self) -> None:
        """Run the original: values of folded weights, and the rms of each linear layer's input."""
        self._folded: dict[int, dict[int, Array]] = {}
        self._rms: dict[int, dict[int, float]] = {}
        for entry, part in self.partitions.items():
            tensors = sorted({lin.input for lin in part.linear})
            seen = track(self._calibration[entry], "observing the original")
            try:
                squares = [np.square(self._reference.observe(entry, s, tensors)) for s in seen]
            except ModelError as error:
                raise ModelError(str(error), "give inputs that the model accepts with --calibration X.npy") from None
            mean = np.sqrt(np.mean(squares, axis=0)) if tensors else []
            # A layer that saw only zeros still gets a mask.
            usable = (float(v) if np.isfinite(v) and v > 0 else 1.0 for v in mean)
            self._rms[entry] = dict(zip(tensors, usable, strict=True))
            values = self._reference.values(entry, part.folded) if part.folded else []
            self._folded[entry] = dict(zip(part.folded, values, strict=True))

    def _refuse_before(self, kinds: Iterable[str]) -> bool:
        """Keep the linear layers upstream of ops of these kinds inside (of all ops, if none is named)."""
        kinds, changed = tuple(kinds), False
        for entry, part in self.partitions.items():
            ends = {op.id for op in part.graph.ops if not kinds or op.kind in kinds}
            before = upstream(part.graph, ends)
            for lin in part.linear:
                if lin.op.id in before and (not kinds or lin.op.id not in ends):
                    noise = "its rounding" if self._options.bits else "the rounding noise of its mask"
                    why = f"{kinds[0]} after it would amplify {noise}" if kinds else "imprecise"
                    self._refused[entry][lin.op.id] = why
                    changed = True
        self.partitions = self._partition()
        return changed

    def _attempt(self, work: Path, key: Path, device_key: bytes) -> tuple[Lowered, Verdict]:
        for file in work.iterdir():
            file.unlink()
        lowered = self.lower()
        manifest = {
            "scheme": self._options.scheme.name,
            "options": self._options.to_json(),
            "layers": lowered.layers,
            "normalization": normalization(self._graph.metadata),
            "entries": {
                str(e): [[interface_spec(p, t).to_json() for t in side] for side in (p.graph.inputs, p.graph.outputs)]
                for e, p in self.partitions.items()
            },
        }
        bundle.write(work, manifest, lowered.accelerator, lowered.program, lowered.blobs, device_key)
        try:
            allowed = tolerance_for(self._options.to_json())
            return lowered, verify(work, key, self._reference, self.partitions, self._trial, allowed)
        except InputError as error:  # LiteRT runs the whole model, and not the parts: keep more of it together
            if not lowered.layers:
                raise
            return lowered, Verdict(False, 0.0, 0.0, (0, 0), 0, "default", str(error))

    def kept(self) -> list[str]:
        """Layers that could not be outsourced precisely: "op id: reason"."""
        return [f"op {i}: {why}" for refused in self._refused.values() for i, why in sorted(refused.items())]


def _summary(
    target: Path, scheme: str, work: Conversion, lowered: Lowered, verdict: Verdict, seconds: float
) -> dict[str, Any]:
    return {
        "bundle": str(target),
        "scheme": scheme,
        "layers_outsourced": len(lowered.layers),
        "linear_macs_outsourced": sum(layer["macs"] for layer in lowered.layers),
        "ops": sum(len(p.graph.ops) for p in work.partitions.values()),
        "kept_inside": work.kept(),
        "bytes": sum(f.stat().st_size for f in target.iterdir()),
        "seconds": round(seconds, 3),
        "verdict": verdict.to_json(),
    }
