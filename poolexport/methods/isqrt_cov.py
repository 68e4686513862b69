"""iSQRT-COV pooling (fast MPN-COV): a few Newton-Schulz steps towards the square root of the channels' covariance.

    C = sum((x_l - mean) (x_l - mean)^T) / M        over all M locations
    A = C / tr C,  Y = A,  Z = I
    T = (3 I - Z Y) / 2,  Y <- Y T,  Z <- T Z       a fixed number of times
    y = upper triangle of sqrt(tr C) Y, row by row

Five steps do not reach the root, and the method does not mean them to. Training and inference are the same, but for the
batch normalisation of the optional reduction of channels, relu(norm(conv(x))), before the covariance.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import COMPUTE_TYPES, Layer, computed, require_choice
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.matrix_sqrt import matrix_sqrt
from poolexport_ops.second_moment import second_moment
from poolexport_ops.upper_triangle import upper_triangle


class ISQRTCOVPool2d(Layer):
    """Approximate square root of the covariance of all channels, over all locations; computed in float64.

    Args:
        iterations: Newton-Schulz steps, at least 1: ``iterNum`` of the published code, which has 3 by default; all
            published networks have 5.
        is_sqrt: take the root; without it the answer is the covariance.
        is_vec: answer with the upper triangle, row by row, not the whole matrix.
        flatten: leave out the last axis, of length 1, that the published code's vectors have.
        input_dim: channels of the input; needed for ``dimension_reduction``.
        dimension_reduction: first bring the input to so many channels, by a 1x1 convolution without bias, batch
            normalisation and ReLU; None for the input as it is.
        compute_dtype: "float64", or "float32" for runtimes without float64, where float64 is left to float64 inputs;
            the squares of cells beyond 1e19 then leave the range.

    Parameters:
        conv_dr_block: with ``dimension_reduction`` the convolution, the normalisation and the ReLU, under the published
            code's names, whose state loads.

    Shape:
        (N, C, H, W) to (N, K (K + 1) / 2, 1), without the last axis for ``flatten``, or to (N, K, K) without
        ``is_vec``; K is C, or ``dimension_reduction``.

    Raises:
        ValueError: an option out of range, or an input of another rank or number of channels.

    Example:
        >>> import torch
        >>> from poolexport.nn import ISQRTCOVPool2d
        >>> layer = ISQRTCOVPool2d(1, flatten=True)
        >>> layer(torch.tensor([[[[2.0, -2.0]], [[0.0, 0.0]]]]))  # tr C = 4, A = diag(1, 0): 2 (3 - 1) / 2
        tensor([[2., 0., 0.]])

    Source:
        Li, Xie, Wang, Gao, CVPR 2018; package jiangtaoxie/fast-MPN-COV (MPNCOV).
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        iterations: int = 5,
        is_sqrt: bool = True,
        is_vec: bool = True,
        flatten: bool = False,
        input_dim: int | None = None,
        dimension_reduction: int | None = None,
        compute_dtype: str = "float64",
    ) -> None:
        super().__init__()
        require_choice("compute_dtype", compute_dtype, COMPUTE_TYPES)
        sizes = {"iterations": iterations, "input_dim": input_dim, "dimension_reduction": dimension_reduction}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if input_dim is None and dimension_reduction is not None:
            raise ValueError(f"dimension_reduction={dimension_reduction!r} needs input_dim, the channels of the input")
        self.iterations = iterations
        self.is_sqrt = is_sqrt
        self.is_vec = is_vec
        self.flatten = flatten
        self.input_dim = input_dim
        self.dimension_reduction = dimension_reduction
        self.compute_dtype = compute_dtype
        if input_dim is not None and dimension_reduction is not None:
            self.conv_dr_block = nn.Sequential(
                nn.Conv2d(input_dim, dimension_reduction, 1, bias=False), nn.BatchNorm2d(dimension_reduction), nn.ReLU()
            )

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 2, type(self).__name__)
        channels = computed(x, self.compute_dtype).flatten(2)
        if self.input_dim not in (None, x.shape[1]):
            raise ValueError(f"the layer has {self.input_dim} channels, the input has {x.shape[1]}")
        if self.dimension_reduction is not None:
            channels = self._reduced(channels)
        y = second_moment(channels, centered=1, divisor="count")
        if self.is_sqrt:
            y = matrix_sqrt(y, iterations=self.iterations, norm="trace")
        if self.is_vec:
            y = upper_triangle(y, order="row")
            y = y if self.flatten else y.unsqueeze(2)
        return y.to(x.dtype)

    def _reduced(self, x: Tensor) -> Tensor:
        conv, norm, _ = self.conv_dr_block
        # As a product in float64: the covariance is that of differences, and runtimes have no such convolution. One
        # matrix per sample, because onnxruntime refuses a product of batches 1 and 0.
        weight = cast(Tensor, conv.weight).to(x.dtype).flatten(1).expand(x.shape[0], -1, -1)
        return torch.relu(_normalized(cast(nn.BatchNorm2d, norm), weight @ x))

    def extra_repr(self) -> str:
        return (
            f"iterations={self.iterations}, is_sqrt={self.is_sqrt}, is_vec={self.is_vec}, flatten={self.flatten}, "
            f"input_dim={self.input_dim}, dimension_reduction={self.dimension_reduction}, "
            f"compute_dtype={self.compute_dtype!r}"
        )


def _normalized(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch normalisation of (N, C, M)."""
    if norm.training:
        return cast(Tensor, norm(x.to(norm.weight.dtype).unsqueeze(3))).squeeze(3).to(x.dtype)
    mean, var, weight, bias = (
        cast(Tensor, t).to(x.dtype).reshape(1, -1, 1)
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) * (weight / torch.sqrt(var + var.new_tensor(norm.eps))) + bias


def reference(
    x: ArrayLike,
    iterations: int = 5,
    is_sqrt: bool = True,
    is_vec: bool = True,
    flatten: bool = False,
    input_dim: int | None = None,
    dimension_reduction: int | None = None,
    **state: Floats,
) -> Floats:
    """iSQRT-COV pooling, slowly, in float64: the Newton-Schulz steps are made on eigenvalues, number by number.

    Those are squares of the singular values of the differences of all pairs of locations. Where a sample holds NaN or
    infinities, its whole root is NaN; in the covariance they stay with their channels.
    """
    x = np.asarray(x, dtype=np.float64)
    if dimension_reduction is not None:
        x = _reduce(x, state)
    n, d, m = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    first, second = np.triu_indices(m)
    answers = np.full((n, d, d), np.nan)
    for answer, sample in zip(answers, x.reshape(n, d, m)):
        pairs = sample[:, first] - sample[:, second]
        if not is_sqrt:
            for i, j in np.ndindex(d, d):
                answer[i, j] = exact_sum(pairs[i] * pairs[j], m * m)
        elif np.isfinite(sample).all():
            answer[:] = _root(pairs / m, iterations)
    if not is_vec:
        return answers
    vectors = np.array([[a[i, j] for i in range(d) for j in range(i, d)] for a in answers])
    return vectors.reshape(n, d * (d + 1) // 2, *() if flatten else (1,))


def _reduce(x: Floats, state: dict[str, Floats]) -> Floats:
    weight, gain, bias, mean, var = (
        state[f"conv_dr_block.{name}"] for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    )
    y = np.empty((len(x), len(weight), *x.shape[2:]))
    for k in range(len(weight)):
        mixed = sum(weight[k, c, 0, 0] * x[:, c] for c in range(x.shape[1]))
        y[:, k] = np.maximum(gain[k] * (mixed - mean[k]) / math.sqrt(var[k] + 1e-5) + bias[k], 0.0)
    return y


def _root(pairs: Floats, iterations: int) -> Floats:
    d = len(pairs)
    # Columns of zeros, so that there are as many singular values as channels.
    vectors, singular, _ = np.linalg.svd(np.concatenate([pairs, np.zeros((d, d))], axis=1), full_matrices=False)
    trace = math.fsum(singular**2)
    root = np.zeros((d, d))
    for value, u in zip(singular**2, vectors.T):
        y, z = (value / trace if trace else 0.0), 1.0
        for _ in range(iterations):
            t = 1.5 - 0.5 * z * y
            y, z = y * t, t * z
        root += math.sqrt(trace) * y * np.outer(u, u)
    return root


def _trained(channels: int, reduced: int) -> dict[str, Any]:
    """Numbers that a trained reduction could hold."""
    rng = np.random.default_rng(0)
    return {
        "conv_dr_block.0.weight": rng.standard_normal((reduced, channels, 1, 1)),
        "conv_dr_block.1.weight": rng.uniform(0.5, 1.5, reduced),
        "conv_dr_block.1.bias": 0.5 + 0.2 * rng.standard_normal(reduced),
        "conv_dr_block.1.running_mean": 0.1 * rng.standard_normal(reduced),
        "conv_dr_block.1.running_var": rng.uniform(0.5, 2, reduced),
    }


def illustration(image: Tensor) -> Tensor:
    """The approximate root of the covariance of all pairs of columns of the picture."""
    columns = image[:, :1].transpose(1, 3)
    pooled: Tensor = ISQRTCOVPool2d(is_vec=False)(columns)
    return pooled.unsqueeze(1)


METHOD = Method(
    (ISQRTCOVPool2d,),
    summary="A few Newton-Schulz steps towards the square root of the channels' covariance.",
    paper=Paper(
        "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization",
        "Li, Xie, Wang, Gao",
        2018,
        "arXiv:1712.01034",
    ),
    reference=reference,
    training="approximate root of the covariance",
    inference="approximate root of the covariance",
    illustration=illustration,
    operators=(second_moment, matrix_sqrt, upper_triangle),
    cases=(
        Case("network", {}),
        Case("one-step", {"iterations": 1, "flatten": True}, shape=(1, 2, 4, 5)),
        Case("matrix", {"iterations": 3, "is_vec": False}, shape=(2, 5, 4, 3)),
        Case("few-locations", {"flatten": True}, shape=(2, 6, 1, 3)),
        Case("covariance", {"is_sqrt": False}, shape=(2, 3, 4, 5)),
        Case(
            "reduced",
            {"input_dim": 4, "dimension_reduction": 3},
            shape=(2, 4, 5, 6),
            state=_trained(4, 3),
            condition=1e4,
            why="the covariance is that of features near 0.5 which differ by 1e-5",
        ),
    ),
    space={
        "iterations": (1, 2, 3, 5, 8),
        "is_sqrt": (True, True, False),
        "is_vec": (True, False),
        "flatten": (True, False),
    },
    limits=(
        Limit({"iterations": 0}, ValueError, "iterations must be a positive int"),
        Limit({"dimension_reduction": 4}, ValueError, "dimension_reduction=4 needs input_dim"),
        Limit({"compute_dtype": "float16"}, ValueError, "compute_dtype must be one of"),
        Limit({"input_dim": 4, "dimension_reduction": 0}, ValueError, "dimension_reduction must be a positive int"),
        Limit({}, ValueError, "there is nothing to pool", shape=(1, 3, 0, 4)),
        Limit({}, ValueError, "expects an input of shape", shape=(3, 9, 9)),
    ),
    notes=(
        "The published code divides 0 by 0 on a map without variance; here the answer is 0.",
        "The published code subtracts the mean by an M x M matrix of single precision, even for double input.",
        "MPN-COV by eigenvalues orders its vector by columns, this one by rows.",
    ),
)
