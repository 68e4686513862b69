"""What a verification is going to try, in which order: what is most telling comes first, for the time may be over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, replace

import onnxruntime as ort
from torch import Tensor

from poolexport import stress
from poolexport.pipeline._trials import Given, Port, Trial, dynamic, trials
from poolexport.runtime import Form, Variant, Way

#: Values that are tried on further ways of running the file, beside its own.
AGAIN = ("example", "ties", "spike")
#: Values at the traced shapes that are tried however little time there is.
ALWAYS = ("example", "normal")


@dataclass(frozen=True)
class Step:
    """One check to make.

    Args:
        trial: the input.
        way: of running the file; None for onnxruntime's own.
        always: whether it is made when the time is over, too.
    """

    trial: Trial | Given
    way: Way | None = None
    always: bool = False

    @property
    def called(self) -> str:
        """The way of running the file, in words; empty for onnxruntime's own."""
        return "" if self.way is None else str(self.way)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """Of the inputs; None where nobody has looked at them yet."""
        return self.trial.shapes if isinstance(self.trial, Trial) else None

    @property
    def facts(self) -> tuple[object, ...]:
        """What is tried, as data."""
        if isinstance(self.trial, Given):
            return (self.trial.values, self.trial.digest, self.called)
        return (*astuple(self.trial), self.called)


def plan(
    ports: Sequence[ort.NodeArg | Port],
    example: Sequence[Tensor],
    seed: int,
    *,
    extremes: bool,
    data: Sequence[Given],
    ways: Sequence[Way],
) -> list[Step]:
    """Every check, the most telling ones first: those of the file as it is, then way by way those of a few inputs."""
    drawn = list(trials(ports, example, seed, extremes=extremes))
    few = _few(drawn)
    lengths = [(position, axis) for position, port in enumerate(ports) for axis, _ in dynamic(port)]

    def rank(trial: Trial | Given) -> int:
        if isinstance(trial, Given):
            return 3
        moved = sum(trial.shapes[p][axis] != example[p].shape[axis] for p, axis in lengths)
        if moved:
            return 1 if moved == len(lengths) else 4
        return 0 if trial.values in ALWAYS else 5 if trial.values in stress.EXTREMES else 2

    both: list[Trial | Given] = [*drawn, *data]
    own = sorted(both, key=rank)
    steps = [Step(trial, always=rank(trial) == 0) for trial in own]
    return steps + [Step(trial, way) for way in ways for trial in own if trial in few]


def distinct(ways: Sequence[Way], forms: Collection[Form]) -> list[Way]:
    """The ways that differ: a form that is none of its own is the file as it is."""
    return list(
        dict.fromkeys(
            replace(way, form="function") if isinstance(way, Variant) and way.form not in forms else way for way in ways
        )
    )


def _few(drawn: Sequence[Trial]) -> list[Trial]:
    """What is tried on further ways: the example, ties, a spike, and the last other size."""
    traced = [trial for trial in drawn if trial.shapes == drawn[0].shapes and trial.values in AGAIN]
    return traced + [trial for trial in drawn[-1:] if trial.shapes != drawn[0].shapes]
