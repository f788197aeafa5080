"""Transformers (Vaswani et al., 2017, arXiv:1706.03762), both with LayerNorm before each half of a block."""

import numpy as np
from keras import Layer, Model, layers, ops

HIDDEN_SCORE = -100.0  # exp(-100) adds nothing to a float32 sum, and the range stays fit for int8


class ClassToken(Layer):
    """Put a learned token before the tokens [n, t, d]: [n, t + 1, d]."""

    def build(self, shape: tuple[int, ...]) -> None:
        """Add the token, shaped like one of `shape` [n, t, d]."""
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

    def call(self, x):
        """Return the longer sequence."""
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1)


class Positions(Layer):
    """Add a learned embedding of the position to each of the tokens [n, t, d]."""

    def build(self, shape: tuple[int, ...]) -> None:
        """Add one embedding per position of `shape` [n, t, d]."""
        self.positions = self.add_weight(shape=shape[1:], name="positions")

    def call(self, x):
        """Return the sum."""
        return x + self.positions


def vit_tiny() -> Model:
    """ViT-Tiny/16: [1, 224, 224, 3] to 1,000 logits; 12 blocks, width 192, 3 heads.

    Architecture of Dosovitskiy et al. (2021, arXiv:2010.11929) in the size of DeiT-Ti (Touvron et al., 2021,
    arXiv:2012.12877).
    """
    image = layers.Input((224, 224, 3), name="image")
    x = layers.Reshape((14 * 14, 192))(layers.Conv2D(192, 16, 16)(image))
    x = Positions()(ClassToken()(x))
    for _ in range(12):
        x = _block(x, heads=3)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return Model(image, layers.Dense(1000)(x[:, 0]), name="vit_tiny")


def decoder_tiny() -> Model:
    """A byte-level decoder: ids [1, 64] int32 in 0..255 to next-byte logits [1, 64, 256] at every position.

    Four blocks, width 128, 4 heads, causal attention, in the manner of GPT-2 (Radford et al., 2019, "Language
    Models are Unsupervised Multitask Learners") with an output layer of its own.
    """
    tokens, width = 64, 128
    ids = layers.Input((tokens,), dtype="int32", name="ids")
    mask = np.triu(np.full((tokens, tokens), HIDDEN_SCORE, np.float32), k=1)
    x = Positions()(layers.Embedding(256, width)(ids))
    for _ in range(4):
        x = _block(x, heads=4, mask=mask)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    return Model(ids, layers.Dense(256)(x), name="decoder_tiny")


def _block(x, heads: int, mask: np.ndarray | None = None):
    """Attention and a feed-forward layer four times as wide, each added to its input [n, t, d]."""
    width = x.shape[-1]
    x = x + _attention(layers.LayerNormalization(epsilon=1e-6)(x), heads, mask)
    hidden = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(x))
    return x + layers.Dense(width)(hidden)


def _attention(x, heads: int, mask: np.ndarray | None):
    """Multi-head self-attention over tokens [n, t, d]; `mask` [t, t] is added to the scores."""
    tokens, width = x.shape[1:]
    size = width // heads

    def project(order: tuple[int, int, int]):
        return layers.Permute(order)(layers.Reshape((tokens, heads, size))(layers.Dense(width)(x)))

    query, key, value = project((2, 1, 3)), project((2, 3, 1)), project((2, 1, 3))
    scores = ops.matmul(query, key) * size**-0.5
    scores = scores if mask is None else scores + mask
    mixed = layers.Permute((2, 1, 3))(ops.matmul(layers.Softmax()(scores), value))
    return layers.Dense(width)(layers.Reshape((tokens, width))(mixed))
