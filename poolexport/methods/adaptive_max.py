"""Adaptive max pooling: the largest cell of every bin, for an output of a given size, whatever the input's.

y_i = largest of the cells floor(i n / o) ... ceil((i + 1) n / o) - 1      along every axis of length n with o bins

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer
from poolexport.reference import Floats
from poolexport_ops import require_rank
from poolexport_ops._regions import Sizes, bins_per_axis, require_cells
from poolexport_ops.adaptive_max_pool import adaptive_max_pool
from poolexport_ops.adaptive_max_pool_with_indices import adaptive_max_pool_with_indices


class _AdaptiveMaxPool(Layer):
    """Largest cell of every bin; NaN wins over every number.

    The bins of an axis cover it evenly, and share cells where it does not divide evenly.

    Args:
        output_size: bins, an int or one per spatial axis; None keeps the length of an axis.
        return_indices: also return where each maximum was found, as int64 positions inside its (n, c) plane: the first
            of equal cells in row-major order, the last of several NaN.

    Shape:
        (N, C, *spatial) to (N, C, *output_size), with the input's length where that is None.

    Raises:
        ValueError: an output size that is not a positive int or None, an input of another rank, or one without cells.

    Example:
        >>> import torch
        >>> from poolexport.nn import AdaptiveMaxPool2d
        >>> AdaptiveMaxPool2d((1, 2), return_indices=True)(torch.tensor([[[[1.0, 6.0, 2.0]]]]))
        (tensor([[[[6., 6.]]]]), tensor([[[[1, 1]]]]))

    Source:
        He, Zhang, Ren, Sun, ECCV 2014, appendix ("Implementation of Pooling Bins"); torch.nn.AdaptiveMaxPool2d.
    """

    rank: ClassVar[int]

    def __init__(self, output_size: Sizes, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size = output_size
        self.return_indices = return_indices
        self.bins = bins_per_axis(output_size, self.rank)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        require_rank(x, self.rank, type(self).__name__)
        require_cells(x, type(self).__name__)
        pool = adaptive_max_pool_with_indices if self.return_indices else adaptive_max_pool
        return pool(x, output_size=list(self.bins))

    def extra_repr(self) -> str:
        return f"output_size={self.output_size!r}" + (", return_indices=True" if self.return_indices else "")


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    rank = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    rank = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    rank = 3


def reference(
    x: ArrayLike, output_size: Sizes, return_indices: bool = False
) -> Floats | tuple[Floats, NDArray[np.int64]]:
    """Adaptive max pooling, slowly, in float64; with `return_indices` also where each maximum was found.

    A cell belongs to bin i of o over n cells where it overlaps the stretch from i n / o to (i + 1) n / o. The cells of
    a bin compete one by one, in row-major order: a larger one wins, and so does every NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    lengths = x.shape[2:]
    wanted = output_size if isinstance(output_size, Sequence) else [output_size] * len(lengths)
    output = [n if o is None else o for n, o in zip(lengths, wanted, strict=True)]
    values = np.full((*x.shape[:2], *output), -np.inf)
    indices = np.full(values.shape, -1, dtype=np.int64)
    for flat, cell in enumerate(np.ndindex(*lengths)):
        challenger = x[(..., *cell)]
        for index in np.ndindex(*output):
            if all(_overlap(*which) for which in zip(cell, index, lengths, output, strict=True)):
                here = (..., *index)
                wins = (challenger > values[here]) | np.isnan(challenger) | (indices[here] < 0)
                values[here] = np.where(wins, challenger, values[here])
                indices[here] = np.where(wins, flat, indices[here])
    return (values, indices) if return_indices else values


def _overlap(cell: int, i: int, n: int, o: int) -> bool:
    return cell * o < (i + 1) * n and (cell + 1) * o > i * n


METHOD = Method(
    (AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d),
    summary="The largest cell of every bin, for an output of a given size.",
    paper=Paper(
        "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition",
        "He, Zhang, Ren, Sun",
        2014,
        "arXiv:1406.4729",
    ),
    reference=reference,
    training="largest cell of every bin",
    inference="largest cell of every bin",
    operators=(adaptive_max_pool, adaptive_max_pool_with_indices),
    cases=(
        Case("3x3", {"output_size": 3}),
        Case("global", {"output_size": 1}),
        Case("divides", {"output_size": (3, 4)}, shape=(1, 2, 6, 8)),
        Case("larger-than-input", {"output_size": (12, 5)}, shape=(1, 2, 5, 7)),
        Case("keep-height", {"output_size": (None, 4)}),
        Case("keep-all", {"output_size": None}),
        Case("1x1", {"output_size": 2}, shape=(2, 3, 1, 1)),
        Case("indices", {"output_size": (4, 3), "return_indices": True}),
        Case("indices-global", {"output_size": 1, "return_indices": True}),
        Case("indices-larger", {"output_size": (7, 12), "return_indices": True}, shape=(1, 2, 5, 7)),
        Case("indices-keep", {"output_size": (4, None), "return_indices": True}),
        Case("1d", {"output_size": 4}, shape=(2, 3, 11)),
        Case("1d-indices", {"output_size": 3, "return_indices": True}, shape=(2, 3, 10)),
        Case("3d", {"output_size": (2, 3, 4)}, shape=(1, 2, 5, 6, 7)),
        Case("3d-indices", {"output_size": (None, 1, 3), "return_indices": True}, shape=(1, 2, 3, 4, 5)),
    ),
    space={
        "output_size": (
            1,
            2,
            3,
            5,
            7,
            12,
            None,
            (5,),
            (2, 3),
            (None, 2),
            (4, 1),
            (1, 2, 3),
            (2, None, 5),
            (None, 1, 1),
        ),
        "return_indices": (False, True),
    },
    limits=(
        Limit({"output_size": 0}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, -1)}, ValueError, "output_size must be a positive int"),
        Limit({"output_size": (2, 2, 2)}, ValueError, "a tuple of 2"),
        Limit(
            {"output_size": 2},
            ValueError,
            "there is nothing to pool",
            shape=(1, 3, 0, 4),
            file="numbers",
        ),
        Limit({"output_size": 2}, ValueError, "expects an input of shape", shape=(3, 9, 9)),
    ),
    notes=(
        "torch.onnx.export refuses or freezes these bins; the exported form computes them from the input.",
        "onnxruntime's ReduceMax and MaxPool drop NaN; the exported form keeps it, and -inf as well.",
    ),
)
