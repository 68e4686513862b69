"""The worst case of a verification, kept in bounded memory while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from poolexport.report.data import name_of

if TYPE_CHECKING:
    from torch import Tensor

    from poolexport.pipeline.verify import Check
    from poolexport.tolerance import Judgement

#: Cells of a map that are kept, along either axis.
CELLS = 64
#: Limits of the bins of the histogram, as shares of the bound.
EDGES = np.logspace(-6, 6, 25)


@dataclass(frozen=True)
class Map:
    """A window of a map of numbers.

    Args:
        values: (H, W), at most 64 by 64 cells.
        leading: indices of the map in its array.
        origin: row and column of the window's first cell.
        whole: rows and columns of the whole map.
    """

    values: np.ndarray
    leading: tuple[int, ...]
    origin: tuple[int, int]
    whole: tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One output of one check.

    Args:
        check: the check.
        position: of the output among those compared.
        judgement: how it was judged.
        index: of the value that is farthest off.
        got, wanted: the file's value there and the true one.
        histogram: how many values lie in each bin of ``EDGES``; those beyond either end are in the bins there.
        exact: values without any error.
        strays: values that are no number where one should be, or the reverse.
        given: the first input.
        file, truth: the two answers.
    """

    check: Check
    position: int
    judgement: Judgement
    index: tuple[int, ...]
    got: float
    wanted: float
    histogram: tuple[int, ...]
    exact: int
    strays: int
    given: Map
    file: Map
    truth: Map


class Worst:
    """Watches a verification and keeps the case that is worst: failed before passed, then by error against bound.

    Of cases whose errors are between the same powers of two, the one with most values is kept: it shows more.
    """

    def __init__(self) -> None:
        self.case: Case | None = None
        self._rank: tuple[bool, float, int] = (False, -math.inf, 0)

    def __call__(
        self, check: Check, inputs: Sequence[Tensor], results: list[np.ndarray] | str, truths: Sequence[np.ndarray]
    ) -> None:
        """A check was made."""
        if not check.counts or isinstance(results, str) or len(results) != len(check.judgements):
            return
        for position, (judgement, result, truth) in enumerate(zip(check.judgements, results, truths)):
            rank = (not judgement.passed, _magnitude(judgement.share), result.size)
            if rank > self._rank and result.shape == truth.shape:
                self._rank = rank
                self.case = _case(check, position, judgement, inputs[0].numpy(), result, truth)

    def facts(self) -> dict[str, Any] | None:
        """What a report holds of it; pictures are drawn from ``case``."""
        case = self.case
        if case is None:
            return None
        return {
            "check": name_of(case.check),
            "output": case.position,
            "index": case.index,
            "file": case.got,
            "truth": case.wanted,
            "error": case.judgement.error,
            "bound": case.judgement.bound,
            "histogram": {
                "edges": EDGES,
                "counts": case.histogram,
                "exact": case.exact,
                "strays": case.strays,
            },
        }


def _magnitude(share: float) -> float:
    """The power of two below a share."""
    if share in (0.0, math.inf):
        return math.inf if share else -math.inf
    return float(math.frexp(share)[1])


def _case(
    check: Check, position: int, judgement: Judgement, given: np.ndarray, result: np.ndarray, truth: np.ndarray
) -> Case:
    result, truth = result.astype(np.float64), truth.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.where(result == truth, 0.0, np.abs(result - truth))
    both_nan = np.isnan(result) & np.isnan(truth)
    distance[both_nan] = 0.0
    stray = ~np.isfinite(distance)
    flat = int(stray.argmax() if stray.any() else distance.argmax())
    index = tuple(int(i) for i in np.unravel_index(flat, result.shape))
    moved = distance[~stray & (distance > 0)] / (judgement.bound or judgement.scale or 1.0)
    counts, _ = np.histogram(np.clip(moved, EDGES[0], EDGES[-1]), EDGES)
    return Case(
        check=check,
        position=position,
        judgement=judgement,
        index=index,
        got=float(result[index]),
        wanted=float(truth[index]),
        histogram=tuple(int(count) for count in counts),
        exact=int(np.count_nonzero(distance == 0)),
        strays=int(stray.sum()),
        given=_map(given, _place(index, result.shape, given.shape)),
        file=_map(result, index),
        truth=_map(truth, index),
    )


def _place(index: tuple[int, ...], shape: tuple[int, ...], given: tuple[int, ...]) -> tuple[int, ...]:
    """About where the input is that an answer comes from: the same row of the batch, the same share of the way."""
    place = [length // 2 for length in given]
    for axis in range(len(given)):
        if axis == 1 and len(given) > 2:
            place[axis] = 0
        elif axis == 0 or (len(given) == len(shape) and axis > 1):
            place[axis] = min(given[axis] - 1, index[axis] * given[axis] // max(1, shape[axis])) if shape else 0
    return tuple(max(0, at) for at in place)


def _map(array: np.ndarray, index: tuple[int, ...]) -> Map:
    """The map that holds a value, or the part of it around there."""
    while array.ndim < 2:
        array, index = array[None], (0, *index)
    if not array.size:
        array, index = np.full((1, 1), np.nan), (0, 0)
    leading = index[:-2]
    plane = array[leading].astype(np.float64)
    origin = [max(0, min(at - CELLS // 2, n - CELLS)) for at, n in zip(index[-2:], plane.shape)]
    window = plane[origin[0] : origin[0] + CELLS, origin[1] : origin[1] + CELLS].copy()
    return Map(window, leading, (origin[0], origin[1]), (plane.shape[0], plane.shape[1]))
