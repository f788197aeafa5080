"""Build one network of the zoo, untrained, and write it as .tflite."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from models.zoo import NETWORKS, build

CALIBRATION_SAMPLES = 16


def parser() -> argparse.ArgumentParser:
    """The command line."""
    table = "\n".join(f"  {name:14}{net.parameters:>12,}  {net.summary}" for name, net in NETWORKS.items())
    result = argparse.ArgumentParser(
        prog="python -m models",
        description=__doc__,
        epilog=f"networks and their parameters:\n{table}\n\nexit codes: 0 done; 2 wrong usage, TensorFlow is "
        "missing, or the file cannot be written",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("name", metavar="NAME", choices=NETWORKS, help="a network from the list below")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the .tflite file to write")
    add("--quantize", choices=["int8"], help="quantise fully, ranges calibrated on seeded random inputs")
    add("--overwrite", action="store_true", help="replace FILE if it exists")
    return result


def convert(name: str, quantize: bool) -> bytes:
    """Build and convert the network `name`; the same name always gives the same weights."""
    import numpy as np

    from models.convert import to_tflite
    from models.weights import random_input

    print(f"building {name} ({NETWORKS[name].parameters:,} parameters)", file=sys.stderr)
    model = build(name)
    print("converting and quantising" if quantize else "converting", file=sys.stderr)
    rng = np.random.default_rng(1)
    samples = [random_input(model.input, rng) for _ in range(CALIBRATION_SAMPLES)] if quantize else None
    return to_tflite(model, samples)


def write(path: Path, content: bytes) -> None:
    """Write `content` to `path` completely or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def main() -> int:
    """Run the command line; a user's mistake ends with exit code 2 and no traceback."""
    cli = parser()
    args = cli.parse_args()
    if args.output.is_dir():
        cli.error(f"{args.output} is a folder")
    if args.output.exists() and not args.overwrite:
        cli.error(f"{args.output} exists; hint: --overwrite replaces it")
    if not os.access(args.output.parent, os.W_OK):
        cli.error(f"cannot write to the folder {args.output.parent}")
    try:
        content = convert(args.name, args.quantize == "int8")
        write(args.output, content)
    except ModuleNotFoundError as error:
        cli.error(f"{error}; hint: the zoo needs TensorFlow, pip install -e '.[zoo]'")
    except OSError as error:
        cli.error(f"cannot write {args.output}: {error.strerror}")
    print(f"wrote {args.output}: {len(content):,} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
