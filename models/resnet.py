"""Residual networks (He et al., 2016, arXiv:1512.03385): the CIFAR family of 6n+2 layers and ResNet-50."""

from keras import Model, applications, layers


def resnet44() -> Model:
    """n = 7: [1, 32, 32, 3] to ten class probabilities."""
    return _cifar_resnet(7, "resnet44")


def resnet404() -> Model:
    """n = 67: [1, 32, 32, 3] to ten class probabilities."""
    return _cifar_resnet(67, "resnet404")


def resnet50() -> Model:
    """[1, 224, 224, 3] to 1,000 class probabilities, bottleneck blocks."""
    return applications.ResNet50(weights=None, name="resnet50")


def _cifar_resnet(n: int, name: str) -> Model:
    """Three stages of n blocks at 32x32x16, 16x16x32 and 8x8x64, in the layout of Keras' CIFAR-10 example.

    Every convolution has a bias and all but the two 1x1 shortcuts have BatchNorm: 6n+1 convolutions, two
    shortcuts and a dense layer.
    """
    image = layers.Input((32, 32, 3), name="image")
    x = layers.ReLU()(_conv(image, 16))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(n):
            x = _block(x, filters, downsample=stage > 0 and block == 0)
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return Model(image, layers.Dense(10, activation="softmax")(x), name=name)


def _block(x, filters: int, downsample: bool):
    """Two 3x3 convolutions beside an identity, or beside a strided 1x1 convolution that halves the image."""
    stride = 2 if downsample else 1
    branch = layers.ReLU()(_conv(x, filters, stride))
    branch = _conv(branch, filters)
    if downsample:
        x = layers.Conv2D(filters, 1, stride, padding="same")(x)
    return layers.ReLU()(layers.Add()([x, branch]))


def _conv(x, filters: int, stride: int = 1):
    """A 3x3 convolution with bias and BatchNorm."""
    return layers.BatchNormalization()(layers.Conv2D(filters, 3, stride, padding="same")(x))
