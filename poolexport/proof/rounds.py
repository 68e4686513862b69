"""Cutting a file, judging its pieces, and cutting it anew where that showed that some values do not belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from poolexport.pipeline._making import SENSITIVITY
from poolexport.pipeline._rounding import SAMPLES
from poolexport.pipeline._standard import unit_of
from poolexport.proof.calls import Recording
from poolexport.proof.graphs import Graph
from poolexport.proof.pairing import Pairs, pair
from poolexport.proof.running import Runner
from poolexport.proof.segments import Answers, ExcuseWalk, Segment, SegmentWalk, Walked, consumers, segments
from poolexport.proof.shadow import by_lot, moved
from poolexport.tolerance import Judgement, judge

#: How often the cuts are chosen anew, after what the last ones showed.
ROUNDS = 6


@dataclass(frozen=True)
class Round:
    """One choice of cuts, and what it showed."""

    pairs: Pairs
    parts: Sequence[Segment]
    walked: Walked

    @property
    def doubtful(self) -> set[tuple[str, int]]:
        """Pairs that may not belong together: given the value of the model, something that takes it is wrong, too."""
        takers, wrong = consumers(self.parts), self.walked.wrong.keys()
        return {
            (name, self.pairs.events[name])
            for name in wrong - self.pairs.sure
            if not takers.get(name) or not wrong.isdisjoint(takers[name])
        }

    @property
    def culprits(self) -> list[Segment]:
        """The pieces that are wrong beyond doubt; where all are in doubt, the first of them."""
        wrong = [part for part in self.parts if part.target in self.walked.wrong]
        unclear = {name for name, _ in self.doubtful}
        clear = [part for part in wrong if part.target not in unclear and unclear.isdisjoint(part.border)]
        return clear or wrong[:1]


@dataclass(frozen=True)
class Bench:
    """A file and a model on one input, ready to be judged.

    Args:
        model: the original.
        inputs: of both.
        recording: a run of the model.
        graph: the file.
        runner: of the file.
        bounds: ``factor``, ``rtol`` and ``atol``.
        seed: of the ways to round that a piece may be excused by.
        budget: bytes of values to hold at a time.
    """

    model: nn.Module
    inputs: Sequence[Tensor]
    recording: Recording
    graph: Graph
    runner: Runner
    bounds: Mapping[str, float | None]
    seed: int
    budget: int

    def settle(self) -> Round:
        """The round after which there is nothing to gain by other cuts."""
        prints = self.runner.prints(dict(zip(self.graph.inputs, (x.numpy() for x in self.inputs))))
        forbidden: set[tuple[str, int]] = set()
        best = self._round(pair(self.graph, prints, self.recording, forbidden), None)
        for _ in range(ROUNDS - 1):
            if not best.walked.wrong:
                break
            prints |= best.walked.prints
            forbidden |= best.doubtful
            pairs = pair(self.graph, prints, self.recording, forbidden)
            if pairs.events == best.pairs.events:
                break
            latest = self._round(pairs, best)
            if len(latest.walked.wrong) > len(best.walked.wrong):
                break
            best = latest
        return best

    def _round(self, pairs: Pairs, before: Round | None) -> Round:
        """Judge the pieces that there are now; those that there were before, between the same values, keep theirs."""
        parts = segments(self.graph, self.recording, pairs)
        known = set(before.parts) if before is not None else set()
        todo = [part for part in parts if part not in known]
        walk = SegmentWalk(self.model, self.graph, self.runner, parts, todo, self._judged, self.budget)
        walked = walk.judged(self.inputs)
        self._excuse([part for part in todo if _is_arguable(walked.wrong.get(part.target))], walked)
        if before is not None:
            kept = [part.target for part in parts if part in known]
            walked.judged.update((name, before.walked.judged[name]) for name in kept)
            walked.wrong.update((name, before.walked.wrong[name]) for name in kept if name in before.walked.wrong)
        return Round(pairs, parts, walked)

    def _judged(
        self, answers: Answers, moved: np.ndarray | None = None, others: Sequence[np.ndarray] = ()
    ) -> Judgement:
        if isinstance(answers.result, str):
            return Judgement(False, float("inf"), 0.0, 0.0, 0.0, answers.result)
        return judge(
            answers.result,
            answers.peer,
            answers.truth,
            moved=moved,
            others=others,
            sensitivity=SENSITIVITY,
            **self.bounds,  # type: ignore[arg-type]
        )

    def _excuse(self, suspects: Sequence[Segment], walked: Walked) -> None:
        """Acquit pieces whose error torch might have made as well, had it rounded otherwise."""
        if not suspects:
            return
        unit = unit_of(self.inputs)
        shadows = [moved(unit, self.seed), *(by_lot(self.seed + number) for number in range(SAMPLES))]
        walk = ExcuseWalk(self.model, self.recording, suspects, shadows)
        walk.walk(self.inputs)
        for part in suspects:
            shaken, *others = walk.found[part.target]
            judgement = self._judged(walked.wrong[part.target], shaken, others)
            walked.judged[part.target] = judgement
            if judgement.passed:
                del walked.wrong[part.target]


def _is_arguable(answers: Answers | None) -> bool:
    """Whether it is a matter of numbers that an answer is wrong."""
    if answers is None or isinstance(answers.result, str):
        return False
    return answers.result.shape == answers.peer.shape and answers.result.dtype == answers.peer.dtype
