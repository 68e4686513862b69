"""Two layers, one foreign and one of ours: do they answer the same?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poolexport.adoption._entry import Ours
from poolexport.adoption._slots import HOOKS
from poolexport.pipeline._run import copy_of, run
from poolexport.pipeline._state import random_states_kept, tensors_of

#: How far two answers in float64 may differ, over the size of the largest number in them: roundings in another order.
TOLERANCE = 1e-10
#: How large the root of a rounding may be, over the largest number of an answer.
ROUNDING = 1e-3
SEED = 20


@dataclass(frozen=True)
class Proof:
    """What a comparison found.

    Args:
        same: True, False, or None where none could be made.
        words: the comparison, or what kept it from being made, in words.
    """

    same: bool | None
    words: str


def compare(module: nn.Module, ours: Ours) -> Proof:
    """Compare a foreign layer with ours on inputs of several kinds and sizes, and with other weights as well.

    Both are copied, without their hooks; random states are kept.
    """
    try:
        # In one copy, in which a weight that they share is shared.
        theirs, mine = copy.deepcopy((module, ours.layer))
        theirs, mine = (part.cpu().to(ours.dtype).train(ours.training) for part in (theirs, mine))
    except Exception as error:
        return Proof(None, f"it cannot be copied to compare it: {_first_line(error)}")
    for part in (*theirs.modules(), *mine.modules()):
        for name in HOOKS:
            getattr(part, name, {}).clear()
    for part in theirs.modules():
        _convert_plain(part, ours.dtype)
    worst, count, telling = 0.0, 0, False
    rounds = [False, True] if _share_all(theirs, mine) else [False]
    for moved in rounds:
        if moved:
            _move(theirs)
        for kind, x in _inputs(ours):
            inputs = (x, *(ours.companions(x) if ours.companions else ()))
            try:
                wanted = _answer(theirs, ours.call, inputs)
            except Exception as error:
                return Proof(None, f"it could not be run on its own: {_first_line(error)}")
            try:
                found = _answer(mine, ours.call, inputs)
            except Exception as error:
                return Proof(False, f"our layer refuses an input that it takes: {_first_line(error)}")
            if ours.unit_vectors:
                wanted = [_without_roundings(a, b) for a, b in zip(wanted, found)]
            where = f"{kind} values at {'x'.join(map(str, x.shape))}{' with other weights' if moved else ''}"
            fault, error_size = _difference(wanted, found)
            if fault:
                return Proof(False, f"{fault} on {where}")
            worst, count = max(worst, error_size), count + 1
            telling = telling or any(map(_tells, wanted))
    if not telling:
        return Proof(None, "it answers nothing but NaN and infinities")
    kind = f"{str(ours.dtype).removeprefix('torch.')}{' and training mode' if ours.training else ''}"
    return Proof(True, f"same answers in {kind} to {count} inputs, largest relative difference {worst:.1g}")


def compare_models(model: nn.Module, adopted: nn.Module, args: Sequence[Tensor]) -> Proof:
    """Compare a model with its copy in which layers were replaced, in float64 and eval mode, on one input."""
    inputs = [x.double() if x.is_floating_point() else x for x in args]
    with random_states_kept(SEED), _making(torch.float64):
        try:
            theirs, mine = (copy_of(part).cpu().double().eval() for part in (model, adopted))
            wanted, again = (tensors_of(run(theirs, inputs)) for _ in range(2))
        except Exception as error:
            return Proof(None, f"the model could not be run in float64: {_first_line(error)}")
        if _difference(wanted, again)[0]:
            return Proof(None, "the model answers the same input differently")
        if not any(_tells(t) for t in wanted):
            return Proof(None, "the model answers nothing but NaN and infinities")
        try:
            fault, size = _difference(wanted, tensors_of(run(mine, inputs)))
        except Exception as error:
            return Proof(False, _first_line(error))
    return Proof(not fault, fault or f"same answers as a whole, largest relative difference {size:.1g}")


def _inputs(ours: Ours) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(SEED)
    for shape in ours.shapes:
        x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        yield "normal", x.to(ours.dtype)
        yield "positive", x.abs().to(ours.dtype)
        yield "tied", x.round().to(ours.dtype)


def _answer(layer: nn.Module, call: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with random_states_kept(SEED), torch.no_grad(), _making(next((x.dtype for x in inputs), torch.float32)):
        return tensors_of(getattr(layer, call)(*(x.clone() for x in inputs)))


@contextmanager
def _making(dtype: torch.dtype) -> Iterator[None]:
    """Let tensors that a layer makes be of this type, as they would be in a model of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _convert_plain(part: nn.Module, dtype: torch.dtype) -> None:
    """Convert tensors that a module holds as plain attributes, in lists too, where ``to`` does not reach them."""

    def converted(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().cpu().to(dtype)
        return type(value)(map(converted, value)) if type(value) in (list, tuple) else value

    for name, value in list(vars(part).items()):
        if isinstance(value, (Tensor, list, tuple)):
            vars(part)[name] = converted(value)


def _without_roundings(wanted: Tensor, found: Tensor) -> Tensor:
    """A vector of length 1 without small cells where the other one is exactly 0."""
    if wanted.shape != found.shape:
        return wanted
    small = wanted.abs() <= ROUNDING * wanted.abs().amax(1, keepdim=True)
    return F.normalize(torch.where((found == 0) & small, 0.0, wanted), dim=1)


def _difference(wanted: list[Tensor], found: list[Tensor]) -> tuple[str, float]:
    """What is wrong, or nothing, and the largest relative difference."""
    shapes = [[tuple(t.shape) for t in side] for side in (wanted, found)]
    if shapes[0] != shapes[1] or not wanted:
        return f"it answers shapes {shapes[0]} and our layer {shapes[1]}", 0.0
    worst = 0.0
    for a, b in zip(wanted, found):
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return f"{int((a != b).sum())} of {a.numel()} whole numbers differ", 0.0
            continue
        finite = a.isfinite()
        odd = [t[~finite].nan_to_num(nan=0.0) for t in (a, b)]
        if not torch.equal(finite, b.isfinite()) or not torch.equal(*odd):
            return "NaN or infinities differ", 0.0
        scale = float(a[finite].abs().max()) if finite.any() else 1.0
        error = float((a[finite] - b[finite]).abs().max()) / max(scale, 1e-30) if finite.any() else 0.0
        if not error <= TOLERANCE:
            return f"answers differ by {error:.2g} of their size", error
        worst = max(worst, error)
    return "", worst


def _tells(answer: Tensor) -> bool:
    """Whether there is a number to compare."""
    return bool(answer.isfinite().any())


def _share_all(theirs: nn.Module, mine: nn.Module) -> bool:
    """Whether the two hold the same parameters, and any."""
    ids = [{id(p) for p in part.parameters()} for part in (theirs, mine)]
    return bool(ids[0]) and ids[0] == ids[1]


def _move(layer: nn.Module) -> None:
    """Move every weight by up to a tenth; a zero becomes a small number of either sign."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in layer.parameters():
            step = 0.1 * (2 * torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 1).to(weight.dtype)
            weight.copy_(torch.where(weight == 0, step, weight * (1 + step)))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].partition('. ')[0]}" if lines else type(error).__name__


def agrees(module: nn.Module, ours: Ours) -> bool:
    """Whether a comparison can be made and finds no difference."""
    return compare(module, ours).same is True
