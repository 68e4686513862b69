"""The ways in which onnxruntime may run one file: how far it optimises, on how many threads, and in which form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnxruntime as ort

from poolexport.runtime.functions import Source
from poolexport.runtime.opening import plain_session

Level = Literal["all", "extended", "basic", "none"]
LEVELS: dict[Level, ort.GraphOptimizationLevel] = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


@dataclass(frozen=True)
class Variant:
    """A way to run a file.

    Args:
        level: how far onnxruntime optimises the graph.
        threads: of one operator; None for onnxruntime's own choice.
    """

    level: Level = "all"
    threads: int | None = None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads > 1)}"
        return f"optimised: {self.level}{threads}"

    def open(self, source: Source) -> ort.InferenceSession:
        """A session that runs the file so.

        Raises:
            InputError: onnxruntime cannot load it.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = LEVELS[self.level]
        return plain_session(source, threads=self.threads, options=options)


#: What every verification by command line tries: each level of optimisation, on one thread and on two.
VARIANTS: Sequence[Variant] = tuple(Variant(level, threads) for level in LEVELS for threads in (1, 2))
