"""The steps between neighbouring cuts, judged one by one while the model runs.

Every step of the file gets torch's own values, those of the model's type: what comes out is compared with what torch
made of the very same numbers, and with what a float64 run makes of them. No error of an earlier step is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from poolexport.proof.calls import Calls, Recording
from poolexport.proof.graphs import Graph
from poolexport.proof.pairing import Pairs
from poolexport.proof.prints import Print
from poolexport.proof.running import Runner
from poolexport.proof.shadow import Shadow
from poolexport.tolerance import Judgement


@dataclass(frozen=True)
class Segment:
    """What lies between neighbouring cuts.

    Args:
        target: the value of the file that it makes.
        event: the event of the model that this value should be.
        nodes: numbers of its nodes in the file.
        given: the values that it takes, cuts and inputs of the file, with the events that cuts should be.
        events: numbers of the model's events that it stands for.
    """

    target: str
    event: int
    nodes: tuple[int, ...]
    given: tuple[tuple[str, int | None], ...]
    events: tuple[int, ...]

    @property
    def border(self) -> frozenset[str]:
        """Names of the values that it takes."""
        return frozenset(name for name, _ in self.given)


@dataclass(frozen=True)
class Answers:
    """What came out of a segment: the file's answer or why there is none, torch's in the same type, and the truth."""

    result: np.ndarray | str
    peer: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Walked:
    """What a walk found out.

    Args:
        wrong: the answers of the segments that were judged to be wrong, by target.
        judged: every judgement, by target.
        prints: of values inside of the segments, which now come from true values.
    """

    wrong: dict[str, Answers] = field(default_factory=dict)
    judged: dict[str, Judgement] = field(default_factory=dict)
    prints: dict[str, Print] = field(default_factory=dict)


def segments(graph: Graph, recording: Recording, pairs: Pairs) -> list[Segment]:
    """All segments between the cuts of a file, in the order in which the model computes them."""
    cuts, named = pairs.cuts, pairs.events.keys()
    found = []
    for target, event in sorted(pairs.events.items(), key=lambda each: each[1]):
        if target in graph.maker:
            nodes, border = graph.between([target], named)
            inside, _ = recording.between(event, cuts)
            given = tuple((name, pairs.events.get(name)) for name in sorted(border))
            found.append(Segment(target, event, tuple(nodes), given, tuple(inside)))
    return found


class SegmentWalk(Calls):
    """Runs the model and judges segments as soon as the values for some of them have come together.

    Args:
        model: the original.
        graph: the file.
        runner: of the file.
        parts: all segments, in order.
        todo: those to judge.
        judge: judges the answers of a segment.
        budget: bytes of values to hold at most, though never less than one segment needs; the answers of segments that
            are wrong are kept besides.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        runner: Runner,
        parts: Sequence[Segment],
        todo: Sequence[Segment],
        judge: Callable[[Answers], Judgement],
        budget: int,
    ) -> None:
        super().__init__(model)
        self.walked = Walked()
        self._graph, self._runner, self._judge, self._budget = graph, runner, judge, budget
        self._parts = {part.target: part for part in todo}
        self._cuts = frozenset(part.target for part in parts)
        self._targets: dict[int, list[str]] = {}
        for part in parts:
            self._targets.setdefault(part.event, []).append(part.target)
        self._needed = _uses(todo)
        self._shadow = Shadow()
        self._peers: dict[str, np.ndarray] = {}
        self._truths: dict[str, np.ndarray] = {}

    def judged(self, inputs: Sequence[Tensor]) -> Walked:
        """Judge the segments."""
        self._peers |= {name: x.numpy() for name, x in zip(self._graph.inputs, inputs)}
        self.walk(inputs)
        self._flush()
        return self.walked

    def before(self, first: int, func: Any, args: Any, kwargs: Any) -> None:
        self._shadow.before(func, args, kwargs)

    def after(self, first: int, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        self._shadow.after(made)
        for position, x in enumerate(made):
            names = self._targets.get(first + position)
            if names is None:
                continue
            asked = [name for name in names if name in self._parts]
            if asked:
                self._truths |= dict.fromkeys(asked, self._shadow.value(x).detach().clone().numpy())
            self._shadow.restart(x)
            if asked or any(self._needed.get(name) for name in names):
                self._peers |= dict.fromkeys(names, x.detach().clone().numpy())
        if self._held() > self._budget:
            self._flush()

    def _held(self) -> int:
        return sum(x.nbytes for name, x in self._peers.items() if name not in self._graph.inputs) + sum(
            x.nbytes for x in self._truths.values()
        )

    def _flush(self) -> None:
        """Judge what can be judged, and let go of what nobody will need."""
        ready = [name for name in self._truths if self._parts[name].border <= self._peers.keys()]
        if not ready:
            return
        inner = {name: self._inner(self._parts[name]) for name in ready}
        needed = {each for name in ready for each in self._parts[name].border}
        given = {name: self._peers[name] for name in needed}
        results, prints = self._runner.segments(ready, inner, self._cuts, given)
        self.walked.prints.update(prints)
        for name in ready:
            answers = Answers(results[name], self._peers[name], self._truths.pop(name))
            judgement = self._judge(answers)
            self.walked.judged[name] = judgement
            if not judgement.passed:
                self.walked.wrong[name] = answers
            for each in self._parts[name].border:
                self._needed[each] -= 1
        for name in [name for name in self._peers if not self._needed.get(name) and name not in self._truths]:
            del self._peers[name]

    def _inner(self, part: Segment) -> list[str]:
        values = set(self._graph.values)
        made = [name for number in part.nodes for name in self._graph.nodes[number].outputs]
        return [name for name in made if name in values and name not in self._cuts]


class ExcuseWalk(Calls):
    """Runs the model and finds how else the answers of some segments might have been rounded.

    Args:
        model: the original.
        recording: an earlier run of it.
        parts: the segments in question.
        shadows: other ways to compute them, each of which gives one answer for every segment.
    """

    def __init__(
        self, model: nn.Module, recording: Recording, parts: Sequence[Segment], shadows: Sequence[Shadow]
    ) -> None:
        super().__init__(model)
        self.found: dict[str, list[np.ndarray]] = {}
        self._shadows = shadows
        self._inside = {recording.events[event].first for part in parts for event in part.events}
        self._targets: dict[int, list[str]] = {}
        for part in parts:
            self._targets.setdefault(part.event, []).append(part.target)

    def before(self, first: int, func: Any, args: Any, kwargs: Any) -> None:
        if first in self._inside:
            for shadow in self._shadows:
                shadow.before(func, args, kwargs)

    def after(self, first: int, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        if first in self._inside:
            for shadow in self._shadows:
                shadow.after(made)
        for position, x in enumerate(made):
            names = self._targets.get(first + position, ())
            if names:
                answers = [shadow.value(x).detach().clone().numpy() for shadow in self._shadows]
                self.found |= dict.fromkeys(names, answers)
                for shadow in self._shadows:
                    shadow.restart(x)


def _uses(parts: Sequence[Segment]) -> dict[str, int]:
    uses: dict[str, int] = {}
    for part in parts:
        for name in part.border:
            uses[name] = uses.get(name, 0) + 1
    return uses


def consumers(parts: Sequence[Segment]) -> Mapping[str, list[str]]:
    """The targets of the segments that take a value, by its name."""
    found: dict[str, list[str]] = {}
    for part in parts:
        for name in part.border:
            found.setdefault(name, []).append(part.target)
    return found
