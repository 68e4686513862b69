"""What a file holds, as the model takes it: with a batch axis, and in its data type."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from poolexport.errors import InputError, MissingExtraError
from poolexport.offline.items import Item

DTYPES: Mapping[str, type] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Picture:
    """How pixels become numbers: ``(pixel * scale - mean) / std``, channel by channel.

    Args:
        size: height and width to resize to (bilinear); None keeps those of the image.
        scale: of a pixel, which is 0 to 255 before.
        mean, std: one number, or one for every channel.
    """

    size: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def read(item: Item, ports: Sequence[ort.NodeArg], picture: Picture) -> Feed:
    """The inputs in a file.

    An array of one axis less than the input is one row. An ``.npz`` holds an array under the name of every input, or
    one array for the only input.

    Raises:
        InputError: it cannot be read, or is not what the model takes.
    """
    try:
        if item.is_image:
            return _image(item, ports, picture)
        if item.path.suffix.lower() == ".npz":
            with np.load(item.source, allow_pickle=False) as arrays:
                held = {name: arrays[name] for name in arrays.files}
        else:
            held = {"": np.load(item.source, allow_pickle=False, mmap_mode="r" if item.content is None else None)}
    except InputError:
        raise
    except Exception as error:  # archives and image codecs raise errors of their own
        raise InputError(f"{item.path} cannot be read: {_reason(error)}") from error
    if len(ports) == 1 and len(held) == 1:
        held = {ports[0].name: next(iter(held.values()))}
    missing = [port.name for port in ports if port.name not in held]
    if missing:
        takes, holds = ", ".join(map(repr, missing)), ", ".join(map(repr, held)) or "nothing"
        raise InputError(f"{item.path} holds {holds}, but the model takes {takes}")
    return {port.name: _fitted(held[port.name], port, os.fspath(item.path)) for port in ports}


def _fitted(x: np.ndarray, port: ort.NodeArg, where: str) -> np.ndarray:
    rank = len(port.shape)
    if x.ndim == rank - 1:
        x = x[None]
    fixed = [(axis, n) for axis, n in enumerate(port.shape) if isinstance(n, int)]
    if x.ndim != rank or any(x.shape[axis] != n for axis, n in fixed):
        raise InputError(f"{where}: input {port.name!r} is {shape(port.shape)}, found {shape(x.shape)}")
    dtype = DTYPES.get(port.type)
    if dtype is None:
        raise InputError(f"input {port.name!r} is a {port.type}, which cannot be read from a file")
    if x.dtype != dtype and not np.can_cast(x.dtype, dtype, "same_kind"):
        raise InputError(f"{where}: input {port.name!r} is {np.dtype(dtype)}, found {x.dtype}")
    return x


def _image(item: Item, ports: Sequence[ort.NodeArg], picture: Picture) -> Feed:
    if len(ports) != 1 or len(ports[0].shape) != 4 or ports[0].shape[1] not in (1, 3, 4):
        shapes = "; ".join(f"{port.name!r}: {shape(port.shape)}" for port in ports)
        raise InputError(f"images go to a model of one input of N x 1, 3 or 4 x H x W, but this one takes {shapes}")
    [port] = ports
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("pillow", "run", "reading images") from error
    channels = port.shape[1]
    try:
        opening = Image.open(item.source)
    except UnidentifiedImageError as error:
        raise InputError(f"{item.path} cannot be read: it is no image of a known kind") from error
    with opening as opened:
        image = ImageOps.exif_transpose(opened).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
        if picture.size is not None:
            height, width = picture.size
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
    for name, values in (("mean", picture.mean), ("std", picture.std)):
        if len(values) not in (1, channels):
            raise InputError(f"{name} has {len(values)} numbers for an image of {channels} channels")
    dtype = np.dtype(DTYPES.get(port.type, np.float32))
    scaled = pixels
    if np.issubdtype(dtype, np.floating):
        scaled = (pixels * picture.scale - np.asarray(picture.mean)) / np.asarray(picture.std)
    x = np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], dtype=dtype)
    return {port.name: _fitted(x, port, os.fspath(item.path))}


def shape(lengths: Sequence[int | str | None]) -> str:
    """Lengths with an x between them."""
    return "x".join("?" if n is None else str(n) for n in lengths) or "scalar"


def _reason(error: BaseException) -> str:
    if "pickled" in str(error):
        return "it holds no plain array"
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
