"""MiniVGG, a short VGG (Simonyan and Zisserman, 2015, arXiv:1409.1556), as the ShadowNet authors use it."""

from keras import Model, layers


def minivgg() -> Model:
    """[1, 64, 64, 3] to 1,000 class probabilities.

    The layout of the ShadowNet artifact: 3x3 convolutions of 32 | 64 | 128, 128, 128 filters, a 2x2 max pool
    after each group, a dense layer of 512. As there, BatchNorm comes after ReLU, so it cannot fold into the
    layer before it. Dropout, absent at inference, is left out.
    """
    image = layers.Input((64, 64, 3), name="image")
    x = image
    for group in ((32,), (64,), (128, 128, 128)):
        for filters in group:
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.BatchNormalization()(layers.Dense(512, activation="relu")(layers.Flatten()(x)))
    return Model(image, layers.Dense(1000, activation="softmax")(x), name="minivgg")
