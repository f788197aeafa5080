"""From a Keras model to the bytes of a .tflite file with fixed shapes and batch 1."""

import tempfile
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from keras import Model


def to_tflite(model: Model, samples: Iterable[np.ndarray] | None = None) -> bytes:
    """Convert `model`, fixing its batch to 1; BatchNorm folds into the linear layer before it.

    With `samples` (arrays of shape [1, ...], as the model takes them) the result is fully quantised to int8,
    weights per channel, ranges calibrated on the samples, input and output included (token ids stay int32).
    """
    signature = [tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype, tensor.name) for tensor in model.inputs]
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, input_signature=signature, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if samples is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([sample] for sample in samples)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.int8
            converter.inference_output_type = tf.int8
        return converter.convert()
