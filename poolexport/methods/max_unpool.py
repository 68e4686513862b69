"""Max unpooling: every cell goes back to where a max pooling found it; all other cells are 0.

y[indices_i] = x_i      in every (n, c) plane, with row-major positions of the output plane as indices

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer
from poolexport.reference import Floats, PerAxis, per_axis
from poolexport_ops._window import Ints


class _MaxUnpool(WindowLayer):
    """Inverse of a max pooling with ``return_indices``, as far as there is one; what was not a maximum becomes 0.

    ``forward(x, indices, output_size=None)`` takes the indices that the pooling returned. Several inputs of the pooling
    give one length; ``output_size`` names the right one, as the whole shape or its spatial part. Where one index is
    given twice the last of the two cells stays, on the CPU in torch and in onnxruntime; elsewhere either may.

    Args:
        kernel_size: cells per window of the pooling, an int or one per spatial axis.
        stride: cells between its windows; the kernel size by default.
        padding: cells it added on both sides, at most half the kernel.

    Shape:
        Two of (N, C, *spatial) to (N, C, *output) with ``output = (n - 1) stride - 2 padding + kernel_size``, or any
        ``output_size`` less than a stride away from that.

    Raises:
        ValueError: an option out of range, an input of another rank, indices of another shape or type or outside of
            the output, or an output size that is out of reach or empty.

    Example:
        >>> import torch
        >>> from poolexport.nn import MaxUnpool2d
        >>> MaxUnpool2d(2)(torch.tensor([[[[5.0]]]]), torch.tensor([[[[2]]]]))
        tensor([[[[0., 0.],
                  [5., 0.]]]])

    Source:
        Zeiler, Taylor, Fergus, ICCV 2011, section 2.1 (switches); Badrinarayanan, Kendall, Cipolla, SegNet, 2017,
        section 3.1; torch.nn.MaxUnpool2d.
    """

    def __init__(self, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0) -> None:
        super().__init__(kernel_size, stride, padding)

    def forward(self, x: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        self.require_rank(x)
        lengths = self._lengths(x, output_size)
        cells = math.prod(lengths)
        if not torch.compiler.is_compiling():
            _require_indices(x, indices, lengths)
        planes = x.new_zeros(x.shape[0], x.shape[1], cells)
        return planes.scatter(2, indices.flatten(2), x.flatten(2)).reshape(x.shape[0], x.shape[1], *lengths)

    def _lengths(self, x: Tensor, output_size: Sequence[int] | None) -> list[int]:
        """Lengths of the output; sizes may be symbolic."""
        window = self.window
        strides, sizes = window.strides, zip(x.shape[2:], window.kernel_shape, window.strides, window.begin)
        default = [(n - 1) * s - 2 * p + k for n, k, s, p in sizes]
        if output_size is not None and not isinstance(output_size, Sequence):
            raise ValueError(f"output_size must be a sequence of ints, got {output_size!r}")
        lengths = default if output_size is None else list(output_size)[-self.rank :]
        if torch.compiler.is_compiling():
            return lengths
        if output_size is not None and len(output_size) not in (self.rank, self.rank + 2):
            raise ValueError(f"output_size must have {self.rank} or {self.rank + 2} entries, got {tuple(output_size)}")
        if not all(isinstance(n, Integral) for n in lengths):
            raise ValueError(f"output_size must hold ints, got {output_size!r}")
        if min(lengths) < 1 or not all(d - s < o < d + s for d, o, s in zip(default, lengths, strides)):
            raise ValueError(
                f"no pooling of an output of lengths {tuple(lengths)} gives {tuple(x.shape[2:])}; lengths must be "
                f"positive, and less than a stride of {strides} away from {tuple(default)}"
            )
        return lengths


def _require_indices(x: Tensor, indices: Tensor, lengths: Sequence[int]) -> None:
    if indices.shape != x.shape or indices.dtype != torch.int64:
        raise ValueError(
            f"indices must be int64 of the input's shape {tuple(x.shape)}, got {indices.dtype} of shape "
            f"{tuple(indices.shape)}"
        )
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < math.prod(lengths):
        raise ValueError(
            f"indices must lie in a plane of lengths {tuple(lengths)}, got {int(indices.min())} to {int(indices.max())}"
        )


class MaxUnpool1d(_MaxUnpool):
    rank = 1


class MaxUnpool2d(_MaxUnpool):
    rank = 2


class MaxUnpool3d(_MaxUnpool):
    rank = 3


def reference(
    x: ArrayLike,
    indices: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
) -> Floats:
    """Max unpooling, slowly, in float64: one cell after the other is carried to its row, column, and so on.

    Values are moved, never computed with, so infinities and NaN arrive as they are.
    """
    x, indices = np.asarray(x, dtype=np.float64), np.asarray(indices)
    y = np.zeros((*x.shape[:2], *_output_lengths(x.shape[2:], kernel_size, stride, padding)))
    for place in np.ndindex(*x.shape):
        rest = int(indices[place])
        cell: list[int] = []
        for length in reversed(y.shape[2:]):
            rest, coordinate = divmod(rest, length)
            cell.insert(0, coordinate)
        assert rest == 0, "an index outside of its plane"
        y[(*place[:2], *cell)] = x[place]
    return y


def _output_lengths(
    lengths: tuple[int, ...], kernel_size: PerAxis, stride: PerAxis | None, padding: PerAxis
) -> tuple[int, ...]:
    axes = len(lengths)
    kernel = per_axis(kernel_size, axes)
    steps = kernel if stride is None else per_axis(stride, axes)
    return tuple(s * (n - 1) + k - 2 * p for n, k, s, p in zip(lengths, kernel, steps, per_axis(padding, axes)))


def companions(
    x: ArrayLike, kernel_size: PerAxis, stride: PerAxis | None = None, padding: PerAxis = 0
) -> tuple[NDArray[np.int64]]:
    """Indices for an input: in every plane other positions, and none of them twice."""
    shape = np.shape(x)
    cells, room = math.prod(shape[2:]), math.prod(_output_lengths(shape[2:], kernel_size, stride, padding))
    rng = np.random.default_rng(0)
    planes = [rng.permutation(room)[:cells] for _ in range(shape[0] * shape[1])]
    return (np.array(planes, dtype=np.int64).reshape(shape),)


def illustration(image: Tensor) -> Tensor:
    """What is left after a 4 by 4 max pooling and its unpooling."""
    values, places = F.max_pool2d(image, 4, return_indices=True)
    return MaxUnpool2d(4)(values, places)


METHOD = Method(
    (MaxUnpool1d, MaxUnpool2d, MaxUnpool3d),
    summary="Every cell goes back to where a max pooling found it; all other cells are 0.",
    paper=Paper(
        "Adaptive Deconvolutional Networks for Mid and High Level Feature Learning",
        "Zeiler, Taylor, Fergus",
        2011,
        "doi:10.1109/ICCV.2011.6126474",
    ),
    reference=reference,
    training="cells back to their places",
    inference="cells back to their places",
    operators=(),
    companions=companions,
    illustration=illustration,
    cases=(
        Case("2x2", {"kernel_size": 2}, shape=(2, 3, 4, 5)),
        Case("3x2", {"kernel_size": (3, 2)}, shape=(2, 3, 4, 5)),
        Case("overlapping", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 4, 5)),
        Case("padded", {"kernel_size": 3, "stride": 2, "padding": 1}, shape=(2, 3, 4, 5)),
        Case("gaps", {"kernel_size": 2, "stride": 3}, shape=(1, 2, 3, 4)),
        Case("dense", {"kernel_size": 2, "stride": 1}, shape=(1, 2, 4, 5)),
        Case("uneven", {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)}, shape=(1, 2, 4, 5)),
        Case("1x1", {"kernel_size": 2}, shape=(2, 3, 1, 1)),
        Case("1d", {"kernel_size": 3, "stride": 2, "padding": 1}, shape=(2, 3, 6)),
        Case("3d", {"kernel_size": 2}, shape=(1, 2, 2, 3, 4)),
        Case("3d-padded", {"kernel_size": 3, "stride": 2, "padding": 1}, shape=(1, 2, 3, 4, 3)),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "stride": 0}, ValueError, "stride must be a positive int"),
        Limit({"kernel_size": 2, "padding": 2}, ValueError, "at most half of the kernel's extent"),
        Limit({"kernel_size": (2, 2, 2)}, ValueError, "a tuple of 2"),
    ),
    notes=(
        "Indices count inside a plane, as torch's poolings return them; ONNX's own MaxUnpool counts over the tensor.",
        "A graph takes a negative index as counted from the end of the plane; the layer refuses it.",
    ),
)
