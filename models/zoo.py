"""The registry of the zoo; a network's builder, and TensorFlow with it, is imported only when it is built."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from keras import Model


class Network(NamedTuple):
    """The module whose function of the network's name builds it, its parameters, and a line for people."""

    module: str
    parameters: int
    summary: str


NETWORKS = {
    "mobilenet_v1": Network("mobilenet", 4_253_864, "MobileNet v1 1.0, 224x224, 1,000 classes"),
    "resnet44": Network("resnet", 665_994, "ResNet-44 for CIFAR-10, 32x32"),
    "resnet404": Network("resnet", 6_539_274, "ResNet-404 for CIFAR-10, 32x32"),
    "minivgg": Network("minivgg", 5_100_200, "MiniVGG, 64x64, 1,000 classes"),
    "yolov4_tiny": Network("yolo", 6_062_814, "YOLOv4-tiny for COCO, 416x416, two raw detection heads"),
    "densenet121": Network("densenet", 8_062_504, "DenseNet-121, 224x224, 1,000 classes"),
    "resnet50": Network("resnet", 25_636_712, "ResNet-50, 224x224, 1,000 classes"),
    "vit_tiny": Network("transformer", 5_717_416, "ViT-Tiny/16, 224x224, 1,000 classes"),
    "decoder_tiny": Network("transformer", 867_328, "byte-level decoder-only transformer, 64 tokens"),
}


def build(name: str, seed: int = 0) -> Model:
    """Build the network `name` and draw its weights; its parameter count is checked against the registry."""
    import numpy as np

    from models.weights import draw_weights

    network = NETWORKS[name]
    model = getattr(importlib.import_module(f"models.{network.module}"), name)()
    count = model.count_params()
    assert count == network.parameters, f"{name} has {count:,} parameters, expected {network.parameters:,}"
    draw_weights(model, np.random.default_rng(seed))
    return model
