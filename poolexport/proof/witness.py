"""The smallest and simplest input that a file answers wrongly.

Lengths come first, because everything after them is faster on a smaller input; then values: all equal, whole, few.
Zeros among the cells are found by halving (Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input,
IEEE Transactions on Software Engineering 28, 2002). Every step is tried on the file, and kept where it still fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from poolexport.bundle import model_path
from poolexport.errors import InputError
from poolexport.proof.comparison import Compared, Comparison
from poolexport.proof.script import write
from poolexport.runtime import Source
from poolexport.tolerance import FACTOR

#: Inputs tried at most.
TRIES = 200


@dataclass(frozen=True)
class Witness:
    """An input that a file answers wrongly.

    Args:
        names: of the inputs of the file.
        inputs: their values.
        outputs: names of the outputs of the file.
        compared: what the file and the model answer, and how that was judged.
        tries: inputs that were tried.
    """

    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    compared: Compared
    tries: int

    @property
    def reason(self) -> str:
        """Why the answer is wrong."""
        return "; ".join(judgement.reason for judgement in self.compared.judgements if judgement.reason)

    def save(self, target: str | os.PathLike[str], model: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Write a ``.npz`` of inputs, answers, truths and bounds, and a script beside it that shows the failure.

        The script needs numpy and onnxruntime only, and exits with 1 as long as the file is wrong.

        Args:
            target: the ``.npz``.
            model: the bundle or .onnx file that is wrong.
            force: replace what is there.

        Returns:
            The files written.

        Raises:
            OutputError: they cannot be written, or are there already.
        """
        arrays = {f"input:{name}": x.numpy() for name, x in zip(self.names, self.inputs)}
        if not isinstance(self.compared.answers, str):
            arrays |= {f"answer:{name}": x for name, x in zip(self.outputs, self.compared.answers)}
        arrays |= {f"truth:{name}": x for name, x in zip(self.outputs, self.compared.truths)}
        arrays |= {f"bound:{name}": np.array(bound) for name, bound in zip(self.outputs, self._bounds())}
        return list(write(Path(target), model_path(model), arrays, force=force))

    def _bounds(self) -> Iterator[float]:
        """The distances allowed; none where a failure is not one of the largest distance."""
        judgements = self.compared.judgements
        for position in range(len(self.outputs)):
            judgement = judgements[position] if position < len(judgements) else None
            far = judgement is not None and (judgement.passed or judgement.error > judgement.bound)
            yield judgement.bound if judgement is not None and far else 0.0


def minimise(
    source: Source,
    model: nn.Module,
    inputs: Sequence[Tensor],
    *,
    factor: float = FACTOR,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    tries: int = TRIES,
) -> Witness:
    """Make an input that a file answers wrongly as small and as simple as may be.

    Axes that are dynamic in the file are cut to the smallest length at which it still fails; then values become zeros,
    ones or small whole numbers, and as few of them as possible stay different from zero. Whole-numbered inputs, and
    those after the first whose values the model does not take, keep their values.

    Args:
        source: a bundle, an .onnx file, or its bytes.
        model: what the file was made from, in eval mode; it is not changed.
        inputs: one per input of the file, such that it fails.
        factor, rtol, atol: the bound, as in ``verify``.
        seed: of the ways to round that an answer may be excused by.
        tries: inputs to try at most.

    Returns:
        The witness, which is right to blame: its answers were judged like those of ``verify``.

    Raises:
        InputError: the file and the model do not belong together, or the file is right on these inputs.

    Example:
        >>> import torch, tempfile, poolexport
        >>> model = torch.nn.Conv2d(1, 1, 3).eval()
        >>> x, path = torch.randn(1, 1, 8, 8), f"{tempfile.mkdtemp()}/net.onnx"
        >>> _ = poolexport.export(model, x, path, dynamic_shapes={2: "H", 3: "W"})
        >>> _ = torch.nn.init.ones_(model.bias)  # the file knows nothing of it
        >>> witness = minimise(path, model, [x])
        >>> witness.inputs[0].shape, int(witness.inputs[0].count_nonzero())
        (torch.Size([1, 1, 3, 3]), 0)
    """
    comparison = Comparison(source, model, inputs, factor=factor, rtol=rtol, atol=atol, seed=seed)
    search = _Search(comparison, tuple(inputs), tries)
    search.shorten(comparison.ports)
    for position, x in enumerate(inputs):
        if x.is_floating_point():
            search.simplify(position)
    # Where few cells matter, there is less to keep around them.
    search.shorten(comparison.ports)
    names = tuple(port.name for port in comparison.ports)
    outputs = tuple(port.name for port in comparison.session.get_outputs())
    return Witness(names, search.inputs, outputs, search.compared, search.tries)


class _Search:
    """The best input so far, and what it showed."""

    def __init__(self, comparison: Comparison, inputs: tuple[Tensor, ...], limit: int) -> None:
        self.inputs = inputs
        self.tries = 1
        self._comparison, self._limit = comparison, limit
        self.compared = comparison(inputs)
        if not self.compared.wrong:
            raise InputError("the file answers these inputs rightly, so there is no failure to make smaller")

    def shorten(self, ports: Sequence[ort.NodeArg]) -> None:
        """Cut dynamic axes, again and again as long as one of them gets shorter."""
        axes: dict[str, list[tuple[int, int]]] = {}
        for position, port in enumerate(ports):
            for axis, dim in enumerate(port.shape):
                if not isinstance(dim, int):
                    axes.setdefault(dim or f"{port.name}.{axis}", []).append((position, axis))
        shorter = True
        while shorter:
            before = [x.shape for x in self.inputs]
            for places in axes.values():
                self._shorten(places)
            shorter = before != [x.shape for x in self.inputs]

    def _shorten(self, places: Sequence[tuple[int, int]]) -> None:
        """Cut an axis to the smallest length that still fails, from 1 upwards."""
        position, axis = places[0]
        for shorter in _lengths(self.inputs[position].shape[axis]):
            if any(
                self._try(self._cut(places, start, shorter)) for start in _starts(self.inputs[position], axis, shorter)
            ):
                return

    def _cut(self, places: Sequence[tuple[int, int]], start: int, length: int) -> list[Tensor]:
        inputs = list(self.inputs)
        for position, axis in places:
            inputs[position] = inputs[position].narrow(axis, start, length).contiguous()
        return inputs

    def simplify(self, position: int) -> None:
        """Simpler values of one input, from the simplest; then as few of them as possible."""
        for simpler in SIMPLER:
            x = self.inputs[position]
            if self._put(position, simpler(x)):
                break
        self._thin(position)
        for simpler in (torch.sign, torch.round):
            self._put(position, simpler(self.inputs[position]))

    def _thin(self, position: int) -> None:
        """Set blocks of cells to zero, ever smaller ones."""
        blocks = 2
        while True:
            cells = self.inputs[position].flatten().nonzero().flatten()
            if len(cells) <= 1 or self.tries >= self._limit:
                return
            blocks = min(blocks, len(cells))
            parts = torch.tensor_split(cells, blocks)
            if any(self._put(position, _keeping(self.inputs[position], part)) for part in parts if blocks > 1):
                blocks = 2
            elif blocks > 2 and any(self._put(position, _without(self.inputs[position], part)) for part in parts):
                blocks -= 1
            elif blocks == len(cells):
                return
            else:
                blocks = min(2 * blocks, len(cells))

    def _put(self, position: int, x: Tensor) -> bool:
        inputs = list(self.inputs)
        inputs[position] = x
        return not torch.equal(x, self.inputs[position]) and self._try(inputs)

    def _try(self, inputs: Sequence[Tensor]) -> bool:
        """Keep inputs that fail."""
        if self.tries >= self._limit:
            return False
        self.tries += 1
        try:
            compared = self._comparison(inputs)
        except InputError:
            return False
        if compared.wrong:
            self.inputs, self.compared = tuple(inputs), compared
        return compared.wrong


#: Values of the same shape, from the simplest to what there was.
SIMPLER: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.zeros_like,
    torch.ones_like,
    lambda x: -torch.ones_like(x),
    lambda x: torch.arange(x.numel()).reshape(x.shape).to(x.dtype) % 7 - 3,
    torch.sign,
    lambda x: x.clamp(-4, 4).round(),
    torch.round,
    lambda x: (x * 8).round() / 8,
)


def _lengths(length: int) -> Iterator[int]:
    """Smaller lengths, from 1, the first ones one by one."""
    small = range(1, min(length, 9))
    yield from small
    step = 12
    while step < length:
        yield step
        step += step // 2
    if length > 9:
        yield from (length - length // 4, length - 1)


def _starts(x: Tensor, axis: int, length: int) -> list[int]:
    """Where to cut an axis: in front, and around the largest cell."""
    if not x.numel():
        return [0]
    largest = int(torch.unravel_index(x.abs().nan_to_num(0).argmax(), x.shape)[axis])
    return list(dict.fromkeys([0, min(max(0, largest - length // 2), x.shape[axis] - length)]))


def _keeping(x: Tensor, cells: Tensor) -> Tensor:
    kept = torch.zeros_like(x).flatten()
    kept[cells] = x.flatten()[cells]
    return kept.reshape(x.shape)


def _without(x: Tensor, cells: Tensor) -> Tensor:
    rest = x.flatten().clone()
    rest[cells] = 0
    return rest.reshape(x.shape)
