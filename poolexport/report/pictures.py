"""Maps of numbers as small pictures that a page carries inside itself."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from poolexport.report.worst import Case, Map

#: Colours from the smallest to the largest value: a few points of viridis, and of inferno for differences.
VALUES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
DISTANCES = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
#: The colour of what is no number.
NONE = (255, 0, 200)


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Args:
        uri: the PNG file as a ``data:`` address; empty where there is nothing to draw.
        width, height: in pixels.
        title: what it is, in a word or two.
        note: which values it shows.
    """

    uri: str
    width: int
    height: int
    title: str
    note: str


def pictures(case: Case) -> list[Picture]:
    """The input of the worst case, the file's answer, the true one, and how far the two are apart."""
    answers = np.stack([case.file.values, case.truth.values])
    limits = _limits(answers)
    with np.errstate(invalid="ignore"):
        distance = np.abs(case.file.values - case.truth.values)
    distance[np.isnan(case.file.values) & np.isnan(case.truth.values)] = 0.0
    apart = np.max(distance, initial=0.0, where=np.isfinite(distance))
    return [
        draw(case.given.values, "input", _limits(case.given.values), where(case.given)),
        draw(case.file.values, "the file's answer", limits, where(case.file)),
        draw(case.truth.values, "the true answer", limits, where(case.truth)),
        draw(distance, "difference", (0.0, _limits(distance)[1]), f"at most {apart:.2g}", DISTANCES),
    ]


def draw(
    values: np.ndarray,
    title: str,
    limits: tuple[float, float],
    place: str,
    colours: tuple[tuple[int, int, int], ...] = VALUES,
) -> Picture:
    """One pixel a number; what is no number has a colour of its own."""
    low, high = limits
    finite = np.isfinite(values)
    level = (
        np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1) if high > low else np.zeros(values.shape)
    )
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(level, stops, channel) for channel in np.array(colours, float).T]
    pixels = np.where(finite[..., None], np.stack(channels, -1), NONE).round().astype(np.uint8)
    span = f"{low:.3g} to {high:.3g}" if colours is VALUES else ""
    strays = int(np.count_nonzero(~finite))
    lost = f"{strays} {'is' if strays == 1 else 'are'} no number" if strays else ""
    note = "; ".join(filter(None, (place, span, lost)))
    return Picture(f"data:image/png;base64,{_png(pixels)}", values.shape[1], values.shape[0], title, note)


def where(drawn: Map) -> str:
    """Which part of an array a map is.

    Example:
        >>> where(Map(np.zeros((64, 64)), (0, 2), (10, 0), (224, 64)))
        'map [0, 2], rows 10 to 73 of 224'
    """
    parts = [f"map [{', '.join(map(str, drawn.leading))}]"] if drawn.leading else []
    for word, start, kept, whole in zip(("rows", "columns"), drawn.origin, drawn.values.shape, drawn.whole):
        if kept < whole:
            parts.append(f"{word} {start} to {start + kept - 1} of {whole}")
    return ", ".join(parts)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """What gets the first and the last colour; a few cells far from all others do not count."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    low, high = (float(at) for at in np.percentile(finite, (0.5, 99.5)))
    return (low, high) if high > low else (float(finite.min()), float(finite.max()))


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
