"""The verb demo: protect a small network of our own and watch it read handwritten digits."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import shadownet
from shadownet.analysis import Reference
from shadownet.cli.output import as_json, human
from shadownet.graph import Graph, load
from shadownet.interpreter import Interpreter
from shadownet.progress import note, quiet, track
from shadownet.wire.errors import InputError

Array = np.ndarray[Any, Any]

LAYER = 2  # whose input the pictures show: the first 1x1 convolution, behind a depthwise one
CHANNELS = 16


def demo(args: argparse.Namespace) -> None:
    models = Path(shadownet.__file__).resolve().parent.parent / "models" / "digits"
    model = models / "digits_cnn.tflite"
    if not model.exists():
        raise InputError("the demo's model is part of the checkout, not of the installed package", "clone the project")
    if args.images < 1:
        raise InputError("--images must be at least 1")
    with np.load(models / "digits_test.npz") as data:
        digits, labels = _as_input(data["x"])[: args.images], data["y"][: args.images]
    out = Path(args.output)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {out}: {error.strerror}") from None

    note(f"1/4 converting {model.name} with shadownet:paper, calibrated on digits")
    # Held-out digits may calibrate: they set the size of the masks, and no weight depends on them.
    summary = shadownet.convert(model, out / "digits.shadow", calibration=[digits[:32]], overwrite=True)
    note("2/4 reading digits in two processes, masks prepared, beside the unprotected model")
    with tempfile.TemporaryDirectory() as tmp:
        result = _race(model, out / "digits.shadow", digits, labels, Path(tmp) / "transcript.npz")
        note("3/4 drawing what each side sees")
        graph, _ = load(model)
        picture = _picture(graph, model, digits[0], Path(tmp) / "transcript.npz", out / "what_each_side_sees.png")
    note("4/4 done")
    result |= {"bundle": str(out / "digits.shadow"), "picture": str(picture), "layers": summary["layers_outsourced"]}
    as_json(result) if args.json else _tell(result)


def _as_input(x: Array) -> Array:
    """Digits as the network takes them: float32 [N, 8, 8, 1] in 0..1."""
    return (x if x.dtype == np.float32 else x.astype(np.float32) / 16).reshape(-1, 8, 8, 1)


def _race(model: Path, bundle: Path, digits: Array, labels: Array, transcript: Path) -> dict[str, Any]:
    """Protected and unprotected in turn, one thread each; one recorded inference afterwards, in a run of its own."""
    from ai_edge_litert.interpreter import Interpreter as Plain

    with quiet():
        plain = Plain(model_path=str(model), num_threads=1)
        plain.allocate_tensors()
    right, times = np.zeros(2, int), np.empty((len(digits), 2))
    worst = 0.0
    with Interpreter(bundle, num_threads=1) as protected:
        protected.allocate_tensors()
        protected.prepare(len(digits))
        for i, digit in enumerate(track(digits, "reading digits")):
            answers = []
            for who, interpreter in enumerate((plain, protected)):
                start = time.perf_counter()
                interpreter.set_tensor(interpreter.get_input_details()[0]["index"], digit[None])
                interpreter.invoke()
                answers.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
                times[i, who] = time.perf_counter() - start
                right[who] += answers[who].argmax() == labels[i]
            worst = max(worst, float(np.abs(answers[0] - answers[1]).max()))
        stats = protected.session.stats()
    with Interpreter(bundle, record=str(transcript)) as recorded:
        recorded.allocate_tensors()
        recorded.set_tensor(recorded.get_input_details()[0]["index"], digits[:1])
        recorded.invoke()
    median = np.median(times, axis=0) * 1e3
    return {
        "images": len(digits),
        "accuracy": {"unprotected": right[0] / len(digits), "protected": right[1] / len(digits)},
        "largest_difference": worst,
        "latency_ms": {"unprotected": median[0], "protected": median[1]},
        "ratio": median[1] / median[0],
        "bytes_crossed": (stats["bytes_to_accelerator"] + stats["bytes_from_accelerator"]) // len(digits),
        "crossings": stats["crossings"] // len(digits),
    }


def _picture(graph: Graph, model: Path, digit: Array, transcript: Path, path: Path) -> Path:
    """Draw one layer's input as the enclave has it (left) and as it crossed to the accelerator (right)."""
    with np.load(transcript) as calls:
        name = sorted(n for n in calls.files if n.endswith(".x"))[LAYER]
        seen = calls[name][0]
    # The enclave gives its activations to nobody; the owner, who has the model, computes them anew.
    target = _input_of_layer(graph, LAYER)
    with Reference(str(model), graph) as reference:
        reference.observe(0, [digit[None]], [target])
        known = reference.values(0, [target])[0][0]
    _draw(digit[..., 0], known, seen, path)
    return path


def _input_of_layer(graph: Graph, number: int) -> int:
    linear = [op for op in graph.subgraphs[0].ops if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    return linear[number].inputs[0]


def _draw(digit: Array, known: Array, seen: Array, path: Path) -> None:
    from PIL import Image, ImageDraw

    tile, gap, top = 56, 6, 34
    side = 4 * (tile + gap)
    canvas = Image.new("RGB", (150 + 2 * side + 40, top + side + 10), "white")
    pen = ImageDraw.Draw(canvas)

    def place(values: Array, x: int, y: int, size: int) -> None:
        low, high = float(values.min()), float(values.max())
        grey = np.uint8(255 * (values - low) / max(high - low, 1e-9))
        canvas.paste(Image.fromarray(grey).resize((size, size), Image.Resampling.NEAREST), (x, y))

    pen.text((10, 10), "the digit", fill="black")
    place(digit, 10, top, 120)
    for maps, title, left in ((known, "in the enclave", 150), (seen, "what the accelerator gets", 170 + side)):
        pen.text((left, 10), title, fill="black")
        for c in range(min(CHANNELS, maps.shape[-1])):
            place(maps[..., c], left + (c % 4) * (tile + gap), top + (c // 4) * (tile + gap), tile)
    canvas.save(path)


def _tell(result: dict[str, Any]) -> None:
    accuracy, latency = result["accuracy"], result["latency_ms"]
    print(f"{result['images']} held-out digits, {result['layers']} layers on the accelerator")
    print(f"accuracy     unprotected {accuracy['unprotected']:.1%}   protected {accuracy['protected']:.1%}")
    print(f"difference   at most {result['largest_difference']:.1e} in a class probability")
    print(
        f"latency      unprotected {latency['unprotected']:.3f} ms   protected {latency['protected']:.3f} ms   "
        f"ratio {result['ratio']:.1f}"
    )
    print(f"crossed      {human(result['bytes_crossed'])}B in {result['crossings']} calls per digit")
    print(f"pictures     {result['picture']}")
    print(
        "\nThe accelerator got transformed weights and noisy activations; bias, scalars, order, masks and every "
        "non-linear layer stayed in the enclave process, which checked every answer."
    )
    print(
        "Not protected: this scheme's weights fall to an attacker who looks for collinear filters, float masks average "
        "out over repeated inputs, and a process is no hardware enclave. shadownet schemes has stronger ones."
    )
