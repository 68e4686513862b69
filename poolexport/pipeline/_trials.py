"""Which inputs a file is tried on: values that break careless code, and lengths that the trace never saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from poolexport import stress

#: How far the lengths of dynamic axes move away from the traced ones: larger, odd, smaller.
STEPS = (1, 2, 5, -1)
BATCHES = (1, 3, 5)
#: Axes longer than this are tried at half as long again instead of twice as long, which would take four times as long.
LONG = 128


@dataclass(frozen=True)
class Port:
    """An input of two files: the name it has in the first, its type, and its shape, dynamic where it is in both."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Trial:
    """One input to try, drawn when it is its turn: all at once would take more memory than the model.

    Args:
        values: a regime, or "example".
        shapes: of every input.
        seed: of the values.
    """

    values: str
    shapes: tuple[tuple[int, ...], ...]
    seed: int = 0

    def inputs(self, example: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The values, of the types of the example."""
        if self.values == "example":
            return tuple(example)
        numbered = enumerate(zip(example, self.shapes))
        return tuple(_draw(self.values, x, shape, self.seed + 1000 * k) for k, (x, shape) in numbered)


@dataclass(frozen=True)
class Given:
    """Inputs that somebody has, read when it is their turn.

    Args:
        values: what they are called.
        read: reads them, one tensor per input.
        digest: by which they are told from others of that name, where a verification is to be resumed.
    """

    values: str
    read: Callable[[], Sequence[Tensor]]
    digest: str = ""

    def inputs(self, example: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The values, of the types of the example."""
        return tuple(x.to(like.dtype) for x, like in zip(self.read(), example, strict=True))


def trials(
    ports: Sequence[ort.NodeArg | Port], example: Sequence[Tensor], seed: int, *, extremes: bool = False
) -> Iterator[Trial]:
    """The example, then every regime of values at the traced shapes, then normal values and ties at unseen shapes."""
    same = tuple(tuple(x.shape) for x in example)
    yield Trial("example", same)
    traced = {dim: x.shape[i] for port, x in zip(ports, example) for i, dim in dynamic(port)}
    for regime in (*stress.REGIMES, *(stress.EXTREMES if extremes else ())):
        yield Trial(regime, same, seed)
    turns: defaultdict[tuple[str, ...], Iterator[str]] = defaultdict(lambda: cycle(("normal", "ties")))
    for lengths in _unseen(traced, {dim for port in ports for i, dim in dynamic(port) if i == 0}):
        shapes = []
        for port, x in zip(ports, example):
            moved = {i: lengths[dim] for i, dim in dynamic(port) if dim in lengths}
            shapes.append(tuple(moved.get(i, n) for i, n in enumerate(x.shape)))
        # Axes that move alone meet one kind of values after the other; where all move together, both are tried.
        for regime in ("normal", "ties") if len(lengths) == len(traced) else (next(turns[tuple(lengths)]),):
            yield Trial(regime, tuple(shapes), seed + 1)


def dynamic(port: ort.NodeArg | Port) -> list[tuple[int, str]]:
    """The axes that may change, by number and name; one without a name gets its own."""
    return [(i, dim or f"{port.name}.{i}") for i, dim in enumerate(port.shape) if not isinstance(dim, int)]


def _unseen(traced: Mapping[str, int], batches: set[str]) -> Iterator[dict[str, int]]:
    """Lengths of the dynamic axes that differ from the traced ones, each axis alone and all together."""
    sizes = {dim: n for dim, n in traced.items() if dim not in batches}
    for dim in batches & traced.keys():
        for batch in BATCHES:
            if batch != traced[dim]:
                yield {dim: batch}
    for step in STEPS:
        for turn, dim in enumerate(sizes):
            yield {dim: max(1, sizes[dim] + step * (turn + 1))}
    if len(traced) > 1:
        for step in STEPS:
            moved = {dim: max(1, n + step * (turn + 1)) for turn, (dim, n) in enumerate(sizes.items())}
            yield moved | dict.fromkeys(batches & traced.keys(), 1 + step % 4)
    if sizes:
        yield {dim: 2 * n + 1 if n <= LONG else n + n // 2 for dim, n in sizes.items()}
        yield {dim: max(1, n // 2) for dim, n in sizes.items()}


def _draw(regime: str, like: Tensor, shape: Sequence[int], seed: int) -> Tensor:
    """Values of a regime; integers are drawn from the range of the example's, pixels from all of theirs."""
    if like.is_floating_point():
        dtype = torch.empty(0, dtype=like.dtype).numpy().dtype
        return torch.from_numpy(stress.draw(regime, tuple(shape), dtype, seed))
    rng = np.random.default_rng([seed, *regime.encode()])
    pixels = like.dtype == torch.uint8 or not like.numel()
    low, high = (0, 255) if pixels else (int(like.min()), int(like.max()))
    return torch.from_numpy(np.asarray(rng.integers(low, high + 1, tuple(shape)))).to(like.dtype)
