"""Max pooling with "same" padding, TensorFlow's rule: one window per stride, however long the input is.

    o = ceil(n / s), total = max((o - 1) s + (k - 1) d + 1 - n, 0), begin = total // 2      along every axis
    y_i = max of x_j      over the real cells j of i s - begin, i s - begin + d, ..., i s - begin + (k - 1) d

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer
from poolexport.reference import Floats, PerAxis, per_axis
from poolexport_ops._window import Ints
from poolexport_ops.same_max_pool import same_max_pool


class _SameMaxPool(WindowLayer):
    """Maximum of every window; the input is padded so that its length divided by the stride, rounded up, remains.

    An odd number of padded cells puts the extra one at the end. Padded cells never win.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        dilation: distance between neighbouring cells of a window.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = ceil(n / stride)``.

    Raises:
        ValueError: an option out of range, or an input of another rank or without cells.

    Example:
        >>> import torch
        >>> from poolexport.nn import SameMaxPool1d
        >>> SameMaxPool1d(3, stride=2)(torch.tensor([[[4.0, 1.0, 2.0, 3.0]]]))
        tensor([[[4., 3.]]])

    Source:
        tf.nn.max_pool with padding="SAME"; timm MaxPool2dSame (for ``dilation`` of 1).
    """

    def __init__(self, kernel_size: Ints, stride: Ints | None = None, dilation: Ints = 1) -> None:
        super().__init__(kernel_size, stride, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        window = self.window.onnx()
        del window["pads"]  # they depend on the input
        return same_max_pool(x, **window)


class SameMaxPool1d(_SameMaxPool):
    rank = 1


class SameMaxPool2d(_SameMaxPool):
    rank = 2


def reference(x: ArrayLike, kernel_size: PerAxis, stride: PerAxis | None = None, dilation: PerAxis = 1) -> Floats:
    """Max pooling with "same" padding, window by window; NaN wins, and a window without a real cell is -inf."""
    x = np.asarray(x, dtype=np.float64)
    spatial = x.shape[2:]
    k, d = per_axis(kernel_size, len(spatial)), per_axis(dilation, len(spatial))
    s = k if stride is None else per_axis(stride, len(spatial))
    axes = [_real_places(*lengths) for lengths in zip(spatial, k, s, d, strict=True)]
    y = np.full(x.shape[:2] + tuple(len(windows) for windows in axes), -np.inf)
    for index in np.ndindex(y.shape[2:]):
        for cell in itertools.product(*(windows[i] for windows, i in zip(axes, index, strict=True))):
            y[(..., *index)] = np.maximum(y[(..., *index)], x[(..., *cell)])
    return y


def _real_places(n: int, k: int, s: int, d: int) -> list[list[int]]:
    """Return, for every window along an axis of length n, where its cells lie that are inside the input."""
    windows = -(-n // s)
    before = max((windows - 1) * s + (k - 1) * d + 1 - n, 0) // 2
    places = [[i * s - before + j * d for j in range(k)] for i in range(windows)]
    return [[place for place in window if 0 <= place < n] for window in places]


METHOD = Method(
    (SameMaxPool1d, SameMaxPool2d),
    summary='The largest cell of every window, with "same" padding that follows the input.',
    paper=Paper(
        "TensorFlow: Large-Scale Machine Learning on Heterogeneous Distributed Systems",
        "Abadi et al.",
        2016,
        "arXiv:1603.04467",
    ),
    reference=reference,
    training="maximum",
    inference="maximum",
    operators=(same_max_pool,),
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("3x3", {"kernel_size": 3, "stride": 2}),
        Case("even", {"kernel_size": 3, "stride": 2}, shape=(1, 2, 8, 10)),
        Case("oblong", {"kernel_size": (2, 5), "stride": (1, 3)}),
        Case("stride-above-kernel", {"kernel_size": 2, "stride": (3, 4)}),
        Case("dilated", {"kernel_size": 3, "stride": 2, "dilation": (2, 3)}),
        Case("kernel-above-input", {"kernel_size": 7, "stride": 2}, shape=(1, 2, 3, 5)),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11)),
        Case("1d-even", {"kernel_size": 4, "stride": 3}, shape=(2, 3, 10)),
    ),
    space={"kernel_size": (1, 2, 3, 5, (3, 2, 1)), "stride": (None, 1, 2, 3, (2, 1, 3)), "dilation": (1, 1, 2, 3)},
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "stride": 0}, ValueError, "stride must be a positive int"),
        Limit({"kernel_size": 2, "dilation": 0}, ValueError, "dilation must be a positive int"),
        Limit({"kernel_size": 2}, ValueError, "there is nothing to pool", shape=(1, 1, 0, 4), file="numbers"),
        Limit({"kernel_size": 2}, ValueError, "expects an input of shape", shape=(1, 3, 4)),
    ),
    notes=(
        "timm leaves the dilation out when it works out the pads, so its dilated windows answer fewer cells.",
        "A dilated window can miss a short input altogether; the answer is -inf.",
    ),
)
