"""The ways in which onnxruntime may run one file: how far it optimises, on how many threads, and in which form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnxruntime as ort

from poolexport.runtime.functions import Source
from poolexport.runtime.opening import session
from poolexport.runtime.ways import Form, Way

Level = Literal["all", "extended", "basic", "none"]
LEVELS: dict[Level, ort.GraphOptimizationLevel] = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


@dataclass(frozen=True)
class Variant:
    """A way to run a file with the onnxruntime that is installed.

    Args:
        level: how far onnxruntime optimises the graph.
        threads: of one operator; None for onnxruntime's own choice.
        form: "function", which is the file as it is, "inlined", with its functions written out, or "native", with
            kernels in place of them.
    """

    runtime: ClassVar[str] = "onnxruntime"
    release: ClassVar[None] = None

    level: Level = "all"
    threads: int | None = None
    form: Form = "function"

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads > 1)}"
        form = "" if self.form == "function" else f", {self.form}"
        return f"optimised: {self.level}{threads}{form}"

    def open(self, source: Source) -> ort.InferenceSession:
        """A session that runs the file so, in the form that it has.

        Raises:
            InputError: onnxruntime cannot load it.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = LEVELS[self.level]
        return session(source, threads=self.threads, options=options, kernels=self.form == "native")

    @contextmanager
    def running(self, source: Source) -> Iterator[ort.InferenceSession]:
        """The same, as a way of running a file."""
        yield self.open(source)


#: What every verification by command line tries: each level of optimisation, on one thread and on two, with the
#: functions of the file written out, and with native kernels in place of them.
VARIANTS: Sequence[Way] = (
    *(Variant(level, threads) for level in LEVELS for threads in (1, 2)),
    Variant("all", 1, "inlined"),
    Variant("none", 1, "inlined"),
    Variant("all", 1, "native"),
    Variant("all", 2, "native"),
)
