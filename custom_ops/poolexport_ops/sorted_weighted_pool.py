"""SortedWeightedPool: the cells of every window in descending order, weighted by rank.

    x_(1) >= x_(2) >= ... >= x_(m)      the m real cells of the window
    y = sum(w_r x_(r))

A rank of weight 0 adds nothing, whatever it holds. A NaN cell has no rank: it makes every rank of its window NaN.

The ONNX form sorts with a network of Max and Min between whole slices. In onnxruntime TopK over the cells on a new axis
is ten times slower, and NaN leaves its result unsorted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from poolexport_ops._body import Body, total
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window


def torch_form(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    weights: Sequence[float],
    remainders: Sequence[float] = (),
) -> Tensor:
    """Sum of the sorted cells of every window, weighted by rank.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, pads, dilations: the window, in cells; padded cells are absent: they have no rank.
        weights: one number per rank, the largest cell's first; where only m of a window's K cells are real, the first
            m of them hold, as they are. Or K rows of K numbers in one list: row m is for windows of m real cells (it
            begins at index K (m - 1)), and only its first m numbers count.
        remainders: added to ``weights``, empty for zeros. Callers leave it out: a graph holds float32 attributes, and
            an export puts here what they lose.

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``; 0 where a
        window has no real cell.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    rows = torch.from_numpy(_rows(weights, remainders, window.size)).to(x)
    cells = window.cells(x, -float("inf"))
    ranked = cells.sort(-1, descending=True).values
    ranked = ranked.masked_fill(cells.isnan().any(-1, keepdim=True), float("nan"))
    real = window.cells(torch.ones_like(x[:1, :1]), 0.0).sum(-1).long()
    shares = rows[real]
    return (shares * ranked).masked_fill(shares == 0, 0.0).sum(-1)


def onnx_form(
    op: Body,
    x: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    weights: Sequence[float],
    remainders: Sequence[float] = (),
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    rows = _rows(weights, remainders, window.size)
    if not window.padded:
        rows = rows[-1:]
    cells = op.cells(x, window, -float("inf"))
    wanted = [rank for rank in range(window.size) if rows[:, rank].any()]
    ranked = _ranked(op, cells, wanted)
    zero = op.number(0.0)
    if not wanted:
        return op.Where(op.constant(np.array(False)), cells[0], zero)
    if not window.padded:
        return total(op, [op.Mul(ranked[rank], op.number(rows[0, rank])) for rank in wanted])
    real = op.Mul(op.coverage(x, window, [0] * 2 * window.rank), op.number(window.size))
    real = op.cast(op.Add(real, op.number(0.5)), ir.DataType.INT64)
    terms = []
    for rank in wanted:
        share = op.Gather(op.constant(rows[:, rank].astype(op.dtype.numpy())), real, axis=0)
        terms.append(op.Where(op.Equal(share, zero), zero, op.Mul(share, ranked[rank])))
    return total(op, terms)


def _rows(weights: Sequence[float], remainders: Sequence[float], size: int) -> NDArray[np.float64]:
    """Row m: the weights of every rank in a window of m real cells; 0 for ranks that it does not have."""
    exact = np.asarray(weights, np.float64)
    if len(remainders):
        exact = exact + np.asarray(remainders, np.float64)
    if exact.size not in (size, size * size) or not np.isfinite(exact).all():
        raise ValueError(
            f"weights must hold {size} or {size} x {size} finite numbers for a window of {size} cells, got {weights!r}"
        )
    ranks = np.arange(size)
    rows = np.where(ranks <= ranks[:, None], exact.reshape(-1, size), 0.0)
    return np.concatenate([np.zeros((1, size)), rows])


def _ranked(op: Body, cells: Sequence[ir.Value], wanted: Collection[int]) -> list[ir.Value]:
    """The cells of every window in descending order; only the ``wanted`` ranks are made."""
    alive = set(wanted)
    comparators = []
    for i, j in reversed(list(sorting_network(len(cells)))):
        if i in alive or j in alive:
            comparators.append((i, j, i in alive, j in alive))
            alive |= {i, j}
    wires = list(cells)
    for i, j, larger, smaller in reversed(comparators):
        a, b = wires[i], wires[j]
        if larger:
            wires[i] = op.Max(a, b)
        if smaller:
            wires[j] = op.Min(a, b)
    return wires


def sorting_network(size: int) -> Iterator[tuple[int, int]]:
    """Comparators (i, j) that put the larger of two wires on wire i < j: Batcher's odd-even merge sort.

    >>> list(sorting_network(4))
    [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2)]
    """
    run = 1
    while run < size:
        gap = run
        while gap:
            for start in range(gap % run, size - gap, 2 * gap):
                for i in range(start, start + min(gap, size - gap - start)):
                    if i // (2 * run) == (i + gap) // (2 * run):
                        yield i, i + gap
            gap //= 2
        run *= 2


class _SortedWeightedPool(Operator):
    def _node(self, tensors: Sequence[Tensor], attributes: dict[str, Any]) -> Any:
        exact = np.asarray(attributes["weights"], np.float64)
        stored = exact.astype(np.float32)
        lost = (exact - stored).astype(np.float32)
        return super()._node(tensors, {**attributes, "weights": stored.tolist(), "remainders": lost.tolist()})


sorted_weighted_pool = _SortedWeightedPool("SortedWeightedPool", torch_form, onnx_form)
