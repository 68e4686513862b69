"""What the model answers, as the standard: in its own precision, in float64, and where it rounds otherwise.

The last two of these take long, and can only widen a bound. They are computed when a check asks for them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from poolexport.errors import InputError
from poolexport.pipeline._rounding import rounded_otherwise
from poolexport.pipeline._run import copy_of, run
from poolexport.pipeline._state import tensors_of


class Standard:
    """The original model, asked for the right answers.

    Args:
        model: the original; a copy of it takes the wear.
        example: one input per input of the model.
        seed: of everything that is drawn.
        sharing: the copy may have the model's own weights.
    """

    def __init__(self, model: nn.Module, example: Sequence[Tensor], seed: int, *, sharing: bool) -> None:
        # the model may count its calls in places that no state_dict knows
        self.model = copy_of(model, sharing=sharing)
        self.example = tuple(example)
        self.seed = seed

    @cached_property
    def precise(self) -> nn.Module | None:
        """The model in float64, or None where it cannot run so."""
        return _in_float64(self.model, self.example)

    @property
    def truth(self) -> str:
        """The type in which the truth is computed."""
        return "float64" if self.precise else "float32"

    @cached_property
    def shaken(self) -> nn.Module:
        """The float64 model with every weight moved by one unit of rounding."""
        assert self.precise is not None
        return _shaken(self.precise, self.example, self.seed)

    def asked(self, inputs: tuple[Tensor, ...]) -> Asked:
        """The answers to these inputs.

        Raises:
            InputError: the model refuses them.
        """
        taken, peers = accepted(partial(_answers, self.model), inputs, self.example)
        return Asked(self, taken, peers)

    def exactly(self, inputs: tuple[Tensor, ...]) -> Asked:
        """The answers to these inputs, and no others in their place where the model refuses them.

        Raises:
            InputError: it does.
        """
        return Asked(self, inputs, [t.numpy() for t in tensors_of(run(self.model, inputs))])


class Asked:
    """The model's answers to some inputs.

    Args:
        standard: the model.
        inputs: that it took.
        peers: what it answers in its own precision.
    """

    def __init__(self, standard: Standard, inputs: tuple[Tensor, ...], peers: list[np.ndarray]) -> None:
        self._standard = standard
        self.inputs = inputs
        self.peers = peers

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(x.shape) for x in self.inputs)

    @cached_property
    def truths(self) -> list[np.ndarray]:
        """What it answers in float64; in its own precision where it cannot."""
        precise = self._standard.precise
        return _answers(precise, _double(self.inputs)) if precise else self.peers

    @cached_property
    def moved(self) -> list[np.ndarray] | None:
        """What it answers in float64 where every input and weight is rounded differently; None where it cannot."""
        if self._standard.precise is None:
            return None
        return _answers(self._standard.shaken, rounded_anew(self.inputs, self._standard.seed))

    @cached_property
    def others(self) -> list[list[np.ndarray]]:
        """What it might answer in its own precision, rounding every step another way."""
        return rounded_otherwise(self._standard.model, self.inputs, self._standard.seed)


def accepted(
    answers: Callable[[Sequence[Tensor]], list[np.ndarray]], inputs: tuple[Tensor, ...], example: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], list[np.ndarray]]:
    """The inputs and the answers to them; of drawn values that are refused, only those of the first input are kept.

    A model may take no other values for boxes, say, or for lengths of sequences.
    """
    try:
        return inputs, answers(inputs)
    except InputError:
        if len(inputs) == 1:
            raise
    inputs = (inputs[0], *(_repeated(x, drawn.shape) for x, drawn in zip(example[1:], inputs[1:])))
    return inputs, answers(inputs)


def _repeated(x: Tensor, shape: Sequence[int]) -> Tensor:
    """``x`` over and over again along every axis, or only its beginning, up to a shape."""
    for axis, n in enumerate(shape):
        x = x.index_select(axis, torch.arange(n) % max(1, x.shape[axis]))
    return x


def _answers(model: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    return [t.numpy() for t in tensors_of(run(model, inputs))]


def _shaken(precise: nn.Module, example: Sequence[Tensor], seed: int) -> nn.Module:
    """The float64 model with every weight moved by one rounding unit of the example's type, up or down."""
    shaken = copy.deepcopy(precise)
    with torch.no_grad():
        for position, weight in enumerate([*shaken.parameters(), *shaken.buffers()]):
            if weight.is_floating_point():
                weight.mul_(shake(weight, unit_of(example), seed + position))
    return shaken


def rounded_anew(inputs: Sequence[Tensor], seed: int) -> tuple[Tensor, ...]:
    """Inputs in float64 with every value moved by one rounding unit, up or down.

    Whole numbers after the first input stay: they may be exact, as the number of the map that a box is on.
    """
    unit = unit_of(inputs)
    moved = [x.double() * shake(x, unit, seed + k) if x.is_floating_point() else x for k, x in enumerate(inputs)]
    for k, x in enumerate(inputs):
        if k and x.is_floating_point():
            moved[k] = torch.where(x == x.round(), x.double(), moved[k])
    return tuple(moved)


def shake(like: Tensor, unit: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.empty(like.shape, dtype=torch.float64).random_(0, 2, generator=generator)
    return signs.mul_(2 * unit).add_(1 - unit)


def unit_of(inputs: Sequence[Tensor]) -> float:
    """Rounding unit of the inputs' floating type; float32's where there is none."""
    return next((torch.finfo(x.dtype).eps for x in inputs if x.is_floating_point()), torch.finfo(torch.float32).eps)


def _in_float64(model: nn.Module, example: Sequence[Tensor]) -> nn.Module | None:
    """The model in float64, or None where it cannot run so."""
    try:
        # Each weight is copied once, into its new type.
        weights = {id(p): nn.Parameter(p.detach().double(), False) for p in model.parameters() if p.is_floating_point()}
        precise = copy.deepcopy(model, weights).double()
        run(precise, _double(example))
    except Exception:
        return None
    return precise


def _double(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)
