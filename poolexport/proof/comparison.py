"""One file and one model, compared on one input after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from poolexport.pipeline._rounding import rounded_otherwise
from poolexport.pipeline._run import copy_of, run
from poolexport.pipeline._state import random_states_kept, tensors_of
from poolexport.pipeline.verify import (
    answers_in_double,
    in_float64,
    judgements_of,
    require_same_inputs,
    rounded_anew,
    rule_of,
    run_file,
    with_shaken_weights,
)
from poolexport.runtime import Source, session
from poolexport.tolerance import FACTOR, Judgement


@dataclass(frozen=True)
class Compared:
    """What both say to one input.

    Args:
        answers: the file's, by output; or why it has none.
        truths: the model's in float64, or in its own type where it cannot run in float64.
        judgements: one per output; one in all where the file has no answers.
    """

    answers: tuple[np.ndarray, ...] | str
    truths: tuple[np.ndarray, ...]
    judgements: tuple[Judgement, ...]

    @property
    def wrong(self) -> bool:
        return not all(judgement.passed for judgement in self.judgements)


class Comparison:
    """Judges the answers of a file as ``verify`` does.

    Args:
        source: a bundle, an .onnx file, or its bytes.
        model: what it was made from, in eval mode; it is not changed.
        example: one input per input of the file.
        factor, rtol, atol: the bound, as in ``verify``.
        seed: of the ways to round that an answer may be excused by.

    Raises:
        InputError: the file and the model do not belong together.
    """

    def __init__(
        self,
        source: Source,
        model: nn.Module,
        example: Sequence[Tensor],
        *,
        factor: float = FACTOR,
        rtol: float | None = None,
        atol: float | None = None,
        seed: int = 0,
    ) -> None:
        rule_of(factor, rtol, atol)
        self.session = session(source)
        self.ports = self.session.get_inputs()
        require_same_inputs(self.ports, example)
        self._original = copy_of(model)
        self._example, self._seed = tuple(example), seed
        self._bounds: dict[str, Any] = {"factor": factor, "rtol": rtol, "atol": atol}

    def __call__(self, inputs: Sequence[Tensor]) -> Compared:
        """Compare on one input.

        Raises:
            InputError: the model refuses it.
        """
        with random_states_kept(self._seed):
            peers = [t.numpy() for t in tensors_of(run(self._original, inputs))]
            precise = self._precise
            truths = answers_in_double(precise, inputs) if precise else peers
            answers = run_file(self.session, self.ports, inputs)
            judgements = judgements_of(self.session, answers, peers, truths, **self._bounds)
            if precise and not all(judgement.passed for judgement in judgements):
                moved = answers_in_double(self._shaken, rounded_anew(inputs, self._seed))
                others = rounded_otherwise(self._original, inputs, self._seed)
                judgements = judgements_of(
                    self.session, answers, peers, truths, moved=moved, others=others, **self._bounds
                )
        found = answers if isinstance(answers, str) else tuple(answers)
        return Compared(found, tuple(truths), judgements)

    @cached_property
    def _precise(self) -> nn.Module | None:
        return in_float64(self._original, self._example)

    @cached_property
    def _shaken(self) -> nn.Module:
        assert self._precise is not None
        return with_shaken_weights(self._precise, self._example, self._seed)
