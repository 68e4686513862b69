"""Arrays as pictures that a page carries inside itself."""

from __future__ import annotations

import base64
import io
import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from poolexport.report.pictures import Picture
from poolexport_models.extras import require

Floats: TypeAlias = NDArray[np.floating[Any]]
Colours: TypeAlias = Literal["viridis", "gray", "gray_r", "inferno", "RdBu_r"]


def draw(
    values: Floats,
    title: str,
    *,
    colours: Colours = "viridis",
    limits: tuple[float, float] | None = None,
    note: str = "",
) -> Picture:
    """A map of numbers as a picture, one pixel a number.

    Args:
        values: (H, W), or (H, W, 3) for red, green and blue in [0, 1].
        title: what it shows.
        colours: the colour map.
        limits: the values of its first and last colour; the smallest and the largest value by default.
        note: the range of the values by default.

    Example:
        >>> picture = draw(np.array([[0.0, 1.0, 2.0]]), "a ramp")
        >>> picture.width, picture.height, picture.note
        (3, 1, '0.00 to 2.00')
    """
    low, high = limits or (float(values.min()), float(values.max()))
    if values.ndim == 2:
        level = (values - low) / (high - low) if high > low else np.zeros_like(values)
        pixels = require("matplotlib", "drawing pictures").colormaps[colours](np.clip(level, 0, 1))[..., :3]
    else:
        pixels = np.clip(values, 0, 1)
    return Picture(
        uri=f"data:image/png;base64,{base64.b64encode(_png(pixels)).decode()}",
        width=values.shape[1],
        height=values.shape[0],
        title=title,
        note=note or range_of(values),
    )


def difference(a: Floats, b: Floats, title: str) -> Picture:
    """How far two maps are apart, with the largest distance in the note; no picture where they are identical.

    Example:
        >>> difference(np.zeros((2, 2)), np.zeros((2, 2)), "difference").note
        'identical'
        >>> difference(np.zeros((2, 2)), np.full((2, 2), 1e-7), "difference").note
        'at most 1.0e-07'
    """
    distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
    if distance.ndim == 3:
        distance = distance.max(axis=2)
    largest = float(distance.max())
    if largest == 0:
        return Picture("", distance.shape[1], distance.shape[0], title, "identical")
    return draw(distance, title, colours="inferno", limits=(0.0, largest), note=f"at most {largest:.1e}")


def mosaic(maps: Floats, columns: int) -> Floats:
    """The maps of all channels side by side, row by row.

    Args:
        maps: (C, H, W).
        columns: maps per row; missing ones at the end are left at the smallest value.

    Example:
        >>> mosaic(np.arange(3.0).reshape(3, 1, 1), 2)
        array([[0., 1.],
               [2., 0.]])
    """
    count, height, width = maps.shape
    rows = math.ceil(count / columns)
    tiles = np.full((rows * columns, height, width), maps.min(), dtype=maps.dtype)
    tiles[:count] = maps
    return tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def columns_of(count: int) -> int:
    """Columns of a mosaic about twice as wide as high.

    Example:
        >>> columns_of(32), columns_of(1)
        (8, 1)
    """
    return max(1, round(math.sqrt(2 * count))) if count > 1 else 1


def range_of(values: Floats) -> str:
    """The smallest and the largest value.

    Example:
        >>> range_of(np.array([-0.001, 2.0]))
        '0.00 to 2.00'
    """
    return f"{_rounded(values.min())} to {_rounded(values.max())}"


def _rounded(value: float) -> str:
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(float(value), 2) + 0.0:.2f}"


def _png(pixels: Floats) -> bytes:
    file = io.BytesIO()
    image = require("matplotlib.image", "drawing pictures")
    # Without metadata, so that the same numbers always give the same bytes.
    image.imsave(file, (pixels * 255).round().astype(np.uint8), format="png", metadata={"Software": None})
    return file.getvalue()
