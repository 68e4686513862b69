"""Strip pooling (Hou et al.): the mean of every row and of every column, spread over the row or column again.

    r_i = (x_i1 + ... + x_iW) / W      over a whole row, channel by channel
    c_j = (x_1j + ... + x_Hj) / H      over a whole column
    y_ij = r_i, c_j, or r_i + c_j

Training and inference are the same; there is nothing to learn. The paper's module puts a 1-d convolution on each of the
two before they are added; that is a layer of the network around this one.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.global_average_pool import global_average_pool


class StripPool2d(Layer):
    """Means of whole rows and columns, at the size of the input.

    Args:
        mode: "rows" (every cell becomes the mean of its row), "columns", or "sum" (both, added).
        expand: spread the means over the input's size; without it "rows" keeps a width of 1 and "columns" a height
            of 1.

    Shape:
        (N, C, H, W) to (N, C, H, W). Without ``expand``, "rows" gives (N, C, H, 1) and "columns" (N, C, 1, W).

    Raises:
        ValueError: an unknown mode, or an input of another rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import StripPool2d
        >>> StripPool2d()(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
        tensor([[[[3.5000, 5.5000],
                  [6.5000, 8.5000]]]])

    Source:
        Hou, Zhang, Cheng, Feng, CVPR 2020, eq. 1 to 3; package houqb/SPNet.
    """

    rank: ClassVar[int] = 2

    def __init__(self, mode: str = "sum", expand: bool = True) -> None:
        super().__init__()
        require_choice("mode", mode, ("rows", "columns", "sum"))
        self.mode = mode
        self.expand = expand

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        wide = widened(x)
        if self.mode == "sum":
            y = global_average_pool(wide, axes=[3]) + global_average_pool(wide, axes=[2])
        else:
            y = global_average_pool(wide, axes=[3 if self.mode == "rows" else 2])
        y = y.to(x.dtype)
        return y.expand(x.shape) if self.expand else y

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, expand={self.expand}"


def reference(x: ArrayLike, mode: str = "sum", expand: bool = True) -> Floats:
    """Strip pooling, slowly, in float64; a NaN or an infinity reaches its whole row and column."""
    x = np.asarray(x, dtype=np.float64)
    rows = exact_sum(x, x.shape[3])[..., :, None]
    columns = exact_sum(np.swapaxes(x, 2, 3), x.shape[2])[..., None, :]
    with np.errstate(invalid="ignore"):
        y = {"rows": rows, "columns": columns, "sum": rows + columns}[mode]
    return np.broadcast_to(y, x.shape) if expand else y


METHOD = Method(
    (StripPool2d,),
    summary="The means of whole rows and columns, spread over them again.",
    paper=Paper(
        "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
        "Hou, Zhang, Cheng, Feng",
        2020,
        "arXiv:2003.13328",
    ),
    reference=reference,
    training="means of rows and columns",
    inference="means of rows and columns",
    operators=(global_average_pool,),
    cases=(
        Case("sum", {}),
        Case("rows", {"mode": "rows"}),
        Case("columns", {"mode": "columns"}),
        Case("row-means", {"mode": "rows", "expand": False}),
        Case("column-means", {"mode": "columns", "expand": False}),
        Case("one-row", {}, shape=(2, 3, 1, 7)),
        Case("one-column", {"mode": "columns"}, shape=(2, 3, 7, 1)),
        Case("square", {}, shape=(1, 2, 8, 8)),
    ),
    space={"mode": ("rows", "columns", "sum"), "expand": (True, True, False)},
    limits=(
        Limit({"mode": "diagonal"}, ValueError, "mode must be one of"),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=("The exported form sums in float64: onnxruntime's own float32 sums lose digits on long rows.",),
)
