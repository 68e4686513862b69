"""Padding of the "same" kind: as many windows as strides fit into the input, and pads that follow from its length.

    o = ceil(n / s)                                  windows along an axis of length n
    total = max((o - 1) s + (k - 1) d + 1 - n, 0)    padded cells, begin = total // 2 of them before the axis

The pads change with the length of the input, so a graph has to work them out. With ``total`` pads a plain window walk
answers exactly o: the next window would begin at o s >= n, at most where the padded axis ends less one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._window import Window


def unpadded(kernel_shape: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Window:
    """The window that walks over the padded input."""
    return Window.of(kernel_shape, strides, [0] * 2 * len(kernel_shape), dilations)


def same_output_shape(x: Tensor, *, strides: Sequence[int], **_: Sequence[int] | int) -> Sequence[int]:
    """(N, C, *output), ``output = ceil(n / stride)``; sizes may be symbolic."""
    return (*x.shape[:2], *((n + s - 1) // s for n, s in zip(x.shape[2:], strides)))


def pad_same(x: Tensor, window: Window, value: float) -> Tensor:
    """``x`` with its "same" pads filled with ``value``."""
    lengths = x.shape[2:]
    if min(lengths) < 1:
        raise ValueError(f"there is nothing to pool in an input of shape {tuple(x.shape)}")
    pairs = []
    for n, s, extent in reversed(list(zip(lengths, window.strides, window.extent))):
        total = max((n - 1) // s * s + extent - n, 0)
        pairs += [total // 2, total - total // 2]
    return F.pad(x, pairs, value=value)


def pad_same_node(op: Body, x: ir.Value, window: Window, value: float) -> ir.Value:
    lengths = spatial(op, x, window.rank)
    strides = op.ints(*window.strides)
    last = op.Mul(op.Div(op.Sub(lengths, op.ints(1)), strides), strides)
    total = op.Max(op.Sub(op.Add(last, op.ints(*window.extent)), lengths), op.ints(0))
    begin = op.Div(total, op.ints(2))
    pads = op.Concat(op.ints(0, 0), begin, op.ints(0, 0), op.Sub(total, begin), axis=0)
    return op.Pad(x, pads, op.number(value), mode="constant")


def spatial(op: Body, x: ir.Value, rank: int) -> ir.Value:
    """Lengths of the spatial axes."""
    return op.Slice(op.Shape(x), op.ints(2), op.ints(2 + rank), op.ints(0))
