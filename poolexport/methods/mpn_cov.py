"""MPN-COV: the covariance of the channels, its eigenvalues raised to a power.

    C = sum (x_t - mean)(x_t - mean)^T / M      over all M locations of the map, biased
    C = V diag(l) V^T      y = V diag((l + epsilon)^alpha) V^T over the eigenvalues above spacing(l_1)

The vector holds the upper triangle column by column. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, require_positive
from poolexport.reference import Floats, power_of_two, symmetric_eigen
from poolexport_ops import require_rank
from poolexport_ops.second_moment_power import second_moment_power

PRECISIONS = ("float32", "float64")


class MPNCOVPool2d(Layer):
    """Matrix power normalised covariance of the channels, by an exact decomposition.

    Computed in float64 whatever the type of the input, and without forming the covariance. An eigenvalue not above the
    spacing of floating-point numbers at the largest one counts as 0, and ``epsilon`` is not added to it; a constant map
    gives 0. A NaN or an infinity makes all numbers of its sample NaN. Gradients are exact where eigenvalues are equal,
    and 0 for a constant map.

    Args:
        alpha: the power, above 0; 0.5 is the published one.
        epsilon: added to the eigenvalues that are kept; the published layer has 1e-12, its training script 0.
        precision: "float32" or "float64", whose numbers' spacing decides which eigenvalues count.

    Shape:
        (N, C, H, W) to (N, C (C + 1) / 2).

    Raises:
        ValueError: an option out of range, an input of another rank, or without locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import MPNCOVPool2d
        >>> MPNCOVPool2d()(torch.tensor([[[[3.0, 0.0, -3.0, 0.0]], [[0.0, 5.0, 0.0, -5.0]]]])).round(decimals=4)
        tensor([[2.1213, 0.0000, 3.5355]])

    Source:
        Li, Xie, Wang, Zuo, ICCV 2017; the authors' MatConvNet layer with ``regu_method = 'power'``.
    """

    rank: ClassVar[int] = 2

    def __init__(self, alpha: float = 0.5, epsilon: float = 1e-12, precision: str = "float32") -> None:
        super().__init__()
        require_positive("alpha", alpha)
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number, not below 0, got {epsilon!r}")
        require_choice("precision", precision, PRECISIONS)
        self.alpha = alpha
        self.epsilon = epsilon
        self.precision = precision

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 2, type(self).__name__)
        if not torch.compiler.is_compiling() and 0 in x.shape[2:]:
            raise ValueError(
                f"there is nothing to pool for {type(self).__name__} in an input of shape {tuple(x.shape)}"
            )
        cells = x.double().flatten(2)
        # From the first cell on, so that the differences of a constant map are exactly 0.
        cells = cells - cells[:, :, :1]
        centred = cells - cells.mean(2, keepdim=True)
        alpha, epsilon = repr(float(self.alpha)), repr(float(self.epsilon))
        power = second_moment_power(centred, alpha=alpha, epsilon=epsilon, precision=self.precision, layout="columns")
        return power.to(x.dtype)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, epsilon={self.epsilon}, precision={self.precision!r}"


def reference(x: ArrayLike, alpha: float = 0.5, epsilon: float = 1e-12, precision: str = "float32") -> Floats:
    """MPN-COV, slowly: exact means, the covariance, and its eigenvalues, in numpy's longest float.

    Samples with NaN or infinities are NaN all over.
    """
    x = np.asarray(x, dtype=np.float64)
    channels = x.shape[1]
    y = np.full((len(x), channels * (channels + 1) // 2), np.nan)
    digits = {"float32": 23, "float64": 52}[precision]
    for n, sample in enumerate(x):
        if not np.isfinite(sample).all():
            continue
        centred = np.array([_centred(plane.ravel().tolist()) for plane in sample], dtype=np.longdouble)
        values, vectors = symmetric_eigen(centred @ centred.T / centred.shape[1])
        spacing = power_of_two(values[0].astype(np.float64)) * 2.0**-digits
        power = np.zeros((channels, channels), dtype=np.longdouble)
        for value, vector in zip(values, vectors.T):
            if value > spacing:
                power += (value + np.longdouble(epsilon)) ** np.longdouble(alpha) * np.outer(vector, vector)
        y[n] = [power[i, j] for j in range(channels) for i in range(j + 1)]
    return y


def _centred(row: list[float]) -> list[float]:
    mean = sum(map(Fraction, row)) / len(row)
    return [float(Fraction(cell) - mean) for cell in row]


METHOD = Method(
    (MPNCOVPool2d,),
    summary="The covariance of the channels, with its eigenvalues raised to a power, as a vector.",
    paper=Paper(
        "Is Second-Order Information Helpful for Large-Scale Visual Recognition?",
        "Li, Xie, Wang, Zuo",
        2017,
        "arXiv:1703.08050",
    ),
    reference=reference,
    training="matrix power of the covariance",
    inference="matrix power of the covariance",
    operators=(second_moment_power,),
    cases=(
        Case("root", {}, shape=(2, 4, 7, 8)),
        Case("script", {"epsilon": 0.0}),
        Case("quarter", {"alpha": 0.25, "epsilon": 1e-3}, shape=(1, 3, 5, 6)),
        Case("covariance", {"alpha": 1.0, "epsilon": 0.0}),
        Case("double", {"alpha": 0.5, "precision": "float64"}),
        Case("odd-power", {"alpha": 0.3}, shape=(2, 5, 6, 7)),
        Case("few-cells", {}, shape=(2, 5, 1, 3)),
        Case("1x1", {}, shape=(1, 3, 1, 1)),
    ),
    space={"alpha": (0.25, 0.5, 0.7, 1.0, 2.0), "epsilon": (0.0, 1e-12, 1e-3), "precision": PRECISIONS},
    limits=(
        Limit({"alpha": 0.0}, ValueError, "alpha must be a finite number above 0"),
        Limit({"epsilon": -1e-3}, ValueError, "epsilon must be a finite number, not below 0"),
        Limit({"precision": "float16"}, ValueError, "precision must be one of"),
        Limit({}, ValueError, "nothing to pool", shape=(2, 3, 0, 5)),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "The vector goes through the upper triangle by columns, as the authors' layer does; their later iSQRT-COV goes "
        "by rows.",
        "The authors' backward pass drops the terms of equal eigenvalues, which divide by 0 there; here they have "
        "their limits.",
        "The exported form finds eigenvalues by rotations in a Loop, in float64.",
    ),
)
