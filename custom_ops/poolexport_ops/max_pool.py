"""MaxPool: the largest cell of every window.

    y = max over the real cells of the window; a NaN cell makes y NaN, a window of -inf gives -inf

The standard MaxPool is not used: on the CPU provider it drops NaN, gives the lowest finite number for a padded window
of -inf, and has no float64 indices. Strided slices under Max have none of these faults, in every runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch.nn.functional as F
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator
from poolexport_ops._window import Window

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def torch_form(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Tensor:
    """Largest cell of every window.

    Args:
        x: (N, C, *spatial) with 1, 2 or 3 spatial axes.
        kernel_shape, strides, pads, dilations: the window, in cells; pads are begin..., then end....

    Returns:
        (N, C, *output), ``output = floor((n + begin + end - dilation (kernel - 1) - 1) / stride) + 1``.
    """
    window = Window.of(kernel_shape, strides, pads, dilations)
    window.require_fit(x.shape[2:])
    pool = POOLS[window.rank]
    return pool(window.pad(x, -float("inf")), window.kernel_shape, window.strides, 0, window.dilations)


def onnx_form(
    op: Body,
    x: ir.Value,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> ir.Value:
    window = Window.of(kernel_shape, strides, pads, dilations)
    return op.reduce(x, window, -float("inf"), "Max")


max_pool = Operator("MaxPool", torch_form, onnx_form, widen=False)
