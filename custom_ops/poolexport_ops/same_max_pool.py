"""SameMaxPool: the largest cell of every window, with "same" padding.

y = max over the real cells of the window; a NaN cell makes y NaN, a window without a real cell gives -inf
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._same import pad_same, pad_same_node, same_output_shape, unpadded

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def torch_form(x: Tensor, *, kernel_shape: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Largest cell of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, dilations: the window, in cells.

    Returns:
        (N, C, *output), ``output = ceil(n / stride)``.
    """
    window = unpadded(kernel_shape, strides, dilations)
    pool = POOLS[window.rank]
    return pool(pad_same(x, window, -float("inf")), window.kernel_shape, window.strides, 0, window.dilations)


def onnx_form(
    op: Body, x: ir.Value, *, kernel_shape: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> ir.Value:
    window = unpadded(kernel_shape, strides, dilations)
    return op.reduce(pad_same_node(op, x, window, -float("inf")), window, -float("inf"), "Max")


same_max_pool = Operator("SameMaxPool", torch_form, onnx_form, output_shape=same_output_shape, widen=False)
