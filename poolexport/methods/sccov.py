"""SCCov (MSCP) pooling: the matrix logarithm of the channels' covariance.

    x_c <- x_c / (|x_c| + 1e-12)                     the norm is over all M locations of a channel; optional
    C = sum((x_l - mean) (x_l - mean)^T) / (M - 1)   over all locations, or / M
    F = log(C + eps I)
    y = (F_11 ... F_CC, sqrt(2) F_12, sqrt(2) F_13, sqrt(2) F_23, sqrt(2) F_14 ...)

Where eps is below 2^-44 of the trace of C, that share takes its place: float64 does not tell smaller eigenvalues from
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
from poolexport_ops.global_max_pool import global_max_pool
from poolexport_ops.matrix_log import matrix_log
from poolexport_ops.second_moment import second_moment
from poolexport_ops.upper_triangle import upper_triangle

VECTORS = ("official", "triu", "full")


class SCCovPool2d(Layer):
    """Logarithm of the covariance of all channels, over all locations.

    The defaults are those of the published networks; :meth:`survey` names the description without their additions. The
    multi-layer variant pools the concatenation of several maps, brought to one size by average pooling and to fewer
    channels by ``channel_group``.

    Args:
        eps: added to the diagonal of the covariance, above 0.
        l2norm: first divide every channel by its norm.
        unbiased: divide the covariance by M - 1 instead of M.
        vec: "official" is the diagonal, then the entries above it column by column, times sqrt(2); "triu" is the upper
            triangle row by row; "full" is the matrix.
        channel_group: first average groups of so many consecutive channels.
        compute_dtype: "float64", or "float32" for runtimes without float64, where float64 is left to float64 inputs.
            Then errors are near 1e-7 times the covariance's largest eigenvalue over ``eps``, 2^-23 takes the place of
            2^-44, and where the covariance is out of range the answer is NaN.

    Shape:
        (N, C, H, W) to (N, K (K + 1) / 2), or to (N, K, K) for "full", with K = C / channel_group.

    Raises:
        ValueError: an option out of range, an input of another rank, channels that are no whole number of groups, or an
            unbiased covariance of one location.

    Example:
        >>> import torch
        >>> from poolexport.nn import SCCovPool2d
        >>> layer = SCCovPool2d(eps=1.0, l2norm=False)
        >>> layer(torch.tensor([[[[1.0, -1.0]], [[0.0, 0.0]]]])).round(decimals=4)  # log(2 + 1), log(0 + 1)
        tensor([[1.0986, 0.0000, 0.0000]])

    Source:
        He, Fang, Li, Plaza, Plaza, IEEE TNNLS 2019; package henanjun/SccovNet; He et al., IEEE TGRS 2018 (MSCP).
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        eps: float = 5e-3,
        l2norm: bool = True,
        unbiased: bool = True,
        vec: str = "official",
        channel_group: int = 1,
        compute_dtype: str = "float64",
    ) -> None:
        super().__init__()
        require_positive("eps", eps)
        require_choice("vec", vec, VECTORS)
        require_choice("compute_dtype", compute_dtype, COMPUTE_TYPES)
        if channel_group < 1:
            raise ValueError(f"channel_group must be a positive int, got {channel_group!r}")
        self.eps = eps
        self.l2norm = l2norm
        self.unbiased = unbiased
        self.vec = vec
        self.channel_group = channel_group
        self.compute_dtype = compute_dtype

    @classmethod
    def survey(cls, eps: float = 5e-3) -> SCCovPool2d:
        """The layer as the papers describe it: divided by M, no norm, the plain upper triangle."""
        return cls(eps, l2norm=False, unbiased=False, vec="triu")

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 2, type(self).__name__)
        if not torch.compiler.is_compiling():
            if self.unbiased and x.shape[2] * x.shape[3] < 2:
                raise ValueError(f"an unbiased covariance needs two locations, got an input of {tuple(x.shape)}")
            if x.shape[1] % self.channel_group:
                raise ValueError(f"{x.shape[1]} channels are no whole number of groups of {self.channel_group}")
        channels = self._channels(computed(x, self.compute_dtype))
        if self.l2norm:
            channels = _normalized(channels)
        divisor = "count_minus_one" if self.unbiased else "count"
        covariance = second_moment(channels, centered=1, divisor=divisor)
        log = matrix_log(covariance, covariance.new_tensor([self.eps]))
        if self.vec != "full":
            official = self.vec == "official"
            log = upper_triangle(log, order="diagonal_first" if official else "row", isometric=int(official))
        return log.to(x.dtype)

    def _channels(self, x: Tensor) -> Tensor:
        if self.channel_group == 1:
            return x.flatten(2)
        groups = x.flatten(2).unflatten(1, (x.shape[1] // self.channel_group, self.channel_group))
        return groups.mean(2)

    def extra_repr(self) -> str:
        return (
            f"eps={self.eps}, l2norm={self.l2norm}, unbiased={self.unbiased}, vec={self.vec!r}, "
            f"channel_group={self.channel_group}, compute_dtype={self.compute_dtype!r}"
        )


def _normalized(channels: Tensor) -> Tensor:
    """Channels over their norm, by way of their largest cell: no square leaves the range."""
    largest = global_max_pool(channels.abs(), axes=[2], keepdims=1).detach()
    largest = torch.where(largest == 0, 1.0, largest)
    shares = channels / largest
    square = shares.square().sum(2, keepdim=True)
    norm = torch.where(square == 0, 1.0, square).sqrt()
    return shares / (norm + channels.new_tensor(1e-12) / largest)


def reference(
    x: ArrayLike,
    eps: float = 5e-3,
    l2norm: bool = True,
    unbiased: bool = True,
    vec: str = "official",
    channel_group: int = 1,
    compute_dtype: str = "float64",
) -> Floats:
    """SCCov pooling, slowly, in float64, without a mean and without a covariance matrix.

    Half the mean square of the differences of all pairs of locations is a covariance, so singular values of those
    differences are roots of its eigenvalues. Where a sample holds NaN or infinities, its whole answer is NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    samples = x.reshape(x.shape[0], x.shape[1] // channel_group, channel_group, math.prod(x.shape[2:]))
    d = samples.shape[1]
    logs = np.full((len(samples), d, d), np.nan)
    for n, groups in enumerate(samples):
        if np.isfinite(groups).all():
            channels = exact_sum(np.moveaxis(groups, 1, -1), channel_group)
            if l2norm:
                channels = np.array([row / (math.hypot(*row) + 1e-12) for row in channels])
            logs[n] = _log(channels, eps, unbiased)
    if vec == "full":
        return logs
    if vec == "triu":
        return np.array([[log[i, j] for i in range(d) for j in range(i, d)] for log in logs]).reshape(
            len(x), d * (d + 1) // 2
        )
    above = [(i, j) for j in range(d) for i in range(j)]
    rows = [[*np.diag(log), *(math.sqrt(2) * log[place] for place in above)] for log in logs]
    return np.array(rows).reshape(len(x), d * (d + 1) // 2)


def _log(channels: Floats, eps: float, unbiased: bool) -> Floats:
    d, m = channels.shape
    first, second = np.triu_indices(m, 1)
    # Columns of zeros, so that there are as many singular values as channels.
    pairs = np.concatenate([channels[:, first] - channels[:, second], np.zeros((d, d))], axis=1)
    vectors, singular, _ = np.linalg.svd(pairs, full_matrices=False)
    values = (singular / math.sqrt(m * (m - 1) if unbiased else m * m)) ** 2
    a = max(eps, 2.0**-44 * values.sum())
    # log(a + value) = log(a) + log(1 + value / a)
    return sum((math.log1p(value / a) * np.outer(u, u) for value, u in zip(values, vectors.T)), math.log(a) * np.eye(d))


WHY = "rounding of a matrix with eigenvalues of 1e8 and 1 is a share 1e-8 of the smaller, and of its logarithm"


def illustration(image: Tensor) -> Tensor:
    """The logarithm of the covariance of all pairs of columns of the picture."""
    columns = image[:, :1].transpose(1, 3)
    pooled: Tensor = SCCovPool2d(vec="full")(columns)
    return pooled.unsqueeze(1)


METHOD = Method(
    (SCCovPool2d,),
    summary="The matrix logarithm of the channels' covariance.",
    paper=Paper(
        "Skip-Connected Covariance Network for Remote Sensing Scene Classification",
        "He, Fang, Li, Plaza, Plaza",
        2020,
        "doi:10.1109/TNNLS.2019.2920374",
    ),
    reference=reference,
    training="logarithm of the covariance",
    inference="logarithm of the covariance",
    illustration=illustration,
    operators=(second_moment, matrix_log, upper_triangle, global_max_pool),
    cases=(
        Case("network", {}),
        Case("survey", {"unbiased": False, "l2norm": False, "vec": "triu"}, condition=1e7, why=WHY),
        Case("matrix", {"eps": 0.1, "vec": "full"}, shape=(1, 2, 3, 4)),
        Case("few-locations", {"eps": 1e-2}, shape=(2, 6, 1, 3)),
        Case("groups", {"channel_group": 2}, shape=(2, 6, 5, 4)),
        Case("single", {"compute_dtype": "float32"}, shape=(2, 4, 5, 6)),
    ),
    space={
        "eps": (1e-3, 5e-3, 0.1, 2.0),
        "l2norm": (False, True),
        "unbiased": (False, True),
        "vec": VECTORS,
        "channel_group": (1, 1, 3),
    },
    limits=(
        Limit({"eps": 0.0}, ValueError, "eps must be a finite number above 0"),
        Limit({"vec": "lower"}, ValueError, "vec must be one of"),
        Limit({"channel_group": 0}, ValueError, "channel_group must be a positive int"),
        Limit({"channel_group": 2}, ValueError, "no whole number of groups", shape=(1, 3, 4, 4)),
        Limit({"compute_dtype": "float16"}, ValueError, "compute_dtype must be one of"),
        Limit({}, ValueError, "an unbiased covariance needs two locations", shape=(1, 3, 1, 1), file="numbers"),
        Limit({}, ValueError, "expects an input of shape", shape=(3, 9, 9)),
    ),
    notes=(
        "The papers divide by M and know neither eps nor the norm of channels; the published code has all three.",
        "The published code takes singular values, which are magnitudes of eigenvalues; none is negative here.",
        "Where eps is below 2^-44 of the trace of the covariance, that share takes its place.",
        "The exported file finds the logarithm by square roots and a polynomial, since ONNX has no eigenvalues.",
    ),
)
