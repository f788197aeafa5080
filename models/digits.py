"""Train small networks of our own on real handwritten digits and write them as .tflite.

    python -m models.digits [-o DIR] [--overwrite]

Data: scikit-learn's `load_digits`, 1,797 images of 8x8 pixels (UCI Optical Recognition of Handwritten
Digits). Inputs are [1, 8, 8, 1] float32, pixels scaled from 0..16 to 0..1; outputs are ten probabilities.
Writes NAME.tflite for every network, provenance.json, and digits_test.npz, the 500 held-out digits.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from keras import Model, layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from models.convert import to_tflite

SEED = 0
TEST_SIZE = 500
BATCH = 32
EPOCHS = 40
LEARNING_RATE = 3e-3
CALIBRATION_IMAGES = 300


class Split(NamedTuple):
    """Images [n, 8, 8, 1] float32 in 0..1 and labels [n] int64 in 0..9, for training and held out."""

    x_train: np.ndarray
    x_test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray


def load_split() -> Split:
    """Split the digits 1,297 : 500, stratified by class, always the same way."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    return Split(*train_test_split(images, labels, test_size=TEST_SIZE, stratify=labels, random_state=SEED))


def conv(x, filters: int, size: int, activation: str | None = "relu6"):
    """A convolution without bias and its BatchNorm, which the converter folds into it."""
    x = layers.Conv2D(filters, size, padding="same", use_bias=False)(x)
    return normalise(x, activation)


def depthwise(x):
    """A 3x3 depthwise convolution with BatchNorm and ReLU6."""
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    return normalise(x, "relu6")


def normalise(x, activation: str | None):
    """BatchNorm, quick to adapt because the training set is small, and an activation."""
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.Activation(activation)(x) if activation else x


def build_cnn() -> Model:
    """A small convolutional network with every kind of layer the demo shows.

    8x8x1 -> 16x16x1 (bilinear) -> 16x16x16 -> 16x16x32 with a residual block -> 8x8x48 -> 48 -> 10. Depthwise
    separable convolutions as in MobileNet (Howard et al., 2017, arXiv:1704.04861), the residual block as in
    ResNet (He et al., 2016, arXiv:1512.03385). The image is enlarged so that feature maps are worth a look.
    """
    image = layers.Input((8, 8, 1), name="image")
    x = layers.UpSampling2D(2, interpolation="bilinear")(image)
    x = conv(x, 16, 3)
    x = conv(depthwise(x), 32, 1)
    branch = conv(conv(x, 32, 3), 32, 3, activation=None)
    x = layers.ReLU()(layers.Add()([x, branch]))
    x = layers.MaxPooling2D(2)(x)
    x = conv(depthwise(x), 48, 1)
    x = layers.GlobalAveragePooling2D()(x)
    return Model(image, layers.Dense(10, activation="softmax")(x), name="digits_cnn")


def build_mlp() -> Model:
    """A perceptron 64-32-16-10 with ReLU, small enough to attack in seconds."""
    image = layers.Input((8, 8, 1), name="image")
    x = layers.Flatten()(image)
    x = layers.Dense(32, activation="relu")(x)
    x = layers.Dense(16, activation="relu")(x)
    return Model(image, layers.Dense(10, activation="softmax")(x), name="digits_mlp")


def train(build: Callable[[], Model], split: Split) -> Model:
    """Train with Adam and a cosine schedule; the same seed gives the same weights on the same machine."""
    tf.keras.utils.set_random_seed(SEED)
    model = build()
    steps = EPOCHS * -(-len(split.x_train) // BATCH)
    schedule = tf.keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    model.compile(tf.keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    print(f"training {model.name}: {model.count_params():,} parameters, {EPOCHS} epochs", file=sys.stderr)
    model.fit(split.x_train, split.y_train, BATCH, EPOCHS, verbose=0)
    return model


def accuracy(tflite: bytes, x: np.ndarray, y: np.ndarray) -> float:
    """Fraction of the images x [n, 8, 8, 1] float32 that LiteRT classifies as y [n]."""
    interpreter = Interpreter(model_content=tflite)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    if source["dtype"] == np.int8:
        scale, zero = source["quantization"]
        x = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
    right = 0
    for image, label in zip(x, y, strict=True):
        interpreter.set_tensor(source["index"], image[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(target["index"]).argmax()) == label
    return right / len(y)


def provenance(tflite: bytes, parameters: int, note: str, split: Split) -> dict[str, str | int | float]:
    """What a reader needs to trust one file: data, split, training, measured accuracy, hash."""
    return {
        "data": "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits (CC BY 4.0), 1,797 "
        "images of 8x8, pixels 0..16 divided by 16",
        "split": f"train_test_split(test_size={TEST_SIZE}, stratify=labels, random_state={SEED}): "
        f"{len(split.y_train)} train, {len(split.y_test)} held out",
        "training": f"Adam, cosine decay from {LEARNING_RATE}, batch {BATCH}",
        "seed": SEED,
        "epochs": EPOCHS,
        "number_format": note,
        "parameters": parameters,
        "test_accuracy": accuracy(tflite, split.x_test, split.y_test),
        "accuracy_measured_with": "ai-edge-litert on the written file, held-out images",
        "bytes": len(tflite),
        "sha256": hashlib.sha256(tflite).hexdigest(),
        "tensorflow": tf.__version__,
    }


def write_models(folder: Path) -> None:
    """Train, convert and measure every network; write them, their provenance and the held-out digits."""
    split = load_split()
    cnn, mlp = train(build_cnn, split), train(build_mlp, split)
    samples = split.x_train[:CALIBRATION_IMAGES, None]
    int8 = f"int8, post-training, calibrated on {CALIBRATION_IMAGES} training images"
    files = {
        "digits_cnn": (to_tflite(cnn), cnn, "float32"),
        "digits_cnn_int8": (to_tflite(cnn, samples), cnn, int8),
        "digits_mlp": (to_tflite(mlp), mlp, "float32"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for name, (tflite, model, note) in files.items():
        (folder / f"{name}.tflite").write_bytes(tflite)
        records[name] = provenance(tflite, model.count_params(), note, split)
        print(f"{name}: {records[name]['test_accuracy']:.1%} right, {len(tflite):,} bytes", file=sys.stderr)
    (folder / "provenance.json").write_text(json.dumps(records, indent=2) + "\n")
    np.savez_compressed(folder / "digits_test.npz", x=split.x_test, y=split.y_test.astype(np.uint8))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m models.digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path(__file__).with_suffix("")
    parser.add_argument("-o", "--output", type=Path, default=default, help="folder (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    args = parser.parse_args()
    if args.output.exists() and not args.overwrite:
        parser.error(f"{args.output} exists; hint: --overwrite replaces its files")
    tf.config.experimental.enable_op_determinism()
    write_models(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
