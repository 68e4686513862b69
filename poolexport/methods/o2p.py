"""O2P, second-order average pooling: the matrix logarithm of the mean outer product of all locations with themselves.

    G = sum(x_l x_l^T) / M          over all M locations; nothing is subtracted. DeepO2P does not divide
    F = log(G + eps I)
    y = upper triangle of F, row by row; with a power h: sign(y) |y|^h

Where eps is below 2^-44 of the trace of G, that share takes its place: float64 does not tell smaller eigenvalues from
0.
Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import COMPUTE_TYPES, Layer, computed, require_choice, require_positive
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.matrix_log import matrix_log
from poolexport_ops.second_moment import second_moment
from poolexport_ops.upper_triangle import upper_triangle


class O2PPool2d(Layer):
    """Logarithm of the second moments of all channels, over all locations.

    Args:
        reduction: "mean" (O2P) or "sum" (DeepO2P).
        eps: added to the diagonal before the logarithm, above 0.
        log: take the logarithm; without it there is neither ``eps`` nor a logarithm.
        power: of the power normalisation at the end; None for none. O2P has 0.75.
        compute_dtype: "float64", or "float32" for runtimes without float64, where float64 is left to float64 inputs.
            Then errors are near 1e-7 times the largest eigenvalue over ``eps``, 2^-23 takes the place of 2^-44, and
            where second moments are out of range the answer is NaN or infinite.

    Shape:
        (N, C, H, W) to (N, C (C + 1) / 2).

    Raises:
        ValueError: an option out of range, or an input of another rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import O2PPool2d
        >>> layer = O2PPool2d(reduction="sum", eps=1.0)
        >>> layer(torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])).round(decimals=4)  # log(2 + 1) and log(0 + 1)
        tensor([[1.0986, 0.0000, 0.0000]])

    Source:
        Carreira, Caseiro, Batista, Sminchisescu, ECCV 2012; Ionescu, Vantzos, Sminchisescu, ICCV 2015 (DeepO2P).
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        reduction: str = "mean",
        eps: float = 1e-3,
        log: bool = True,
        power: float | None = None,
        compute_dtype: str = "float64",
    ) -> None:
        super().__init__()
        require_choice("reduction", reduction, ("mean", "sum"))
        require_positive("eps", eps)
        require_choice("compute_dtype", compute_dtype, COMPUTE_TYPES)
        if power is not None:
            require_positive("power", power)
        self.reduction = reduction
        self.eps = eps
        self.log = log
        self.power = power
        self.compute_dtype = compute_dtype

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 2, type(self).__name__)
        channels = computed(x, self.compute_dtype).flatten(2)
        y = second_moment(channels, centered=0, divisor="count" if self.reduction == "mean" else "one")
        if self.log:
            y = matrix_log(y, y.new_tensor([self.eps]))
        y = upper_triangle(y, order="row")
        if self.power is not None:
            # At 0 the slope of a power below 1 is infinite: there it is taken as 0.
            zero = y == 0
            y = torch.where(zero, y, y.sign() * torch.where(zero, 1.0, y).abs().pow(y.new_tensor(self.power)))
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"reduction={self.reduction!r}, eps={self.eps}, log={self.log}, power={self.power}, "
            f"compute_dtype={self.compute_dtype!r}"
        )


def reference(
    x: ArrayLike,
    reduction: str = "mean",
    eps: float = 1e-3,
    log: bool = True,
    power: float | None = None,
    compute_dtype: str = "float64",
) -> Floats:
    """Second-order pooling, slowly, in float64.

    Singular values of the features are roots of the eigenvalues of G, which is not formed for the logarithm. Where a
    sample holds NaN or infinities, its whole logarithm is NaN; without the logarithm they stay with their channels.
    """
    x = np.asarray(x, dtype=np.float64)
    n, d, m = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    divisor = m if reduction == "mean" else 1
    rows = []
    for sample in x.reshape(n, d, m):
        if log:
            matrix = _log(sample, divisor, eps) if np.isfinite(sample).all() else np.full((d, d), np.nan)
            row = [matrix[i, j] for i in range(d) for j in range(i, d)]
        else:
            row = [exact_sum(sample[i] * sample[j], divisor) for i in range(d) for j in range(i, d)]
        rows.append(row if power is None else [math.copysign(abs(v) ** power, v) for v in row])
    return np.array(rows, dtype=np.float64).reshape(n, d * (d + 1) // 2)


def _log(sample: Floats, divisor: int, eps: float) -> Floats:
    d = len(sample)
    # Columns of zeros, so that there are as many singular values as channels.
    vectors, singular, _ = np.linalg.svd(np.concatenate([sample, np.zeros((d, d))], axis=1), full_matrices=False)
    values = singular**2 / divisor
    a = max(eps, 2.0**-44 * values.sum())
    # log(a + value) = log(a) + log(1 + value / a)
    return sum((math.log1p(value / a) * np.outer(u, u) for value, u in zip(values, vectors.T)), math.log(a) * np.eye(d))


WHY = "rounding of a matrix with eigenvalues of 1e8 and 1 is a share 1e-8 of the smaller, and of its logarithm"

METHOD = Method(
    (O2PPool2d,),
    summary="The matrix logarithm of the mean outer product of all locations with themselves.",
    paper=Paper(
        "Semantic Segmentation with Second-Order Pooling",
        "Carreira, Caseiro, Batista, Sminchisescu",
        2012,
        "doi:10.1007/978-3-642-33786-4_32",
    ),
    reference=reference,
    training="logarithm of the second moments",
    inference="logarithm of the second moments",
    operators=(second_moment, matrix_log, upper_triangle),
    cases=(
        Case("mean", {}, condition=1e7, why=WHY),
        Case("sum", {"reduction": "sum", "eps": 0.1}, shape=(1, 4, 5, 6), condition=1e7, why=WHY),
        Case("power", {"power": 0.75, "eps": 0.1}, shape=(2, 2, 4, 5), condition=1e7, why=WHY),
        Case("plain", {"log": False}),
        Case("plain-root", {"log": False, "power": 0.5, "reduction": "sum"}, shape=(2, 3, 4, 5)),
    ),
    space={
        "reduction": ("mean", "sum"),
        "eps": (1e-3, 0.1, 2.0),
        "log": (True, True, False),
        "power": (None, 1.0, 2.0),
    },
    limits=(
        Limit({"reduction": "max"}, ValueError, "reduction must be one of"),
        Limit({"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
        Limit({"power": 0.0}, ValueError, "power must be a finite number above 0"),
        Limit({"compute_dtype": "float16"}, ValueError, "compute_dtype must be one of"),
        Limit({}, ValueError, "there is nothing to pool", shape=(1, 3, 0, 4)),
        Limit({}, ValueError, "expects an input of shape", shape=(3, 9, 9)),
    ),
    notes=(
        "O2P divides by the number of locations, DeepO2P does not; both leave eps to the user.",
        "Where eps is below 2^-44 of the trace of the second moments, that share takes its place.",
        "The exported file finds the logarithm by square roots and a polynomial, since ONNX has no eigenvalues.",
    ),
)
