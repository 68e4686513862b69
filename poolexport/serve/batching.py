"""Several requests in one run: which belong together, and how their arrays are put together and taken apart.

Only for models whose first axis was proven to be dynamic. A row's answer must not depend on the rows beside it, which
is what the export verified at several batch lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from poolexport.serve.protocol import Array

if TYPE_CHECKING:
    from poolexport.serve.queueing import Run


def take(waiting: deque[Run]) -> list[Run]:
    """The first run that waits, with all later ones that can be made together with it."""
    first = waiting.popleft()
    if not first.model.together or not waiting:
        return [first]
    group, others = [first], []
    rows, elements = first.model.rows - first.rows, first.model.together - first.elements
    while waiting:
        run = waiting.popleft()
        if rows >= run.rows and elements >= run.elements and together(first, run):
            group.append(run)
            rows -= run.rows
            elements -= run.elements
        else:
            others.append(run)
    waiting.extend(others)
    return group


def together(one: Run, other: Run) -> bool:
    """Whether two runs differ in nothing but their rows."""
    return one.model is other.model and all(
        array.shape[1:] == other.feeds[name].shape[1:] for name, array in one.feeds.items()
    )


def rows(feeds: Mapping[str, Array]) -> int:
    """Length of the first axis."""
    shape = next(iter(feeds.values())).shape
    return shape[0] if shape else 1


def merged(group: Sequence[Run]) -> tuple[dict[str, Array], list[str]]:
    """The rows of all runs, one below the other, and the outputs that any of them asks for."""
    feeds = {name: np.concatenate([run.feeds[name] for run in group]) for name in group[0].feeds}
    outputs = dict.fromkeys(name for run in group for name in run.outputs)
    return feeds, list(outputs)


def split(group: Sequence[Run], outputs: Sequence[str], answers: Sequence[Array]) -> list[list[Array]]:
    """What each run asked for, from the answers to all of them."""
    found = dict(zip(outputs, answers))
    result, start = [], 0
    for run in group:
        result.append([found[name][start : start + run.rows] for name in run.outputs])
        start += run.rows
    return result
