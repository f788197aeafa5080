"""Weights for untrained networks, seeded, with the statistics that matter of trained ones.

Kernels are normal with He variance 2/fan_in in convolutions (He et al., 2015, arXiv:1502.01852) and 1/fan_in
in dense layers, each filter scaled by a log-normal factor because the filters of trained networks differ in
norm. BatchNorm and LayerNorm draw their scale from U(0.5, 1.5) and their shift from N(0, 0.2^2). BatchNorm's
moving statistics are those of one batch of random images, as training would have left them, so activations
keep their scale through any depth. Likewise the last layer is scaled and shifted to logits of mean 0 and
standard deviation 3 over that batch: else an untrained network gives all inputs the same class, or none.
"""

import numpy as np
from keras import KerasTensor, Layer, Model, Variable, activations, layers, ops

FILTER_SPREAD = 0.25
BATCH = 8
LOGIT_DEVIATION = 3.0


def draw_weights(model: Model, rng: np.random.Generator) -> None:
    """Fill every weight of `model` from `rng`."""
    for layer in model.layers:
        for variable in layer.weights:
            variable.assign(_draw(layer, variable, rng))
    batch = np.concatenate([random_input(model.input, rng) for _ in range(BATCH)])
    _settle_batch_norm(model, batch)
    _settle_logits(model, batch)


def random_input(tensor: KerasTensor, rng: np.random.Generator) -> np.ndarray:
    """One random input for `tensor`: an image [1, h, w, c] float32 in -1..1, or token ids [1, n] int32.

    Images sum noise on grids of 1x1, 2x2, ... cells, so that like photographs they vary at every scale, from
    the tint of the whole to single pixels.
    """
    shape = (1, *tensor.shape[1:])
    if tensor.dtype == "int32":
        return rng.integers(0, 256, shape, dtype=np.int32)
    _, height, width, channels = shape
    octaves = height.bit_length()
    image = np.zeros(shape, np.float32)
    for cells in (2**octave for octave in range(octaves)):
        noise = rng.standard_normal((1, cells, cells, channels), np.float32)
        rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
        image += noise[:, rows][:, :, columns]
    return np.tanh(image / octaves**0.5)


def _draw(layer: Layer, variable: Variable, rng: np.random.Generator) -> np.ndarray:
    """New values for one variable of `layer`, by its role."""
    shape = tuple(variable.shape)
    match variable.name:
        case "kernel":
            return _draw_kernel(layer, shape, rng)
        case "gamma":
            return rng.uniform(0.5, 1.5, shape)
        case "moving_mean":
            return np.zeros(shape)
        case "moving_variance":
            return np.ones(shape)
        case "embeddings":
            return rng.normal(0, 1, shape)
        case _:
            return rng.normal(0, 0.2, shape)


def _draw_kernel(layer: Layer, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A kernel [kh, kw, in, out], depthwise [kh, kw, channels, 1] or dense [in, out]."""
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    fan_in = int(np.prod(shape[:2] if depthwise else shape[:-1]))
    gain = 1 if isinstance(layer, layers.Dense) else 2
    spread = rng.lognormal(0, FILTER_SPREAD, (shape[2], 1) if depthwise else shape[-1])
    return rng.normal(0, np.sqrt(gain / fan_in), shape) * spread


def _settle_batch_norm(model: Model, batch: np.ndarray) -> None:
    """Set the moving mean and variance of every BatchNorm to what `batch` [n, ...] gives.

    The variance of a channel is at least a tenth of its layer's mean variance: on a small batch that of a
    seldom active channel may come out near zero, and the channel would explode at its next activation.
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    model(batch, training=True)
    for norm in norms:
        variance = norm.moving_variance
        variance.assign(ops.maximum(variance, ops.mean(variance) / 10))


def _settle_logits(model: Model, batch: np.ndarray) -> None:
    """Give the last layer with a kernel, before its activation, centred outputs of a set size on `batch`."""
    head = [layer for layer in model.layers if hasattr(layer, "kernel")][-1]
    features = Model(model.input, head.input)(batch)
    activation, head.activation = head.activation, activations.linear
    logits = ops.convert_to_numpy(head(features))
    head.activation = activation
    mean = logits.mean(axis=tuple(range(logits.ndim - 1)))
    scale = LOGIT_DEVIATION / (logits - mean).std()
    head.kernel.assign(head.kernel * scale)
    head.bias.assign((head.bias - mean) * scale)
