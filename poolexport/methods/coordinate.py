"""Coordinate pooling (Hou et al.): the mean of every row and of every column, as two vectors per channel.

    h_i = (x_i1 + ... + x_iW) / W      over a whole row
    w_j = (x_1j + ... + x_Hj) / H      over a whole column

Training and inference are the same; there is nothing to learn. Coordinate attention goes on from here with convolutions
over both vectors, one behind the other.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.global_average_pool import global_average_pool


class CoordinatePool2d(Layer):
    """Means of whole rows and columns.

    Args:
        joined: put the column means behind the row means, as the attention block does, in place of two outputs.

    Shape:
        (N, C, H, W) to (N, C, H, 1) and (N, C, 1, W), or to (N, C, H + W, 1) with ``joined``.

    Raises:
        ValueError: an input of another rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import CoordinatePool2d
        >>> CoordinatePool2d(joined=True)(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).flatten()
        tensor([1.5000, 4.5000, 2.0000, 4.0000])

    Source:
        Hou, Zhou, Feng, CVPR 2021, eq. 4 and 5; package houqb/CoordAttention.
    """

    rank: ClassVar[int] = 2

    def __init__(self, joined: bool = False) -> None:
        super().__init__()
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        require_rank(x, self.rank, type(self).__name__)
        rows = global_average_pool(x, axes=[3])
        columns = global_average_pool(x, axes=[2])
        return torch.cat([rows, columns.transpose(2, 3)], dim=2) if self.joined else (rows, columns)

    def extra_repr(self) -> str:
        return f"joined={self.joined}"


def reference(x: ArrayLike, joined: bool = False) -> Floats | tuple[Floats, Floats]:
    """Coordinate pooling, slowly, in float64; a NaN or an infinity reaches its row's and its column's mean."""
    x = np.asarray(x, dtype=np.float64)
    height, width = x.shape[2:]
    rows = np.stack([exact_sum(x[:, :, i, :], width) for i in range(height)], axis=-1)
    columns = np.stack([exact_sum(x[:, :, :, j], height) for j in range(width)], axis=-1)
    if joined:
        return np.concatenate([rows, columns], axis=-1)[..., None]
    return rows[..., :, None], columns[..., None, :]


def illustration(image: Tensor) -> Tensor:
    """The means of rows and columns, laid over each other: all that the two vectors know."""
    rows, columns = CoordinatePool2d()(image)
    return rows + columns


METHOD = Method(
    (CoordinatePool2d,),
    summary="The means of whole rows and columns, as two vectors per channel.",
    paper=Paper(
        "Coordinate Attention for Efficient Mobile Network Design", "Hou, Zhou, Feng", 2021, "arXiv:2103.02907"
    ),
    reference=reference,
    training="means of rows and columns",
    inference="means of rows and columns",
    operators=(global_average_pool,),
    illustration=illustration,
    cases=(
        Case("joined", {"joined": True}),
        Case("two-vectors", {}),
        Case("square", {}, shape=(2, 3, 8, 8)),
        Case("one-row", {}, shape=(2, 3, 1, 7)),
        Case("one-column", {"joined": True}, shape=(2, 3, 7, 1)),
        Case("one-cell", {}, shape=(1, 2, 1, 1)),
        Case("wide", {"joined": True}, shape=(1, 2, 3, 14)),
        Case("tall", {}, shape=(1, 2, 14, 3)),
    ),
    space={"joined": (True, False)},
    limits=(Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),),
    notes=("The exported form sums in float64: onnxruntime's own float32 sums lose digits on long rows.",),
)
