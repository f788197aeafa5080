"""YOLOv4-tiny (Wang et al., 2021, arXiv:2011.08036), layer by layer as in Darknet's yolov4-tiny.cfg."""

from keras import Model, layers, ops

CLASSES = 80
ANCHORS = 3


def yolov4_tiny() -> Model:
    """[1, 416, 416, 3] to two raw heads, [1, 13, 13, 255] and [1, 26, 26, 255].

    A head holds box (4), objectness (1) and 80 class scores for each of three anchors, before any sigmoid.
    """
    image = layers.Input((416, 416, 3), name="image")
    x = _conv(_conv(image, 32, 3, 2), 64, 3, 2)
    x, _ = _csp(x, 64)
    x, _ = _csp(x, 128)
    x, fine = _csp(x, 256)
    coarse = _conv(_conv(x, 512, 3), 256, 1)
    up = ops.image.resize(_conv(coarse, 128, 1), fine.shape[1:3], interpolation="nearest")
    heads = [_conv(coarse, 512, 3), _conv(layers.Concatenate()([up, fine]), 256, 3)]
    return Model(image, [layers.Conv2D(ANCHORS * (5 + CLASSES), 1)(x) for x in heads], name="yolov4_tiny")


def _csp(x, filters: int):
    """A cross-stage-partial block: its output, pooled to half the size, and its last convolution's."""
    x = _conv(x, filters, 3)
    first = _conv(x[..., filters // 2 :], filters // 2, 3)
    second = _conv(first, filters // 2, 3)
    last = _conv(layers.Concatenate()([second, first]), filters, 1)
    return layers.MaxPooling2D(2)(layers.Concatenate()([x, last])), last


def _conv(x, filters: int, size: int, stride: int = 1):
    """A convolution without bias, BatchNorm, LeakyReLU(0.1); stride 2 pads top and left, as Darknet does."""
    if stride == 2:
        x = layers.ZeroPadding2D(((1, 0), (1, 0)))(x)
    padding = "valid" if stride == 2 else "same"
    x = layers.Conv2D(filters, size, stride, padding=padding, use_bias=False)(x)
    return layers.LeakyReLU(0.1)(layers.BatchNormalization()(x))
