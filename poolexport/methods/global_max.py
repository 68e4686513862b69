"""Global max pooling: the largest cell of every plane.

    y = max(x_1, ..., x_M)      over all M locations of one channel

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer
from poolexport.reference import Floats
from poolexport_ops import require_rank
from poolexport_ops.global_max_pool import global_max_pool


class _GlobalMaxPool(Layer):
    """Maximum over all locations of every channel; a NaN among them is the answer.

    Args:
        keepdim: keep the spatial axes, with length 1.

    Shape:
        (N, C, *spatial) to (N, C, 1, ...), or to (N, C) without ``keepdim``.

    Raises:
        ValueError: an input of another rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import GlobalMaxPool2d
        >>> GlobalMaxPool2d(keepdim=False)(torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]))
        tensor([[4.]])

    Source:
        Tolias, Sicre, Jegou, ICLR 2016, section 3.1 (maximum activations of convolutions).
    """

    rank: ClassVar[int]

    def __init__(self, keepdim: bool = True) -> None:
        super().__init__()
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        return global_max_pool(x, axes=list(range(2, 2 + self.rank)), keepdims=int(self.keepdim))

    def extra_repr(self) -> str:
        return f"keepdim={self.keepdim}"


class GlobalMaxPool1d(_GlobalMaxPool):
    rank = 1


class GlobalMaxPool2d(_GlobalMaxPool):
    rank = 2


class GlobalMaxPool3d(_GlobalMaxPool):
    rank = 3


def reference(x: ArrayLike, keepdim: bool = True) -> Floats:
    """Global max pooling, cell by cell: a cell replaces the answer so far where it is larger, or NaN."""
    x = np.asarray(x, dtype=np.float64)
    y = np.full(x.shape[:2], -np.inf)
    for place in np.ndindex(*x.shape[2:]):
        cell = x[(..., *place)]
        y = np.where((cell > y) | np.isnan(cell), cell, y)  # no cell is larger than NaN, so NaN stays
    return y.reshape(*y.shape, *(1,) * (x.ndim - 2)) if keepdim else y


METHOD = Method(
    (GlobalMaxPool1d, GlobalMaxPool2d, GlobalMaxPool3d),
    summary="The largest cell of every plane.",
    paper=Paper(
        "Particular object retrieval with integral max-pooling of CNN activations",
        "Tolias, Sicre, Jegou",
        2016,
        "arXiv:1511.05879",
    ),
    reference=reference,
    training="maximum",
    inference="maximum",
    operators=(global_max_pool,),
    cases=(
        Case("plane", {}),
        Case("flat", {"keepdim": False}),
        Case("1x1", {}, shape=(2, 3, 1, 1)),
        Case("one-row", {"keepdim": False}, shape=(1, 2, 1, 9)),
        Case("large", {}, shape=(1, 2, 33, 40)),
        Case("1d", {}, shape=(2, 3, 11)),
        Case("1d-flat", {"keepdim": False}, shape=(1, 1, 7)),
        Case("3d", {"keepdim": False}, shape=(1, 2, 5, 6, 7)),
    ),
    space={"keepdim": (True, False)},
    limits=(Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),),
    notes=("The standard ReduceMax and GlobalMaxPool pass over NaN in onnxruntime; the exported form does not.",),
)
