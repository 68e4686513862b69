"""Compact bilinear pooling: sketches of the products of all pairs of channels, summed over the locations.

    tensor sketch       z_t = sum of s1_i s2_j x_i x_j over all pairs with (h1_i + h2_j) mod d = t
    random Maclaurin    z_k = c (w1_k . x) (w2_k . x) with w of signs; c = 1 / sqrt(d) in the paper, 1 / d in its code
    y = z / |z| after the root sign(z) sqrt|z|      z summed over all locations, or at each of them

h are hashes to d bins and s signs, drawn once and saved with the layer. Training and inference are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import require_choice
from poolexport.methods._sketch import SketchLayer, drawn, require_seed
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.compact_bilinear import compact_bilinear

PROJECTIONS = ("tensor_sketch", "random_maclaurin")


class _CompactBilinear(SketchLayer):
    rank: ClassVar[int] = 2
    rand_w_1: Tensor
    rand_w_2: Tensor

    def __init__(
        self,
        channels: tuple[int, int],
        output_dim: int,
        projection: str,
        sum_pool: bool,
        seed: int,
        given: dict[str, ArrayLike | None],
        learn: bool,
        scale: str,
        **finish: Any,
    ) -> None:
        super().__init__(channels, output_dim, **finish)
        require_choice("projection", projection, PROJECTIONS)
        require_choice("scale", scale, ("paper", "code"))
        self.projection = projection
        self.sum_pool = sum_pool
        self.scale = scale
        if projection == "tensor_sketch":
            self.hold_sketches(seed, given, learn)
            return
        unused = [name for name, numbers in given.items() if numbers is not None]
        if unused:
            raise ValueError(f"{unused[0]} belongs to projection='tensor_sketch'")
        require_seed(seed)
        for end, size in enumerate(channels):
            signs = 2 * drawn(seed + 2 * end, 2, (size, output_dim)) - 1
            self.hold(f"rand_w_{end + 1}", torch.as_tensor(signs.astype(np.float32)), learn)

    def _pooled(self, x: Tensor, y: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        self.require_channels(x, y)
        if not torch.compiler.is_compiling() and 0 in x.shape[2:]:
            raise ValueError(f"there is nothing to pool in an input of shape {tuple(x.shape)}")
        a, b = x.double().flatten(2), y.double().flatten(2)
        sketches = self.projection == "tensor_sketch"
        z = self.finished(self.sketched(a, b, pooled=self.sum_pool) if sketches else self._maclaurin(a, b))
        if not self.sum_pool:
            z = z.reshape(x.shape[0], self.output_dim, *x.shape[2:])
            z = z.permute(0, 2, 3, 1) if self.channels_last else z
        return z.to(x.dtype)

    def _maclaurin(self, x: Tensor, y: Tensor) -> Tensor:
        n, _, locations = x.shape
        # Location by location, because onnxruntime refuses an empty batch in a batched matrix product.
        sides = [t.transpose(1, 2).flatten(0, 1) @ w.double() for t, w in ((x, self.rand_w_1), (y, self.rand_w_2))]
        z = (sides[0] * sides[1]).reshape(n, locations, self.output_dim)
        factor = 1 / math.sqrt(self.output_dim) if self.scale == "paper" else 1 / self.output_dim
        z = z.sum(1) if self.sum_pool else z.transpose(1, 2)
        return z * z.new_tensor(factor)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, projection={self.projection!r}, sum_pool={self.sum_pool}"


class CompactBilinearPool2d(_CompactBilinear):
    """Compact bilinear pooling of a map with itself.

    Published weights need the hashes and signs they were trained with: they are in the state dict, and can be given to
    the constructor. Sums are made in float64, and bins that no pair falls into are exactly 0.

    Args:
        channels: channels of the input.
        output_dim: numbers in the answer, d.
        projection: "tensor_sketch" or "random_maclaurin".
        sum_pool: sum over all locations; otherwise every location has an answer.
        seed: of numpy's legacy generator. Hashes and signs of the first side, then of the second, are drawn with
            ``seed``, ``seed + 2``, ``seed + 4`` and ``seed + 6``; the matrices of "random_maclaurin" with the first
            two.
        rand_h_1, rand_h_2: hashes to use instead, ``channels`` ints from 0 to ``output_dim - 1``.
        rand_s_1, rand_s_2: signs to use instead, any finite factors.
        learn: make the signs, or the matrices of "random_maclaurin", parameters.
        scale: "paper" or "code", the factor of "random_maclaurin".
        signed_sqrt: take the signed square root.
        sqrt_eps: added to the magnitude under the root, where it is not 0.
        norm: "floor" divides by ``max(|z|, norm_eps)``, "inside" by ``sqrt(|z|^2 + norm_eps)``, "none" by nothing.
        norm_eps: the bound, above 0.
        norm_over: without ``sum_pool``, normalise over the whole "sample", or each "location" on its own.
        channels_last: without ``sum_pool``, put the bins last.

    Shape:
        (N, C, H, W) to (N, output_dim); without ``sum_pool`` to (N, output_dim, H, W), or (N, H, W, output_dim) with
        ``channels_last``.

    Raises:
        ValueError: an option out of range, hashes or signs that do not fit, or an input of another rank or number of
            channels, or without locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import CompactBilinearPool2d
        >>> sketch = {"rand_h_1": [0, 1], "rand_s_1": [1, 1], "rand_h_2": [0, 2], "rand_s_2": [1, -1]}
        >>> CompactBilinearPool2d(2, 5, signed_sqrt=False, norm="none", **sketch)(torch.tensor([[[[2.0]], [[3.0]]]]))
        tensor([[ 4.,  6., -6., -9.,  0.]])

    Source:
        Gao, Beijbom, Zhang, Darrell, CVPR 2016, algorithms 1 and 2; its Matlab and Caffe code (``norm="inside"``,
        ``norm_eps=1e-7``); fast-MPN-COV (``sqrt_eps=1e-8``).
    """

    def __init__(
        self,
        channels: int,
        output_dim: int = 8192,
        projection: str = "tensor_sketch",
        sum_pool: bool = True,
        seed: int = 1,
        rand_h_1: ArrayLike | None = None,
        rand_s_1: ArrayLike | None = None,
        rand_h_2: ArrayLike | None = None,
        rand_s_2: ArrayLike | None = None,
        learn: bool = False,
        scale: str = "paper",
        signed_sqrt: bool = True,
        sqrt_eps: float = 0.0,
        norm: str = "floor",
        norm_eps: float = 1e-12,
        norm_over: str = "sample",
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            (channels, channels),
            output_dim,
            projection,
            sum_pool,
            seed,
            {"rand_h_1": rand_h_1, "rand_s_1": rand_s_1, "rand_h_2": rand_h_2, "rand_s_2": rand_s_2},
            learn,
            scale,
            signed_sqrt=signed_sqrt,
            sqrt_eps=sqrt_eps,
            norm=norm,
            norm_eps=norm_eps,
            norm_over=norm_over,
            channels_last=channels_last,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._pooled(x, x)


class CompactBilinearFusion2d(_CompactBilinear):
    """Compact bilinear pooling of two maps of one size, as of two networks on one image.

    Args:
        channels: channels of the first map.
        other_channels: channels of the second.
        output_dim: numbers in the answer, d.
        projection: "tensor_sketch" or "random_maclaurin".
        sum_pool: sum over all locations; otherwise every location has an answer.
        seed: of the hashes and signs, as in ``CompactBilinearPool2d``.
        rand_h_1, rand_s_1: hashes and signs of the first map to use instead.
        rand_h_2, rand_s_2: those of the second.
        learn: make the signs, or the matrices of "random_maclaurin", parameters.
        scale: "paper" or "code", the factor of "random_maclaurin".
        signed_sqrt: take the signed square root.
        sqrt_eps: added to the magnitude under the root, where it is not 0.
        norm: "floor", "inside" or "none".
        norm_eps: the bound, above 0.
        norm_over: without ``sum_pool``, normalise over the whole "sample", or each "location" on its own.
        channels_last: without ``sum_pool``, put the bins last.

    Shape:
        (N, C, H, W) and (N, D, H, W) to (N, output_dim); without ``sum_pool`` to (N, output_dim, H, W), or
        (N, H, W, output_dim) with ``channels_last``.

    Raises:
        ValueError: an option out of range, hashes or signs that do not fit, or inputs of another rank or number of
            channels, of different sizes, or without locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import CompactBilinearFusion2d
        >>> sketch = {"rand_h_1": [0, 1], "rand_s_1": [1, 1], "rand_h_2": [2], "rand_s_2": [-1]}
        >>> layer = CompactBilinearFusion2d(2, 1, 4, signed_sqrt=False, norm="none", **sketch)
        >>> layer(torch.tensor([[[[2.0]], [[3.0]]]]), torch.tensor([[[[5.0]]]]))
        tensor([[  0.,   0., -10., -15.]])

    Source:
        Gao, Beijbom, Zhang, Darrell, CVPR 2016; compact_bilinear_pooling for PyTorch and TensorFlow, which take two
        maps.
    """

    def __init__(
        self,
        channels: int,
        other_channels: int,
        output_dim: int = 8192,
        projection: str = "tensor_sketch",
        sum_pool: bool = True,
        seed: int = 1,
        rand_h_1: ArrayLike | None = None,
        rand_s_1: ArrayLike | None = None,
        rand_h_2: ArrayLike | None = None,
        rand_s_2: ArrayLike | None = None,
        learn: bool = False,
        scale: str = "paper",
        signed_sqrt: bool = True,
        sqrt_eps: float = 0.0,
        norm: str = "floor",
        norm_eps: float = 1e-12,
        norm_over: str = "sample",
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            (channels, other_channels),
            output_dim,
            projection,
            sum_pool,
            seed,
            {"rand_h_1": rand_h_1, "rand_s_1": rand_s_1, "rand_h_2": rand_h_2, "rand_s_2": rand_s_2},
            learn,
            scale,
            signed_sqrt=signed_sqrt,
            sqrt_eps=sqrt_eps,
            norm=norm,
            norm_eps=norm_eps,
            norm_over=norm_over,
            channels_last=channels_last,
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        require_rank(y, self.rank, type(self).__name__)
        if not torch.compiler.is_compiling() and (x.shape[0], *x.shape[2:]) != (y.shape[0], *y.shape[2:]):
            raise ValueError(
                f"both inputs need the same batch and size, got {tuple(x.shape)} and {tuple(y.shape)}; resize one of "
                "the maps first"
            )
        return self._pooled(x, y)


def reference(
    x: ArrayLike,
    other: ArrayLike | None = None,
    *,
    channels: int,
    other_channels: int | None = None,
    output_dim: int = 8192,
    projection: str = "tensor_sketch",
    sum_pool: bool = True,
    seed: int = 1,
    learn: bool = False,
    scale: str = "paper",
    signed_sqrt: bool = True,
    sqrt_eps: float = 0.0,
    norm: str = "floor",
    norm_eps: float = 1e-12,
    norm_over: str = "sample",
    channels_last: bool = False,
    **numbers: Any,
) -> Floats:
    """Compact bilinear pooling, slowly, in float64: pair by pair, each bin summed exactly.

    A pair with NaN, or of 0 and an infinity, makes its own bin NaN and no other; the norm then carries NaN to all.
    """
    x = np.asarray(x, dtype=np.float64)
    a = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    b = a if other is None else np.asarray(other, dtype=np.float64).reshape(len(x), np.shape(other)[1], a.shape[2])
    if projection == "tensor_sketch":
        terms = _by_bin(a, b, output_dim, _drawn(channels, other_channels or channels, output_dim, seed, numbers))
    else:
        terms = _by_signs(a, b, output_dim, seed, scale, numbers)
    # Of each bin (N, L, its terms).
    if sum_pool:
        z = np.stack([exact_sum(each.reshape(len(x), each[0].size if len(x) else 0)) for each in terms], axis=1)
    else:
        z = np.stack([exact_sum(each) for each in terms], axis=1)
    if signed_sqrt:
        z = np.where(z == 0, 0.0, np.copysign(np.sqrt(np.abs(z) + sqrt_eps), z))
    if norm != "none":
        axis = 1 if norm_over == "location" else tuple(range(1, z.ndim))
        square = np.sum(z.astype(np.longdouble) ** 2, axis=axis, keepdims=True).astype(np.float64)
        z = z / (np.maximum(np.sqrt(square), norm_eps) if norm == "floor" else np.sqrt(square + norm_eps))
    if sum_pool:
        return z
    z = z.reshape(len(x), output_dim, *x.shape[2:])
    return np.moveaxis(z, 1, -1) if channels_last else z


def _drawn(first: int, second: int, d: int, seed: int, given: Mapping[str, Any]) -> list[Any]:
    """Hashes and signs of the first side, then of the second, those given in place of the drawn ones."""
    legacy = [np.random.RandomState(each) for each in (seed, seed + 2, seed + 4, seed + 6)]
    numbers = {
        "rand_h_1": legacy[0].randint(0, d, first),
        "rand_s_1": legacy[1].randint(0, 2, first) * 2.0 - 1.0,
        "rand_h_2": legacy[2].randint(0, d, second),
        "rand_s_2": legacy[3].randint(0, 2, second) * 2.0 - 1.0,
    }
    return [given.get(name, values) for name, values in numbers.items()]


def _by_bin(a: Floats, b: Floats, d: int, sketches: list[Any]) -> list[Floats]:
    h1, s1, h2, s2 = sketches
    bins: list[list[Floats]] = [[] for _ in range(d)]
    for i, j in np.ndindex(a.shape[1], b.shape[1]):
        bins[int(h1[i] + h2[j]) % d].append((s1[i] * a[:, i]) * (s2[j] * b[:, j]))
    nothing = np.zeros((len(a), a.shape[2], 0))
    return [np.stack(products, axis=2) if products else nothing for products in bins]


def _by_signs(a: Floats, b: Floats, d: int, seed: int, scale: str, numbers: Mapping[str, Any]) -> list[Floats]:
    w1 = numbers.get("rand_w_1", np.random.RandomState(seed).randint(0, 2, (a.shape[1], d)) * 2.0 - 1.0)
    w2 = numbers.get("rand_w_2", np.random.RandomState(seed + 2).randint(0, 2, (b.shape[1], d)) * 2.0 - 1.0)
    c = d**-0.5 if scale == "paper" else d**-1.0
    columns, others = np.moveaxis(a, 1, 2), np.moveaxis(b, 1, 2)
    return [(exact_sum(columns * w1[:, k]) * exact_sum(others * w2[:, k]) * c)[:, :, None] for k in range(d)]


def companions(x: ArrayLike, other_channels: int, **_: Any) -> tuple[np.ndarray]:
    """Another map of the same size."""
    x = np.asarray(x)
    shape = (x.shape[0], other_channels, *x.shape[2:])
    return (np.random.default_rng(0).standard_normal(shape).astype(x.dtype),)


def illustration(image: Tensor) -> Tensor:
    """The bins, row by row, into which the products of all pairs of columns of the picture fall."""
    columns = image[:, :1].transpose(1, 3)
    pooled: Tensor = CompactBilinearPool2d(columns.shape[1], 64 * 64)(columns - columns.mean())
    return pooled.unflatten(1, (1, 64, 64))


METHOD = Method(
    (CompactBilinearPool2d,),
    summary="Sketches of the products of all pairs of channels, summed over the locations.",
    paper=Paper("Compact Bilinear Pooling", "Gao, Beijbom, Zhang, Darrell", 2016, "arXiv:1511.06062"),
    reference=reference,
    training="sums of signed products by bin",
    inference="sums of signed products by bin",
    illustration=illustration,
    operators=(compact_bilinear,),
    variants=(CompactBilinearFusion2d,),
    companions=companions,
    dynamic_channels=False,
    cases=(
        Case("sketch", {"channels": 3, "output_dim": 64}, shape=(2, 3, 5, 6)),
        Case(
            "caffe",
            {"channels": 4, "output_dim": 7, "seed": 11, "norm": "inside", "norm_eps": 1e-7},
            shape=(2, 4, 5, 4),
        ),
        Case(
            "given",
            {
                "channels": 2,
                "output_dim": 5,
                "rand_h_1": [0, 3],
                "rand_s_1": [1, -1],
                "rand_h_2": [4, 1],
                "rand_s_2": [-1, 1],
                "sqrt_eps": 1e-8,
            },
            shape=(1, 2, 5, 6),
        ),
        Case(
            "locations",
            {"channels": 3, "output_dim": 16, "sum_pool": False, "channels_last": True},
            shape=(2, 3, 4, 5),
        ),
        Case(
            "learned",
            {"channels": 3, "output_dim": 8, "learn": True, "signed_sqrt": False, "norm": "none"},
            shape=(2, 3, 5, 4),
            state={"rand_s_1": [0.5, -1.25, 2.0], "rand_s_2": [-0.75, 1.5, 1.0]},
        ),
        Case(
            "maclaurin",
            {"channels": 3, "output_dim": 6, "projection": "random_maclaurin", "scale": "code"},
            shape=(2, 3, 5, 4),
        ),
        Case(
            "fusion",
            {"channels": 3, "other_channels": 4, "output_dim": 9, "sum_pool": False, "norm_over": "location"},
            shape=(2, 3, 4, 5),
            layer=CompactBilinearFusion2d,
        ),
        Case(
            "fusion-learned",
            {
                "channels": 2,
                "other_channels": 3,
                "output_dim": 5,
                "projection": "random_maclaurin",
                "sum_pool": False,
                "learn": True,
                "signed_sqrt": False,
                "channels_last": True,
            },
            shape=(2, 2, 4, 5),
            state={"rand_w_1": np.cos(np.arange(10.0)).reshape(2, 5)},
            layer=CompactBilinearFusion2d,
        ),
    ),
    space={
        "channels": (3,),
        "output_dim": (1, 4, 13),
        "projection": PROJECTIONS,
        "sum_pool": (True, False),
        "seed": (1, 2, 1000),
        "scale": ("paper", "code"),
        "signed_sqrt": (True, False),
        "norm": ("floor", "inside", "none"),
        "norm_eps": (1e-12, 1e-7),
        "norm_over": ("sample", "location"),
        "channels_last": (False, True),
    },
    limits=(
        Limit({"channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"channels": 3, "output_dim": 0}, ValueError, "output_dim must be a positive int"),
        Limit({"channels": 3, "projection": "sketch"}, ValueError, "projection must be one of"),
        Limit({"channels": 3, "seed": -1}, ValueError, "seed must be an int from 0"),
        Limit({"channels": 3, "output_dim": 4, "rand_h_1": [0, 4, 1]}, ValueError, "rand_h_1 must hold 3 ints from 0"),
        Limit({"channels": 3, "rand_h_2": [0, 1]}, ValueError, "rand_h_2 must hold 3 ints from 0"),
        Limit({"channels": 3, "rand_s_1": [1, 1, np.nan]}, ValueError, "rand_s_1 must hold 3 finite numbers"),
        Limit({"channels": 3, "rand_s_2": [1, 1]}, ValueError, "rand_s_2 must hold 3 finite numbers"),
        Limit(
            {"channels": 2, "projection": "random_maclaurin", "rand_s_2": [1, 1]},
            ValueError,
            "rand_s_2 belongs to projection='tensor_sketch'",
        ),
        Limit({"channels": 3, "scale": "none"}, ValueError, "scale must be one of"),
        Limit({"channels": 3, "sqrt_eps": -1.0}, ValueError, "sqrt_eps must be a finite number, not below 0"),
        Limit({"channels": 3, "norm": "l1"}, ValueError, "norm must be one of"),
        Limit({"channels": 3, "norm_eps": 0}, ValueError, "norm_eps must be a finite number above 0"),
        Limit({"channels": 3, "norm_over": "batch"}, ValueError, "norm_over must be one of"),
        Limit({"channels": 4, "output_dim": 8}, ValueError, "the layer has 4 channels", shape=(2, 3, 7, 7)),
        Limit(
            {"channels": 3, "output_dim": 8},
            ValueError,
            "there is nothing to pool",
            shape=(2, 3, 0, 7),
            file="numbers",
        ),
        Limit({"channels": 3}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "The numpy seeds 1, 3, 5 and 7 are those of the PyTorch and TensorFlow codes; Caffe's and Matlab's draws, and "
        "fast-MPN-COV's from torch, are others, so their weights need their hashes and signs.",
        "Codes that use a Fourier transform answer noise where no pair falls into a bin; this layer answers 0.",
        "Caffe normalises maps over the whole sample, Torch7's code every location: norm_over.",
        "The codes soften the root's gradient near 0, each by a constant of its own; this layer's gradient is that of "
        "the root, and 0 at 0.",
        "A file sums up maps of many channels without sum_pool by a transform in float64: bins are right to 1e-15 of "
        "the largest, and bins without a pair are 0.",
    ),
)
