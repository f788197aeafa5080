"""The command line. Parsing is here; each verb loads its own module when it runs, so ``-h`` is instant."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from shadownet import __version__
from shadownet.wire.errors import Error

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """Parse a size such as 14M."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        value = int(float(number) * _SIZES[unit])
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500K, 14M or 2G") from None
    if value < 0:
        raise argparse.ArgumentTypeError("a size cannot be negative")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1_000_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no count")
    return value


def parser() -> argparse.ArgumentParser:
    """Build the whole parser."""
    top = argparse.ArgumentParser(
        prog="shadownet",
        description="Run a TFLite model with its secrets in an enclave and its linear layers on an untrusted "
        "accelerator. A simulator: processes, no hardware isolation.",
    )
    top.add_argument("--version", action="version", version=f"shadownet {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str, module: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(module=module, function=name)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        return sub

    def key(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--key", metavar="FILE", help="device key (default: $SHADOWNET_KEY, else the user's own)")

    p = verb("keygen", "make a device key", "owner")
    p.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: the user's own key)")

    p = verb("convert", "turn a .tflite model into a bundle", "owner")
    p.add_argument("model", metavar="MODEL.tflite")
    p.add_argument("-o", "--output", required=True, metavar="BUNDLE", help="directory to make")
    p.add_argument("--scheme", default="shadownet", metavar="NAME[:VARIANT]", help="default: %(default)s")
    p.add_argument("--ratio", type=float, default=1.2, metavar="R", help="obfuscation ratio (default: %(default)s)")
    p.add_argument(
        "--activations", choices=["float", "exact"], help="float masks or pads mod p (default: the scheme's)"
    )
    p.add_argument("--bits", metavar="W/X", help="of weights and of exact activations in float layers (default: 12/12)")
    p.add_argument(
        "--integrity",
        default="full",
        metavar="none|spot:F|full",
        help="which answers are checked (default: %(default)s)",
    )
    p.add_argument(
        "--outsource",
        default="all",
        metavar="all|auto|none|LIST",
        help="ops to outsource; auto: those worth it; LIST of ids",
    )
    p.add_argument("--device", metavar="NAME", help="with --outsource auto: worth it on this device (simulate --list)")
    p.add_argument("--base", metavar="PUBLIC.tflite", help="for delta: the public model that yours was trained from")
    p.add_argument(
        "--delta-tolerance", type=float, default=0.0, metavar="T", help="for delta: relative error of the difference"
    )
    p.add_argument(
        "--precision", default="float32", metavar="NAME",
        help="coarsest of the accelerator: tf32, fp16, bf16 (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--calibration", metavar="X.npy", help="samples that set the size of the activation masks")
    p.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    key(p)

    p = verb("run", "run a bundle on inputs", "run")
    p.add_argument("bundle", metavar="BUNDLE")
    p.add_argument("--input", nargs="+", required=True, metavar="X", help=".npy, .npz, images, or a .wav")
    p.add_argument("--output", metavar="Y.npy", help="write the outputs (.npz if there are several)")
    p.add_argument("--mean", type=float, metavar="M", help="for images: (pixel - mean) / std")
    p.add_argument("--std", type=float, metavar="S", help="for images: (pixel - mean) / std")
    p.add_argument("--num_runs", type=_count, default=1, metavar="N", help="run every sample N times, for timing")
    _session_flags(p)
    p.add_argument("--trace", metavar="T.json", help="write a timeline for Perfetto: times and sizes, no values")
    p.add_argument("--record", metavar="DIR", help="write every byte that crosses to DIR/transcript.npz")
    key(p)

    p = verb("verify", "compare a bundle with the original model", "run")
    p.add_argument("bundle", metavar="BUNDLE")
    p.add_argument("--model", required=True, metavar="MODEL.tflite", help="the original")
    p.add_argument("--inputs", metavar="X.npy", help="samples (default: random ones)")
    p.add_argument(
        "--tolerance", type=float, metavar="T", help="of the largest output value (default: by number format)"
    )
    key(p)

    p = verb("inspect", "show what runs where and why", "inspect")
    p.add_argument("path", metavar="MODEL.tflite|BUNDLE")
    p.add_argument(
        "--format", choices=["table", "json", "dot"], default="table", help="dot: for Graphviz (default: %(default)s)"
    )

    p = verb("seal", "copy a bundle for another device", "owner")
    p.add_argument("bundle", metavar="BUNDLE")
    p.add_argument("-o", "--output", required=True, metavar="BUNDLE2", help="directory to make")
    p.add_argument("--for", required=True, dest="for_key", metavar="DEVICE_KEY", help="the other device's key")
    p.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    key(p)

    verb("schemes", "list the schemes, what they protect and what breaks them", "owner")
    verb("doctor", "say what this machine has and what is missing", "doctor")

    p = verb("bench", "measure what protection costs, beside the unprotected model", "bench")
    p.add_argument("models", nargs="+", metavar="MODEL.tflite")
    p.add_argument("--schemes", default="shadownet:fast,shadownet:paper", metavar="A,B", help="default: %(default)s")
    p.add_argument("--integrity", default="none,full", metavar="A,B", help="ways of checking (default: %(default)s)")
    p.add_argument("--batch", type=_count, default=1, metavar="N", help="inputs at a time (default: %(default)s)")
    p.add_argument("--num_threads", type=_count, default=1, metavar="N", help="per process (default: %(default)s)")
    p.add_argument("--rounds", type=_count, default=30, metavar="N", help="at least 30 (default: %(default)s)")
    p.add_argument("--device", nargs="+", metavar="NAME", help="predicted for these beside what is measured here")
    p.add_argument("--accelerator", default="litert-cpu", metavar="NAME", help="default: %(default)s")
    key(p)

    p = verb("simulate", "predict what a model or bundle would cost on a device", "simulate")
    p.add_argument("path", nargs="?", default="", metavar="MODEL.tflite|BUNDLE")
    p.add_argument("--device", nargs="+", metavar="NAME", help="profiles or .toml files (default: hikey960-optee)")
    p.add_argument("--list", action="store_true", help="list the device profiles")
    p.add_argument(
        "--schemes", default="shadownet:paper,shadownet:fast", metavar="A,B", help="for a model (default: %(default)s)"
    )
    p.add_argument("--ratio", type=float, default=1.2, metavar="R", help="obfuscation ratio (default: %(default)s)")
    p.add_argument("--integrity", default="full", metavar="none|spot:F|full", help="default: %(default)s")
    p.add_argument("--activations", choices=["float", "exact"], help="default: the scheme's")
    p.add_argument("--outsource", default="all", metavar="all|auto|none|LIST", help="default: %(default)s")
    p.add_argument("--base", metavar="PUBLIC.tflite", help="for delta: the public model that yours was trained from")
    p.add_argument("--sweep", metavar="P=A:B[:STEP]", help="ratio=1.0:2.0 or ta-memory=1M:64M: a row for each value")
    p.add_argument(
        "--ta-memory", type=size, default=0, metavar="SIZE", help="secure memory set aside (default: the device's)"
    )
    p.add_argument("--layers", action="store_true", help="with --json: counts of each layer, too")
    key(p)

    p = verb("calibrate", "measure this machine for simulate; wants it quiet", "simulate")
    p.add_argument("-o", "--output", metavar="FILE.toml", help="where to write it (default: the user's this-machine)")
    p.add_argument("--num_threads", type=_count, default=1, metavar="N", help="per process (default: %(default)s)")
    p.add_argument("--seconds", type=float, default=0.3, metavar="S", help="for each network (default: %(default)s)")

    p = verb("attack", "attack a bundle, or predict what each scheme would leak of a model", "attack")
    p.add_argument("bundle", metavar="BUNDLE|MODEL.tflite")
    p.add_argument("--model", metavar="TRUTH.tflite", help="the original, to score what the attacks got")
    p.add_argument("--base", metavar="PUBLIC.tflite", help="a public relative that the attacker has")
    p.add_argument("--attacks", metavar="A,B", help="such as A0,A4 (default: all that apply)")
    p.add_argument("--transcript", metavar="T.npz", help="what crossed, from run --record")
    p.add_argument("--other", metavar="BUNDLE2", help="a second bundle of the same model, which the attacker has too")
    p.add_argument("--data", metavar="D.npz", help="samples x and labels y: run the bundle, and steal the whole model")
    p.add_argument("--malicious", action="store_true", help="the attacker is the accelerator as well: A14, A18")
    p.add_argument("--queries", type=_count, default=50, metavar="N", help="labels it may ask for (default: 50)")
    p.add_argument("--runs", type=_count, default=32, metavar="N", help="own runs it may record (default: 32)")
    p.add_argument("-o", "--output", metavar="STOLEN.tflite", help="write the stolen model")
    p.add_argument("--schemes", metavar="A,B", help="for a MODEL.tflite: schemes to try (default: all)")
    key(p)

    p = verb("check", "attack a bundle and fail if it leaks more than allowed", "attack")
    p.add_argument("bundle", metavar="BUNDLE")
    p.add_argument("--model", required=True, metavar="TRUTH.tflite", help="the original")
    p.add_argument("--gates", required=True, metavar="FILE", help="TOML, such as max_filters_recovered = 0.05")
    key(p)

    p = verb("arena", "run models x schemes x attacks and write the matrix", "arena")
    p.add_argument("--models", nargs="+", default=[], metavar="MODEL.tflite", help="none: only write the report")
    p.add_argument(
        "--schemes", default="shadownet:artifact,shadownet:paper", metavar="A,B", help="default: %(default)s"
    )
    p.add_argument("--attacks", default="all", metavar="A,B", help="default: %(default)s; A13: whole models only")
    p.add_argument("--base", default="auto", metavar="auto|none|FILE", help="auto: NAME_base.tflite beside NAME_…")
    p.add_argument("--data", metavar="D.npz", help="samples and labels, for attacks that take part")
    p.add_argument("--budgets", default="0,50,500,1%,10%", metavar="N,…", help="labels (default: 0,50,500,1%%,10%%)")
    p.add_argument("--runs", type=_count, default=256, metavar="N", help="that attackers record (default: %(default)s)")
    p.add_argument("--seeds", type=_count, default=3, metavar="N", help="repetitions (default: %(default)s)")
    p.add_argument("--jobs", type=int, default=-1, metavar="N", help="processes (default: one a core)")
    p.add_argument("--backend", default="loky", metavar="NAME", help="of joblib (default: %(default)s)")
    p.add_argument(
        "--out", default="results", metavar="DIR", help="a file for each cell; resumed (default: %(default)s)"
    )
    p.add_argument("--report", metavar="FILE.md", help="where to write the report (default: DIR/MATRIX.md)")

    p = verb("report", "write one page that shows a bundle or results of the other verbs", "report")
    p.add_argument(
        "what", nargs="+", metavar="BUNDLE|RESULTS.json", help="a bundle, files from --json or --trace, or both"
    )
    p.add_argument("-o", "--output", default="report.html", metavar="FILE", help="default: %(default)s")
    p.add_argument("--model", metavar="TRUTH.tflite", help="the original: adds graph, attacks, latency, rounding")
    p.add_argument("--base", metavar="PUBLIC.tflite", help="a public relative that the attacker has")
    p.add_argument("--data", metavar="D.npz", help="samples x and labels y: adds accuracy")
    p.add_argument(
        "--pictures", metavar="X", help="an image or .npy: adds what the accelerator sees of it; shows activations"
    )
    p.add_argument("--schemes", metavar="A,B", help="for --pictures: NAME[:VARIANT][+exact] (default: all)")
    p.add_argument("--overwrite", action="store_true", help="replace an existing file")
    key(p)

    p = verb("demo", "protect a small network and watch it read digits", "demo")
    p.add_argument("-o", "--output", default="demo", metavar="DIR", help="where to write (default: %(default)s)")
    p.add_argument("--images", type=_count, default=100, metavar="N", help="digits to read (default: %(default)s)")
    return top


def _session_flags(p: argparse.ArgumentParser) -> None:
    p.add_argument("--accelerator", default="litert-cpu", metavar="NAME", help="default: %(default)s; see doctor")
    p.add_argument("--delegate", default="", metavar="LIB.so[:KEY=VALUE,…]", help="a vendor's delegate to load there")
    p.add_argument("--num_threads", type=_count, default=1, metavar="N", help="per process (default: %(default)s)")
    p.add_argument("--masks", type=_count, default=0, metavar="N", help="sets of one-time masks to make beforehand")
    p.add_argument("--mask-memory", type=size, default=2 << 30, metavar="SIZE", help="for prepared masks (default: 2G)")
    p.add_argument("--enclave-memory", type=size, default=0, metavar="SIZE", help="limit beyond the enclave's baseline")
    p.add_argument("--mask-input", action="store_true", help="mask what enters the first layer too")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ? instead
    args = parser().parse_args(argv)
    try:
        if sys.platform != "linux":
            raise Error("shadownet runs on Linux only", "use a Linux machine, virtual machine or container")
        function = getattr(importlib.import_module(f"shadownet.cli.{args.module}"), args.function)
        code = int(function(args) or 0)
        sys.stdout.flush()
        return code
    except Error as error:
        print(f"shadownet: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code if sys.platform == "linux" else 2
    except KeyboardInterrupt:
        print("shadownet: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has enough
        return 0
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not fail again
        print(f"shadownet: error: {error.strerror or error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("shadownet: error: this machine has too little memory for the model", file=sys.stderr)
        return 2
