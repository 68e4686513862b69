"""Makes one check after the other: asks the standard and the file, and judges the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import repeat
from typing import TypeAlias

import numpy as np
from torch import Tensor

from poolexport import stress
from poolexport.errors import InputError
from poolexport.pipeline._file_standard import FileAsked, FileStandard
from poolexport.pipeline._forms import read
from poolexport.pipeline._opened import Opened
from poolexport.pipeline._plan import Step
from poolexport.pipeline._resuming import Outcome, Skipped, Untried
from poolexport.pipeline._standard import Asked, Standard
from poolexport.pipeline._trials import Given, Trial
from poolexport.pipeline._verdict import Check, LeftOut
from poolexport.pipeline.target import faults
from poolexport.runtime import LacksError, Source
from poolexport.runtime.traps import LOADS, Release, spell
from poolexport.tolerance import Judgement, failed

#: An answer may be this many times as far from the truth as the truth itself moves when every input and weight is
#: rounded differently by one unit: heads that subtract, divide or take roots magnify rounding in every runtime.
SENSITIVITY = 4.0
Rule = Callable[..., Judgement]
#: Told of every check as it is made: the inputs, what the file answered or why it did not, and the truth.
Watch = Callable[[Check, Sequence[Tensor], "list[np.ndarray] | str", Sequence[np.ndarray]], None]
Judged: TypeAlias = "tuple[list[np.ndarray] | str, tuple[Judgement, ...]]"


class Making:
    """What it takes to make checks.

    Args:
        source: the file.
        standard: that knows the right answers.
        steps: all that are going to be made.
        judging: judges an answer, as ``judged`` does.
        strict: whether answers to NaN and infinities count.
        watch: told of every check.
    """

    def __init__(
        self,
        source: Source,
        standard: Standard | FileStandard,
        steps: Sequence[Step],
        judging: Callable[..., Judged],
        *,
        strict: bool,
        watch: Watch | None,
    ) -> None:
        self._standard, self._judging, self._strict, self._watch = standard, judging, strict, watch
        self._again_on = {step.trial for step in steps if step.way is not None}
        self._held: dict[Trial | Given, Asked | FileAsked] = {}
        self._known = cache(partial(_known, source))

    def outcome(self, opened: Opened, step: Step, *, doubt: bool) -> Outcome:
        """What a step leads to.

        Args:
            opened: the file, in the way of the step.
            step: the step.
            doubt: whether it is still to be found out that the file is wrong.

        Raises:
            InputError: the inputs cannot be read.
        """
        asked = self._asked(step.trial)
        if isinstance(asked, Skipped):
            return asked
        try:
            results, judgements = self._judging(opened, asked, doubt=doubt)
        except LacksError as error:
            return Untried(str(error))
        if step.way is not None and step.way.release is not None and not _all_passed(judgements):
            judgements = tuple(_with(judgement, self._known(step.way.release)) for judgement in judgements)
        counts = self._strict or step.trial.values not in stress.NOT_NUMBERS
        check = Check(step.trial.values, asked.shapes, judgements, step.called, counts)
        if self._watch is not None:
            self._watch(check, asked.inputs, results, asked.truths)
        return check

    def _asked(self, trial: Trial | Given) -> Asked | FileAsked | Skipped:
        """The right answers, which are kept where further ways of running the file will be asked for them."""
        if trial in self._held:
            return self._held[trial]
        inputs = trial.inputs(self._standard.example)
        try:
            asked = self._standard.asked(inputs)
        except InputError as error:
            return Skipped(str(error))
        except TimeoutError as error:
            # the next input would be waited for as long
            raise InputError(str(error)) from error
        if trial in self._again_on:
            self._held[trial] = asked
        return asked


@dataclass
class Found:
    """What the steps made so far have led to; ``tried`` are the inputs of the checks, one for each."""

    checks: list[Check] = field(default_factory=list)
    tried: list[Trial | Given] = field(default_factory=list)
    skipped: dict[Trial | Given, str] = field(default_factory=dict)
    untried: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def doubt(self) -> bool:
        """A file that is wrong beyond doubt need not be examined so again."""
        return all(check.passed or not check.counts for check in self.checks)

    def add(self, step: Step, outcome: Outcome) -> None:
        """Take note of what a step has led to."""
        if isinstance(outcome, Skipped):
            self.skipped[step.trial] = outcome.reason
        elif isinstance(outcome, Untried):
            self.untried.append(f"{step.way}: {outcome.reason}")
        else:
            self.checks.append(outcome)
            self.tried.append(step.trial)


def _known(source: Source, release: Release) -> str:
    """What a release is known to lack or to get wrong in the file."""
    if release not in LOADS:
        return ""
    try:
        found = faults(read(source), release)
    except Exception:
        # what cannot be read so was judged all the same
        return ""
    return f"known of onnxruntime {spell(release)}: {'; '.join(found)}" if found else ""


def _with(judgement: Judgement, known: str) -> Judgement:
    return replace(judgement, reason=f"{judgement.reason} ({known})") if known and judgement.reason else judgement


def judged(
    opened: Opened,
    asked: Asked | FileAsked,
    *,
    doubt: bool,
    drawn: Collection[str],
    rule: Rule,
) -> Judged:
    """What a run answers, and how it is judged; what may widen a bound is asked for only where that may matter.

    Raises:
        LacksError: the runtime says that it lacks something.
    """
    results = opened.answers(asked.inputs)
    compare = partial(_compare, opened.outputs, results, asked.peers, asked.truths, drawn, rule)
    judgements = compare()
    if not _all_passed(judgements) and asked.moved is not None:
        judgements = compare(moved=asked.moved)
        if doubt and not _all_passed(judgements):
            judgements = compare(moved=asked.moved, others=asked.others)
    return results, judgements


def _all_passed(judgements: Sequence[Judgement]) -> bool:
    return all(judgement.passed for judgement in judgements)


def _compare(
    names: Sequence[str],
    results: Sequence[np.ndarray] | str,
    peers: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    drawn: Collection[str],
    rule: Rule,
    moved: Sequence[np.ndarray] | None = None,
    others: Sequence[Sequence[np.ndarray]] = (),
) -> tuple[Judgement, ...]:
    if isinstance(results, str):
        return (failed(results, "REFUSED"),)
    if len(results) != len(peers):
        reason = f"the file has {len(results)} outputs, the model {len(peers)}"
        return (failed(reason),)
    judged = []
    for k, (name, r, p, t, m) in enumerate(zip(names, results, peers, truths, moved or repeat(None))):
        if name not in drawn:
            also = [other[k] for other in others]
            judged.append(rule(r, p, t, moved=m, others=also))
        elif (r.shape, r.dtype) != (p.shape, p.dtype):
            reason = f"{name}, which is random, is {r.dtype} of shape {r.shape} instead of {p.dtype} of {p.shape}"
            judged.append(failed(reason))
    return tuple(judged)
