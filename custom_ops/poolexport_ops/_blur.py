"""Binomial blur with stride: the filter, its borders, and the sum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from poolexport_ops._border import continued
from poolexport_ops._window import Window
from poolexport_ops.weighted_sum_pool import weighted_sum_pool

#: Cells beyond each end of an axis, for a filter of k cells and stride s.
PAD_RULES = {
    "zhang": lambda k, s: ((k - 1) // 2, k // 2),
    "timm": lambda k, s: ((k + s - 2) // 2, (k + s - 2) // 2),
    "kornia": lambda k, s: ((k - 1) // 2, (k - 1) // 2),
}


def binomial_filter(sizes: Sequence[int]) -> Tensor:
    """The binomial coefficients along every axis, multiplied and divided by their sum.

    Example:
        >>> binomial_filter([3])
        tensor([0.2500, 0.5000, 0.2500])
    """
    product = torch.ones(())
    for k in sizes:
        row = torch.tensor([math.comb(k - 1, i) / 2 ** (k - 1) for i in range(k)])
        product = product[..., None] * row
    return product


def blur(x: Tensor, filt: Tensor, strides: Sequence[int], pad_mode: str, pad_rule: str) -> Tensor:
    """``x`` filtered and thinned; ``filt`` is (C, 1, *sizes), or (1, 1, *sizes) for all channels alike."""
    sizes = filt.shape[2:]
    begin, end = zip(*(PAD_RULES[pad_rule](k, s) for k, s in zip(sizes, strides)))
    inside = pad_mode == "zero"
    window = Window.of(sizes, strides, (*begin, *end) if inside else [0] * 2 * len(sizes))
    padded = x if inside else continued(x, begin, end, pad_mode)
    return weighted_sum_pool(padded, filt.flatten(1), **window.onnx())
