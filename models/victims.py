"""Train victims for the attack bench: small networks whose weights mean something, and their relatives.

    python -m models.victims [-o DIR] [NAME…]

For each of two architectures, a CNN with BatchNorm (`cnn`) and a perceptron 64-32-16-10 (`mlp`):

    NAME_base       a public model: other data than the owner's (other digits, moved by a pixel, at half the contrast)
    NAME_tuned_1…4  the owner's, fine-tuned from it with growing learning rates: growing distance to the base
    NAME_scratch    the owner's, trained from scratch
    NAME_other      as NAME_scratch from another seed: the null of attacks that use a public model
    NAME_few        as NAME_scratch on the owner's first 80 digits alone: overfitted, so that membership shows

Three disjoint parts of scikit-learn's digits: 797 of the owner, 500 of the attacker (queries), 500 held out, the same
as in models/digits. Written to models/victims/data.npz as x_owner, y_owner, x_attacker, y_attacker, x_test, y_test.
Files go to the folder $SHADOWNET_CACHE/victims, by default in the user's cache; what is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

COMMITTED = Path(__file__).with_suffix("")  # the few that tests need
DATA = COMMITTED / "data.npz"
OWNER, FEW = 797, 80
BATCH, EPOCHS, TUNING_EPOCHS, FEW_EPOCHS = 32, 60, 40, 200
RATE = 3e-3
TUNING_RATES = (1e-4, 6e-4, 4e-3, 3e-2)
KINDS = ("base", *(f"tuned_{i}" for i in range(1, len(TUNING_RATES) + 1)), "scratch", "other", "few")
NAMES = tuple(f"{family}_{kind}" for family in ("cnn", "mlp") for kind in KINDS)


def cache() -> Path:
    """Where trained files are kept: $SHADOWNET_CACHE, else the XDG cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SHADOWNET_CACHE") or Path(home, "shadownet")).expanduser() / "victims"


def find(name: str) -> Path | None:
    """The file of a victim, committed or cached; None if it was not trained here yet."""
    return next((p for p in (COMMITTED / f"{name}.tflite", cache() / f"{name}.tflite") if p.exists()), None)


def data() -> dict[str, np.ndarray]:
    """Images [n, 8, 8, 1] float32 in 0..1 and labels [n] uint8 of the three parts."""
    with np.load(DATA) as arrays:
        return {name: arrays[name] for name in arrays.files}


def write_data() -> None:
    """Split the digits; the held-out part is that of models/digits."""
    from sklearn.model_selection import train_test_split

    from models.digits import load_split

    split = load_split()
    x_owner, x_attacker, y_owner, y_attacker = train_test_split(
        split.x_train, split.y_train, train_size=OWNER, stratify=split.y_train, random_state=0
    )
    parts = {"owner": (x_owner, y_owner), "attacker": (x_attacker, y_attacker), "test": (split.x_test, split.y_test)}
    arrays = {f"{side}_{name}": parts[name][k] for name in parts for k, side in enumerate("xy")}
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, **{k: v.astype(np.uint8) if k[0] == "y" else v for k, v in arrays.items()})


def build(family: str):
    """A fresh network: `cnn` 8x8x1 -> 12 -> 4x4x16 -> depthwise -> 24 -> 10, or `mlp` 64-32-16-10."""
    from keras import Model, layers

    from models.digits import build_mlp, normalise

    if family == "mlp":
        return build_mlp()
    image = layers.Input((8, 8, 1), name="image")
    x = normalise(layers.Conv2D(12, 3, padding="same", use_bias=False)(image), "relu")
    x = normalise(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x), "relu")
    x = normalise(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x), "relu")
    x = normalise(layers.Conv2D(24, 1, use_bias=False)(x), "relu")
    x = layers.GlobalAveragePooling2D()(x)
    return Model(image, layers.Dense(10, activation="softmax")(x), name="victim_cnn")


def fit(model, x: np.ndarray, y: np.ndarray, rate: float, epochs: int) -> None:
    """Adam with a cosine schedule."""
    import tensorflow as tf

    steps = epochs * -(-len(x) // BATCH)
    schedule = tf.keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(tf.keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    model.fit(x, y, BATCH, epochs, verbose=0)


def train(family: str, folder: Path) -> None:
    """Train one architecture's eight models and write them."""
    import tensorflow as tf

    from models.convert import to_tflite

    digits = data()
    x, y = digits["x_owner"], digits["y_owner"]
    found = {}
    public = np.roll(digits["x_attacker"], 1, axis=(1, 2)) / 2, digits["y_attacker"]
    samples = {"scratch": (x, y), "other": (x, y), "base": public, "few": (x[:FEW], y[:FEW])}
    for seed, kind in enumerate(samples):
        print(f"training {family}_{kind}", file=sys.stderr)
        tf.keras.utils.set_random_seed(seed)
        found[kind] = build(family)
        fit(found[kind], *samples[kind], RATE, FEW_EPOCHS if kind == "few" else EPOCHS)
    start = found["base"].get_weights()
    for i, rate in enumerate(TUNING_RATES, 1):
        print(f"training {family}_tuned_{i}", file=sys.stderr)
        tf.keras.utils.set_random_seed(10 + i)
        found[f"tuned_{i}"] = model = build(family)
        model.set_weights(start)
        fit(model, x, y, rate, TUNING_EPOCHS)
    records = {}
    for kind, model in found.items():
        content = to_tflite(model)
        (folder / f"{family}_{kind}.tflite").write_bytes(content)
        loss, distance = model.evaluate(digits["x_test"], digits["y_test"], verbose=0), _distance(model, found["base"])
        right = float((model.predict(digits["x_test"], verbose=0).argmax(1) == digits["y_test"]).mean())
        records[f"{family}_{kind}"] = {"test_accuracy": right, "test_loss": loss, "distance_to_base": distance}
    (folder / f"{family}.json").write_text(json.dumps(records, indent=1) + "\n")


def _distance(model, base) -> float:
    """|W - W0| / |W0| over all kernels, before BatchNorm folds into them."""
    pairs = [(a, b) for a, b in zip(model.get_weights(), base.get_weights(), strict=True) if a.ndim > 1]
    square = [
        sum(float(np.square(v).sum()) for v in part) for part in ([a - b for a, b in pairs], [b for _, b in pairs])
    ]
    return (square[0] / square[1]) ** 0.5


def ensure(names: list[str], folder: Path | None = None) -> list[Path]:
    """Paths of these victims; those that are nowhere are trained."""
    target = folder or cache()
    missing = {
        n.split("_")[0] for n in names if (find(n) is None if folder is None else not (folder / f"{n}.tflite").exists())
    }
    if missing and not DATA.exists():
        write_data()
    for family in sorted(missing):
        target.mkdir(parents=True, exist_ok=True)
        train(family, target)
    return [find(n) or target / f"{n}.tflite" if folder is None else folder / f"{n}.tflite" for n in names]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.victims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="victims (default: all)")
    parser.add_argument("-o", "--output", type=Path, help="folder (default: the user's cache)")
    args = parser.parse_args()
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no victim {min(unknown)}; hint: one of {', '.join(NAMES)}")
    try:
        for path in ensure(args.names or list(NAMES), args.output):
            print(path)
    except ModuleNotFoundError as error:
        parser.error(f"{error}; hint: training needs TensorFlow, pip install -e '.[zoo]'")
    except OSError as error:
        parser.error(f"cannot write: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
