"""DenseNet (Huang et al., 2017, arXiv:1608.06993)."""

from keras import Model, applications


def densenet121() -> Model:
    """[1, 224, 224, 3] to 1,000 class probabilities; BatchNorm and ReLU come before each convolution."""
    return applications.DenseNet121(weights=None, name="densenet121")
