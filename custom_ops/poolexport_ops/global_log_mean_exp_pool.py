"""GlobalLogMeanExpPool: a smooth maximum of every plane, with a sharpness that may be learned.

    c = mean(x), or max(x) where r (max(x) - mean(x)) > 1/2      over all M locations of one channel
    y = c + log(mean(exp(r (x_i - c)))) / r                      over the same locations

Subtracting c keeps every exponential below 2; near the mean the answer is c and a small correction, with no digits
lost. A plane of -inf gives -inf; one with +inf gives +inf. The means are made in float64, as in GlobalAveragePool.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._log_mean import expm1_node, log_mean, log_mean_node
from poolexport_ops._operator import Operator
from poolexport_ops.global_average_pool import onnx_form as mean_node
from poolexport_ops.global_max_pool import onnx_form as largest_node
from poolexport_ops.global_max_pool import output_shape as plane_shape

#: How far the largest exponent may be above that of the mean.
FAR = 0.5


def torch_form(x: Tensor, r: Tensor, *, axes: Sequence[int], keepdims: int = 1) -> Tensor:
    """Log-mean-exp over whole axes.

    Args:
        x: (N, C, *spatial).
        r: the sharpness, above 0, of shape (1,).
        axes: the axes to pool over, counted from the front.
        keepdims: 1 keeps them with length 1, 0 removes them.

    Returns:
        (N, C, 1, ...), or (N, C) without ``keepdims``.
    """
    dims = tuple(axes)
    largest = x.amax(dims, keepdim=True).detach()
    mean = x.mean(dims, keepdim=True, dtype=torch.float64).to(x.dtype).detach()
    level = torch.where(r.detach() * (largest - mean) > FAR, largest, mean).masked_fill(largest.isinf(), 0.0)
    t = r * (x - level)
    log = log_mean(torch.expm1(t).mean(dims, keepdim=True), torch.exp(t).mean(dims, keepdim=True))
    y = torch.where(largest.isinf(), largest, level + log / r)
    return y if keepdims else y.squeeze(dims)


def onnx_form(op: Body, x: ir.Value, r: ir.Value, *, axes: Sequence[int], keepdims: int) -> ir.Value:
    largest = largest_node(op, x, axes=axes, keepdims=1)
    infinite = op.IsInf(largest)
    mean = mean_node(op, x, axes=axes, keepdims=1)
    far = op.Greater(op.Mul(r, op.Sub(largest, mean)), op.number(FAR))
    level = op.Where(infinite, op.number(0.0), op.Where(far, largest, mean))
    t = op.Mul(r, op.Sub(x, level))
    means = [mean_node(op, values, axes=axes, keepdims=1) for values in (expm1_node(op, t), op.Exp(t))]
    y = op.Where(infinite, largest, op.Add(level, op.Div(log_mean_node(op, *means), r)))
    return y if keepdims else op.Squeeze(y, op.ints(*axes))


def output_shape(x: Tensor, r: Tensor, *, axes: Sequence[int], keepdims: int) -> Sequence[int]:
    return plane_shape(x, axes=axes, keepdims=keepdims)


global_log_mean_exp_pool = Operator("GlobalLogMeanExpPool", torch_form, onnx_form, output_shape=output_shape)
