"""Input files: arrays, images and sound, brought into the shape and type of a model's inputs."""

from __future__ import annotations

import wave
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadownet.inputs import split_batch
from shadownet.wire.errors import InputError
from shadownet.wire.tensors import DTYPES, TensorSpec

Array = np.ndarray[Any, Any]

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm"}
MAX_PIXELS = 1 << 28
SAMPLE_RATE = 16000


@dataclass(frozen=True)
class Pixels:
    """How pixels 0..255 become real values: (pixel - mean) / std. ``metadata`` is the model's own word on it."""

    mean: float | None = None
    std: float | None = None
    metadata: Any = None

    def choose(self, spec: TensorSpec) -> tuple[float, float, str]:
        """(mean, std, where that comes from) for one input."""
        if self.mean is not None or self.std is not None:
            return self.mean or 0.0, self.std or 1.0, "as given"
        if isinstance(self.metadata, dict) and isinstance(self.metadata.get("mean"), (int, float)):
            return float(self.metadata["mean"]), float(self.metadata["std"]), "from the model's metadata"
        if DTYPES[spec.dtype].itemsize == 1:
            return 0.0, 0.0, "pixels as they are, the type's whole range"
        return 127.5, 127.5, "assumed, since the model has no metadata; set --mean and --std if it learned others"


def load_inputs(paths: list[Path], specs: list[TensorSpec], pixels: Pixels) -> tuple[list[list[Array]], str]:
    """Read files: (samples, each a list of tensors; a line on how images were normalised, or "").

    One ``.npy`` or ``.npz`` with stacked samples, or any number of images or one ``.wav`` for a model with one
    input. Raises ``InputError``.
    """
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes <= IMAGES:
        spec = _single(specs, "images")
        mean, std, origin = pixels.choose(spec)
        used = f"images: {origin}" + (f", mean {mean:g}, std {std:g}" if std else "")
        return [[image(path, spec, mean, std)] for path in paths], used
    if len(paths) != 1:
        raise InputError("give several images, or one .npy, .npz or .wav")
    if suffixes == {".wav"}:
        return [[sound(paths[0], _single(specs, "sound"))]], ""
    if suffixes == {".npy"}:
        return _nonempty(split_batch([_whole(load_array(paths[0]), specs[0])], specs)), ""
    if suffixes == {".npz"}:
        return _nonempty(split_batch(_named(paths[0], specs), specs)), ""
    raise InputError(f"{paths[0]} has an unknown kind", "use .npy, .npz, .wav, or an image such as .png or .jpg")


def _nonempty(samples: list[list[Array]]) -> list[list[Array]]:
    if not samples:
        raise InputError("the input holds no sample")
    return samples


def _single(specs: list[TensorSpec], what: str) -> TensorSpec:
    if len(specs) != 1:
        raise InputError(f"{what} work for models with one input; this one has {len(specs)}", "use an .npz")
    return specs[0]


def load_array(path: Path) -> Array:
    """Read one ``.npy``. Raises ``InputError``."""
    try:
        value = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(value, np.ndarray):
        raise InputError(f"{path} is not a .npy file")
    return value


def _whole(value: Array, spec: TensorSpec) -> Array:
    """A single sample in the model's own shape counts as one of a stack."""
    return value[None] if value.shape == spec.shape and (not value.shape or value.shape[0] != 1) else value


def _named(path: Path, specs: list[TensorSpec]) -> list[Array]:
    """One array per input, by the input's name, else in the file's order."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if all(spec.name in arrays for spec in specs):
        return [arrays[spec.name] for spec in specs]
    if len(arrays) != len(specs):
        raise InputError(f"{path} has {len(arrays)} arrays, the model has {len(specs)} inputs: "
                         + ", ".join(spec.name for spec in specs))  # fmt: skip
    return list(arrays.values())


def image(path: Path, spec: TensorSpec, mean: float, std: float) -> Array:
    """Decode, resize (bilinear) and normalise one image for an NHWC or NCHW input of 1 or 3 channels.

    ``std`` 0 maps pixels 0..255 onto the whole range of an 8-bit type. Raises ``InputError``.
    """
    from PIL import Image

    shape = spec.shape
    nchw = len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)
    if len(shape) != 4 or shape[0] != 1 or shape[1 if nchw else 3] not in (1, 3):
        raise InputError(f"the input {list(shape)} takes no image", "give an .npy instead")
    height, width, channels = (shape[2], shape[3], shape[1]) if nchw else shape[1:]
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{path} is too large")
            small = picture.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}") from None
    values = np.asarray(small, np.float32).reshape(height, width, channels)
    values = (values.transpose(2, 0, 1) if nchw else values)[None]
    dtype = DTYPES[spec.dtype]
    if dtype.kind == "f":
        return ((values - mean) / (std or 1.0)).astype(dtype)
    info = np.iinfo(dtype)
    if std and spec.scale:
        values = (values - mean) / std / spec.scale + spec.zero_point
    elif dtype.itemsize == 1:
        values = values + info.min
    return np.clip(np.rint(values), info.min, info.max).astype(dtype)


def sound(path: Path, spec: TensorSpec) -> Array:
    """Read 16 kHz mono 16-bit sound, cut or padded with silence to the input's length. Raises ``InputError``."""
    try:
        with wave.open(str(path), "rb") as file:
            kind = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            if kind != (SAMPLE_RATE, 1, 2):
                raise InputError(
                    f"{path} is {kind[0]} Hz, {kind[1]} channels, {8 * kind[2]} bits",
                    "convert it to 16 kHz mono, 16 bits",
                )
            data = file.readframes(int(np.prod(spec.shape)))
            samples = np.frombuffer(data, "<i2", len(data) // 2)
    except (OSError, EOFError, wave.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    out = np.zeros(int(np.prod(spec.shape)), np.int16)
    out[: samples.size] = samples
    dtype = DTYPES[spec.dtype]
    if dtype.kind == "f":
        return (out / 32768.0).astype(dtype).reshape(spec.shape)
    if dtype == np.int16:
        return out.reshape(spec.shape)
    raise InputError(f"the input takes {spec.dtype}, no sound", "give an .npy instead")
