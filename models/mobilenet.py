"""MobileNet v1 (Howard et al., 2017, arXiv:1704.04861)."""

from keras import Model, applications


def mobilenet_v1() -> Model:
    """Width 1.0: [1, 224, 224, 3] to 1,000 class probabilities; 28 linear layers, ReLU6."""
    return applications.MobileNet(weights=None, name="mobilenet_v1")
