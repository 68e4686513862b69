"""One file and one model, compared on one input after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from poolexport.pipeline._making import SENSITIVITY, judged
from poolexport.pipeline._opened import Opened
from poolexport.pipeline._standard import Standard
from poolexport.pipeline._state import random_states_kept
from poolexport.pipeline.verify import require_same_inputs, rule_of
from poolexport.runtime import Source, plain_session
from poolexport.tolerance import FACTOR, Judgement, judge


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
        self.session = plain_session(source)
        self.ports = self.session.get_inputs()
        self._opened = Opened(self.session)
        require_same_inputs(self.ports, example)
        self._standard = Standard(model, example, seed, sharing=False)
        self._rule = partial(judge, sensitivity=SENSITIVITY, factor=factor, rtol=rtol, atol=atol)

    def __call__(self, inputs: Sequence[Tensor]) -> Compared:
        """Compare on one input.

        Raises:
            InputError: the model refuses it.
        """
        with random_states_kept(self._standard.seed):
            asked = self._standard.exactly(tuple(inputs))
            answers, judgements = judged(self._opened, asked, doubt=True, drawn=(), rule=self._rule)
            truths = tuple(asked.truths)
        return Compared(answers if isinstance(answers, str) else tuple(answers), truths, judgements)
