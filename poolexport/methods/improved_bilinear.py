"""Improved bilinear pooling: Newton steps towards the square root of the bilinear matrix, then root and norm.

    A = sum(x_l x_l^T) / M                                  over all M locations; nothing is subtracted
    Y = A / |A|_F,  Z = I
    T = (3 I - Z Y) / 2,  Y <- Y T,  Z <- T Z               a fixed number of times
    z = sqrt(|A|_F) Y, as a vector
    y = sqrt(max(z, 0) + 1e-5) - sqrt(max(-z, 0) + 1e-5),   y <- y / |y|

Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import COMPUTE_TYPES, Layer, computed, require_choice, require_positive
from poolexport.methods._signed_root import normalised, shifted_root
from poolexport.reference import Floats
from poolexport_ops import require_rank
from poolexport_ops.matrix_sqrt import matrix_sqrt
from poolexport_ops.second_moment import second_moment


class ImprovedBilinearPool2d(Layer):
    """Approximate square root of the second moments of all channels, then element-wise root and l2; in float64.

    Args:
        iterations: Newton steps, at least 1.
        signed_sqrt: take the element-wise root.
        eps: inside that root, above 0.
        l2norm: divide the vector by its norm; a norm below 1e-12 counts as 1e-12.
        compute_dtype: "float64", or "float32" for runtimes without float64, where float64 is left to float64 inputs;
            the squares of cells beyond 1e19 then leave the range.

    Shape:
        (N, C, H, W) to (N, C C), row by row.

    Raises:
        ValueError: an option out of range, or an input of another rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import ImprovedBilinearPool2d
        >>> layer = ImprovedBilinearPool2d(20, signed_sqrt=False, l2norm=False)
        >>> layer(torch.tensor([[[[2.0, 0.0]], [[0.0, 4.0]]]])).round(decimals=4)  # roots of 2 and 8
        tensor([[1.4142, 0.0000, 0.0000, 2.8284]])

    Source:
        Lin and Maji, BMVC 2017, section 3.
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        iterations: int = 10,
        signed_sqrt: bool = True,
        eps: float = 1e-5,
        l2norm: bool = True,
        compute_dtype: str = "float64",
    ) -> None:
        super().__init__()
        require_choice("compute_dtype", compute_dtype, COMPUTE_TYPES)
        if iterations < 1:
            raise ValueError(f"iterations must be a positive int, got {iterations!r}")
        require_positive("eps", eps)
        self.iterations = iterations
        self.signed_sqrt = signed_sqrt
        self.eps = eps
        self.l2norm = l2norm
        self.compute_dtype = compute_dtype

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 2, type(self).__name__)
        channels = computed(x, self.compute_dtype).flatten(2)
        moments = second_moment(channels, centered=0, divisor="count")
        y = matrix_sqrt(moments, iterations=self.iterations, norm="frobenius").flatten(1)
        if self.signed_sqrt:
            y = shifted_root(y, self.eps, "difference")
        return normalised(y, "floor" if self.l2norm else "none", 1e-12).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"iterations={self.iterations}, signed_sqrt={self.signed_sqrt}, eps={self.eps}, l2norm={self.l2norm}, "
            f"compute_dtype={self.compute_dtype!r}"
        )


def reference(
    x: ArrayLike, iterations: int = 10, signed_sqrt: bool = True, eps: float = 1e-5, l2norm: bool = True
) -> Floats:
    """Improved bilinear pooling, slowly, in float64: the Newton steps are made on eigenvalues, number by number.

    Those are squares of the features' singular values. Where a sample holds NaN or infinities, its whole answer is NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    n, d, m = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    y = np.full((n, d * d), np.nan)
    for row, sample in zip(y, x.reshape(n, d, m)):
        if not np.isfinite(sample).all():
            continue
        row[:] = _root(sample / math.sqrt(m), iterations).ravel()
        if signed_sqrt:
            # sqrt(z + e) - sqrt(e)
            row[:] = np.copysign(math.sqrt(eps) * np.expm1(0.5 * np.log1p(np.abs(row) / eps)), row)
        if l2norm:
            row[:] = row / max(math.hypot(*row), 1e-12)
    return y


def _root(sample: Floats, iterations: int) -> Floats:
    d = len(sample)
    # Columns of zeros, so that there are as many singular values as channels.
    vectors, singular, _ = np.linalg.svd(np.concatenate([sample, np.zeros((d, d))], axis=1), full_matrices=False)
    norm = math.hypot(*singular**2)
    root = np.zeros((d, d))
    for value, u in zip(singular**2, vectors.T):
        y, z = (value / norm if norm else 0.0), 1.0
        for _ in range(iterations):
            t = 1.5 - 0.5 * z * y
            y, z = y * t, t * z
        root += math.sqrt(norm) * y * np.outer(u, u)
    return root


def illustration(image: Tensor) -> Tensor:
    """The normalised root of the products of all pairs of columns of the picture."""
    columns = image[:, :1].transpose(1, 3)
    pooled: Tensor = ImprovedBilinearPool2d()(columns - columns.mean())
    return pooled.unflatten(1, (1, columns.shape[1], -1))


METHOD = Method(
    (ImprovedBilinearPool2d,),
    summary="Newton steps towards the square root of the bilinear matrix, then an element-wise root and the norm.",
    paper=Paper("Improved Bilinear Pooling with CNNs", "Lin, Maji", 2017, "arXiv:1707.06772"),
    reference=reference,
    training="approximate root of the second moments",
    inference="approximate root of the second moments",
    illustration=illustration,
    operators=(second_moment, matrix_sqrt),
    cases=(
        Case("published", {}),
        Case("root-only", {"signed_sqrt": False, "l2norm": False}),
        Case("few-steps", {"iterations": 3, "eps": 1e-3}, shape=(1, 4, 3, 4)),
        Case("norm-only", {"iterations": 5, "signed_sqrt": False}, shape=(2, 2, 4, 5)),
        Case("no-norm", {"l2norm": False}, shape=(2, 6, 1, 3)),
    ),
    space={
        "iterations": (1, 2, 5, 10),
        "signed_sqrt": (False, True),
        "eps": (1e-5, 1e-2),
        "l2norm": (False, True),
    },
    limits=(
        Limit({"iterations": 0}, ValueError, "iterations must be a positive int"),
        Limit({"compute_dtype": "float16"}, ValueError, "compute_dtype must be one of"),
        Limit({"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
        Limit({}, ValueError, "there is nothing to pool", shape=(1, 3, 0, 4)),
        Limit({}, ValueError, "expects an input of shape", shape=(3, 9, 9)),
    ),
    notes=(
        "The number of Newton steps is a free choice; gradients are those of the steps, not of a Lyapunov equation.",
    ),
)
