"""Bilinear pooling: the products of all pairs of channels, summed over the locations, rooted and normalised.

    G_ij = sum(a_il b_jl)      over all locations l, or its mean; b = a for one map
    y_ij = sign(G_ij) sqrt(|G_ij|), z = y / |y|      row by row as one vector

Training and inference are the same; there is nothing to learn. Sums, roots and norms are made in float64: the root
turns an error e of a sum that is nearly 0 into sqrt(e).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal, localcontext
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, require_positive
from poolexport.methods._signed_root import (
    GUARDS,
    NORMS,
    ROOTS,
    normalised,
    require_guard,
    require_norm,
    shifted_root,
    signed_root,
)
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.gram import gram
from poolexport_ops.subsampled_gram import subsampled_gram

REDUCTIONS = ("sum", "mean")
RESIZES = ("none", "subsample", "interpolate")

#: The constants of publications and their code, by name.
PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {"norm_eps": 0.0},
        "matlab": {"reduction": "mean", "norm": "inside", "norm_eps": 1e-10},
        "compact_matlab": {"gradient_guard": "beside", "gradient_eps": 0.1, "norm_eps": 0.0},
        "caffe": {"gradient_guard": "beside", "gradient_eps": 0.03, "norm": "inside", "norm_eps": 1e-7},
        "fast_mpn_cov": {"reduction": "mean", "root": "jump", "root_eps": 1e-8},
        "umass": {"reduction": "mean", "root": "difference", "root_eps": 1e-5},
    }
)

Self = TypeVar("Self", bound="_BilinearPool")


class _BilinearPool(Layer):
    """What is done to the sums of products; subclasses make them."""

    rank: ClassVar[int] = 2

    def __init__(
        self,
        reduction: str = "sum",
        root: str = "sign",
        root_eps: float = 0.0,
        norm: str = "floor",
        norm_eps: float = 1e-12,
        gradient_guard: str = "inside",
        gradient_eps: float = 1e-8,
        is_vec: bool = True,
        per_column: bool = False,
    ) -> None:
        super().__init__()
        require_choice("reduction", reduction, REDUCTIONS)
        require_choice("root", root, ROOTS)
        if root in ("jump", "difference"):
            require_positive("root_eps", root_eps)
        elif root_eps != 0:
            raise ValueError(f"root_eps is for the roots 'jump' and 'difference', got {root_eps!r} with {root!r}")
        require_norm(norm, norm_eps)
        require_guard(gradient_guard, gradient_eps)
        if per_column and (is_vec or norm == "none"):
            raise ValueError("per_column needs is_vec=False and a norm")
        self.reduction = reduction
        self.root = root
        self.root_eps = root_eps
        self.norm = norm
        self.norm_eps = norm_eps
        self.gradient_guard = gradient_guard
        self.gradient_eps = gradient_eps
        self.is_vec = is_vec
        self.per_column = per_column

    @classmethod
    def published(cls: type[Self], name: str, **options: Any) -> Self:
        """A layer with the constants of a publication or its code, and further options."""
        require_choice("name", name, tuple(PUBLISHED))
        return cls(**{**PUBLISHED[name], **options})

    def _finished(self, g: Tensor, locations: Tensor, dtype: torch.dtype) -> Tensor:
        if self.reduction == "mean":
            g = g / locations
        if self.root == "sign":
            g = signed_root(g, self.gradient_eps, self.gradient_guard)
        elif self.root != "none":
            g = shifted_root(g, self.root_eps, self.root)
        if self.per_column:
            return normalised(g, self.norm, self.norm_eps).to(dtype)
        g = normalised(g.flatten(1), self.norm, self.norm_eps).reshape(g.shape)
        return (g.flatten(1) if self.is_vec else g).to(dtype)

    def extra_repr(self) -> str:
        return (
            f"reduction={self.reduction!r}, root={self.root!r}, root_eps={self.root_eps}, norm={self.norm!r}, "
            f"norm_eps={self.norm_eps}, is_vec={self.is_vec}, per_column={self.per_column}"
        )


def _locations(x: Tensor) -> Tensor:
    """The number of locations of a map, as a tensor, because the exporter rounds Python numbers to float32."""
    return x.new_ones(1, *x.shape[2:]).flatten(1).sum(1)


class BilinearPool2d(_BilinearPool):
    """The sum of the outer products of all locations with themselves, rooted and normalised; second-order pooling.

    Sources differ in their constants, and so in their numbers. ``BilinearPool2d.published(name)`` is the layer of

    - "paper": sum, signed root, division by the norm, which leaves NaN of a map of zeros;
    - "matlab": the authors' code: mean, signed root, 1e-10 added to the square of the norm;
    - "compact_matlab": that of compact bilinear pooling: as in the paper, with another gradient near 0;
    - "caffe": that of hierarchical bilinear pooling: sum, signed root, 1e-7 added to the square of the norm;
    - "fast_mpn_cov": mean, a root that jumps at 0 by 2e-4, division by the norm or 1e-12;
    - "umass": the authors' torch code: mean, the difference of two roots, division by the norm or 1e-12.

    Args:
        reduction: "sum" or "mean" over the locations.
        root: "sign" is sign(G) sqrt(|G|), "jump" is sign(G) sqrt(|G| + root_eps), "difference" is
            sqrt(max(G, 0) + root_eps) - sqrt(max(-G, 0) + root_eps), "none" leaves G as it is.
        root_eps: what "jump" and "difference" add, above 0; 0 for the others.
        norm: "floor" divides by max(|y|, norm_eps), "inside" by sqrt(|y|^2 + norm_eps), "none" not at all.
        norm_eps: as said; with 0 and "floor" a map of zeros gives NaN.
        gradient_guard: the slope of the root "sign" is 0.5 / sqrt(|G| + gradient_eps) for "inside" and
            0.5 / (sqrt(|G|) + gradient_eps) for "beside".
        gradient_eps: as said, above 0; it changes the gradient only, and keeps it finite at 0 (but not that of a
            ``norm_eps`` of 0 on a map of zeros).
        is_vec: whether the answer is a vector or a matrix.
        per_column: divide every column of the matrix by its own norm, as fast-MPN-COV does without ``is_vec``.

    Shape:
        (N, C, H, W) to (N, C C), or to (N, C, C) without ``is_vec``.

    Raises:
        ValueError: an option that does not exist, is out of range or does not go with another, or an input of another
            rank.

    Example:
        >>> import torch
        >>> from poolexport.nn import BilinearPool2d
        >>> BilinearPool2d(norm="none")(torch.tensor([[[[1.0, 2.0]], [[-2.0, 1.5]]]])).round(decimals=4)
        tensor([[2.2361, 1.0000, 1.0000, 2.5000]])

    Source:
        Lin, RoyChowdhury, Maji, ICCV 2015, section 3; packages bcnn (Matlab), cvl-umass/bilinear-cnn,
        gy20073/compact_bilinear_pooling, ChaojianYu/Hierarchical-Bilinear-Pooling, jiangtaoxie/fast-MPN-COV (BCNN).
    """

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        wide = x.double()
        flat = wide.flatten(2)
        return self._finished(gram(flat, flat), _locations(wide), x.dtype)


class BilinearPool0d(_BilinearPool):
    """The outer product of two vectors, rooted and normalised; one location of ``MultimodalBilinearPool2d``.

    ``forward(x, y)``. The constants of publications are those of ``BilinearPool2d``, by
    ``BilinearPool0d.published(name)``.

    Args:
        reduction: "sum" or "mean" over the locations, which are one: there is no difference.
        root: "sign" is sign(G) sqrt(|G|), "jump" is sign(G) sqrt(|G| + root_eps), "difference" is
            sqrt(max(G, 0) + root_eps) - sqrt(max(-G, 0) + root_eps), "none" leaves G as it is.
        root_eps: what "jump" and "difference" add, above 0; 0 for the others.
        norm: "floor" divides by max(|y|, norm_eps), "inside" by sqrt(|y|^2 + norm_eps), "none" not at all.
        norm_eps: as said; with 0 and "floor" a vector of zeros gives NaN.
        gradient_guard: the slope of the root "sign" is 0.5 / sqrt(|G| + gradient_eps) for "inside" and
            0.5 / (sqrt(|G|) + gradient_eps) for "beside".
        gradient_eps: as said, above 0; it changes the gradient only, and keeps it finite at 0 (but not that of a
            ``norm_eps`` of 0 on a map of zeros).
        is_vec: whether the answer is a vector or a matrix.
        per_column: divide every column of the matrix by its own norm, as fast-MPN-COV does without ``is_vec``.

    Shape:
        (N, C) and (N, D) to (N, C D), or to (N, C, D) without ``is_vec``.

    Raises:
        ValueError: an option that does not exist, is out of range or does not go with another, inputs of another rank,
            or of batches or types that differ.

    Example:
        >>> import torch
        >>> from poolexport.nn import BilinearPool0d
        >>> x, y = torch.tensor([[3.0, -4.0]]), torch.tensor([[1.0, 0.5, 0.25]])
        >>> BilinearPool0d(root="none", norm="none", is_vec=False)(x, y)
        tensor([[[ 3.0000,  1.5000,  0.7500],
                 [-4.0000, -2.0000, -1.0000]]])

    Source:
        Lin, RoyChowdhury, Maji, ICCV 2015, section 3, with one location; Fukui et al., EMNLP 2016, section 3.1.
    """

    rank = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for each in (x, y):
            require_rank(each, 0, type(self).__name__)
        if not torch.compiler.is_compiling():
            _require_one_batch(x, y)
        a, b = (t.double().unsqueeze(2) for t in (x, y))
        return self._finished(gram(a, b), _locations(a), x.dtype)


def _require_one_batch(x: Tensor, y: Tensor) -> None:
    if x.shape[0] != y.shape[0] or x.dtype != y.dtype:
        raise ValueError(
            f"both inputs must have one batch and one type, got {x.dtype} of shape {tuple(x.shape)} and {y.dtype} of "
            f"shape {tuple(y.shape)}"
        )


class MultimodalBilinearPool2d(_BilinearPool):
    """The sum of the outer products of all locations of two maps, rooted and normalised.

    ``forward(x, y)``; the code of the original paper flattens in the order of ``forward(y, x)``. The constants of
    publications are those of ``BilinearPool2d``, by ``MultimodalBilinearPool2d.published(name)``.

    Args:
        resize: what to do with maps of two sizes: "none" refuses them; "subsample" reads the one with more locations
            at evenly spaced cells, as the original paper's code does; "interpolate" brings ``y`` to the size of ``x``,
            bilinearly between centres of cells, as its release for torch does.
        reduction: "sum" or "mean" over the locations.
        root: "sign" is sign(G) sqrt(|G|), "jump" is sign(G) sqrt(|G| + root_eps), "difference" is
            sqrt(max(G, 0) + root_eps) - sqrt(max(-G, 0) + root_eps), "none" leaves G as it is.
        root_eps: what "jump" and "difference" add, above 0; 0 for the others.
        norm: "floor" divides by max(|y|, norm_eps), "inside" by sqrt(|y|^2 + norm_eps), "none" not at all.
        norm_eps: as said; with 0 and "floor" a map of zeros gives NaN.
        gradient_guard: the slope of the root "sign" is 0.5 / sqrt(|G| + gradient_eps) for "inside" and
            0.5 / (sqrt(|G|) + gradient_eps) for "beside".
        gradient_eps: as said, above 0; it changes the gradient only, and keeps it finite at 0 (but not that of a
            ``norm_eps`` of 0 on a map of zeros).
        is_vec: whether the answer is a vector or a matrix.
        per_column: divide every column of the matrix by its own norm, as fast-MPN-COV does without ``is_vec``.

    Shape:
        (N, C, H, W) and (N, D, H, W) to (N, C D), or to (N, C, D) without ``is_vec``; with ``resize`` heights and
        widths may differ.

    Raises:
        ValueError: an option that does not exist, is out of range or does not go with another, inputs of another rank,
            or of batches, types or sizes that differ.

    Example:
        >>> import torch
        >>> from poolexport.nn import MultimodalBilinearPool2d
        >>> x, y = torch.ones(1, 2, 3, 3), torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> MultimodalBilinearPool2d("subsample", root="none", norm="none")(x, y)
        tensor([[6., 6.]])

    Source:
        Lin, RoyChowdhury, Maji, ICCV 2015, section 3; packages bcnn (Matlab), cvl-umass/bilinear-cnn.
    """

    def __init__(
        self,
        resize: str = "none",
        reduction: str = "sum",
        root: str = "sign",
        root_eps: float = 0.0,
        norm: str = "floor",
        norm_eps: float = 1e-12,
        gradient_guard: str = "inside",
        gradient_eps: float = 1e-8,
        is_vec: bool = True,
        per_column: bool = False,
    ) -> None:
        super().__init__(reduction, root, root_eps, norm, norm_eps, gradient_guard, gradient_eps, is_vec, per_column)
        require_choice("resize", resize, RESIZES)
        self.resize = resize

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for each in (x, y):
            require_rank(each, self.rank, type(self).__name__)
        if not torch.compiler.is_compiling():
            self._require_pair(x, y)
        a, b = x.double(), y.double()
        locations = _locations(a)
        if self.resize == "subsample":
            return self._finished(subsampled_gram(a, b), torch.minimum(locations, _locations(b)), x.dtype)
        if self.resize == "interpolate":
            b = _interpolated(_interpolated(b, a, 2), a, 3)
        return self._finished(gram(a.flatten(2), b.flatten(2)), locations, x.dtype)

    def _require_pair(self, x: Tensor, y: Tensor) -> None:
        _require_one_batch(x, y)
        if self.resize == "none" and x.shape[2:] != y.shape[2:]:
            raise ValueError(
                f"both maps must have one height and width, got shapes {tuple(x.shape)} and {tuple(y.shape)}; choose "
                "resize='subsample' or 'interpolate'"
            )

    def extra_repr(self) -> str:
        return f"resize={self.resize!r}, {super().extra_repr()}"


def _interpolated(x: Tensor, like: Tensor, axis: int) -> Tensor:
    """``x`` with the length of ``like`` along an axis, interpolated between the two nearest centres of cells."""
    n, m = (t.new_ones(t.shape[axis]).sum().reshape(1) for t in (x, like))
    steps = torch.arange(like.shape[axis], device=x.device).to(x.dtype)
    half, one = (x.new_tensor([value]) for value in (0.5, 1.0))
    position = torch.minimum(torch.maximum((steps + half) * (n / m) - half, 0 * half), n - one)
    below = position.floor()
    share = (position - below).reshape(-1, *[1] * (3 - axis))
    low = x.index_select(axis, below.long())
    high = x.index_select(axis, torch.minimum(below + one, n - one).long())
    return torch.where(share == 0, low, low * (1 - share) + high * share)


def reference(
    x: ArrayLike,
    y: ArrayLike | None = None,
    resize: str = "none",
    reduction: str = "sum",
    root: str = "sign",
    root_eps: float = 0.0,
    norm: str = "floor",
    norm_eps: float = 1e-12,
    gradient_guard: str = "inside",
    gradient_eps: float = 1e-8,
    is_vec: bool = True,
    per_column: bool = False,
) -> Floats:
    """Bilinear pooling, slowly, in float64: every sum of products is exact, and roots are taken one by one.

    A NaN makes the products of its channel NaN, and so does an infinity beside a zero; with a norm all of the sample,
    because NaN and inf / inf are NaN. The gradient's guard does not matter here.
    """
    a = np.asarray(x, dtype=np.float64)
    b = a if y is None else np.asarray(y, dtype=np.float64)
    if a.ndim == 4:
        a, b = _brought_together(a, b, resize)
    a, b = (m.reshape(m.shape[0], m.shape[1], math.prod(m.shape[2:])) for m in (a, b))
    g = np.empty((len(a), a.shape[1], b.shape[1]))
    for place in np.ndindex(*g.shape):
        n, i, j = place
        g[place] = exact_sum(a[n, i] * b[n, j], a.shape[2] if reduction == "mean" else 1)
    rooted = np.array([_root(value, root, root_eps) for value in g.ravel().tolist()]).reshape(g.shape)
    for sample in rooted:
        for part in sample.T if per_column else [sample]:
            part[...] = part / _length(part, norm, norm_eps)
    return rooted.reshape(len(rooted), -1) if is_vec and rooted.size else rooted.reshape(_flat_shape(g, is_vec))


def _flat_shape(g: Floats, is_vec: bool) -> tuple[int, ...]:
    return (g.shape[0], g.shape[1] * g.shape[2]) if is_vec else g.shape


def _root(value: float, root: str, eps: float) -> float:
    if root == "none" or math.isnan(value):
        return value
    if root == "sign":
        return math.copysign(math.sqrt(abs(value)), value)
    if root == "jump":
        return 0.0 if value == 0 else math.copysign(math.sqrt(abs(value) + eps), value)
    with localcontext() as context:
        context.prec = 150  # the two roots may share a hundred digits
        up, down = (max(Decimal(v), Decimal(0)) + Decimal(eps) for v in (value, -value))
        return float(up.sqrt() - down.sqrt())


def _length(part: Floats, norm: str, eps: float) -> float:
    if norm == "none":
        return 1.0
    square = float(exact_sum((part * part).ravel()))
    if norm == "inside":
        return math.sqrt(square + eps)
    return eps if math.sqrt(square) < eps else math.sqrt(square)


def _brought_together(a: Floats, b: Floats, resize: str) -> tuple[Floats, Floats]:
    """Both maps at one height and width."""
    if resize == "interpolate":
        for axis in (2, 3):
            b = _stretched(b, a.shape[axis], axis)
    if resize == "subsample":
        height, width = a.shape[2:] if a[0:1, 0:1].size <= b[0:1, 0:1].size or not len(a) else b.shape[2:]
        a, b = (m[:, :, _spaced(m.shape[2], height)][:, :, :, _spaced(m.shape[3], width)] for m in (a, b))
    return a, b


def _spaced(n: int, m: int) -> list[int]:
    return [math.floor(place + 0.5) - 1 for place in (np.linspace(1, n, m) if m > 1 else [n])]


def _stretched(x: Floats, m: int, axis: int) -> Floats:
    n = x.shape[axis]
    rows = []
    for i in range(m):
        place = min(max((2 * i + 1) * n / (2 * m) - 0.5, 0.0), n - 1.0)
        cell = int(place)
        row = x.take(cell, axis)
        if place > cell:
            row = row * (1 - (place - cell)) + x.take(cell + 1, axis) * (place - cell)
        rows.append(row)
    return np.stack(rows, axis)


def companions(x: ArrayLike, resize: str = "none", **_: Any) -> tuple[Floats]:
    """A second map, or vector, with one channel more; where it may have another size it is larger and not square."""
    x = np.asarray(x)
    lengths = tuple(x.shape[2:])
    if resize != "none" and lengths:
        lengths = (lengths[0] + 3, 2 * lengths[1] + 1)
    y = np.random.default_rng(1).standard_normal((x.shape[0], x.shape[1] + 1, *lengths))
    return (y.astype(x.dtype),)


def illustration(image: Tensor) -> Tensor:
    """The products of all pairs of columns of the picture, each summed over its rows."""
    columns = image[:, :1].transpose(1, 3)
    return BilinearPool2d(is_vec=False)(columns - columns.mean()).unsqueeze(1)


METHOD = Method(
    (BilinearPool0d, BilinearPool2d),
    summary="Products of all pairs of channels, summed over the locations, rooted and normalised.",
    paper=Paper(
        "Bilinear CNN Models for Fine-Grained Visual Recognition",
        "Lin, RoyChowdhury, Maji",
        2015,
        "arXiv:1504.07889",
    ),
    reference=reference,
    training="rooted sums of products",
    inference="rooted sums of products",
    operators=(gram, subsampled_gram),
    variants=(MultimodalBilinearPool2d,),
    companions=companions,
    companion_axes=("NDhw",),
    illustration=illustration,
    cases=(
        Case("homogeneous", {}),
        Case("paper", PUBLISHED["paper"], singular_at_zero=True),
        Case("matlab", PUBLISHED["matlab"]),
        Case("beside", {"gradient_guard": "beside", "gradient_eps": 1e-6, "norm": "inside", "norm_eps": 1e-7}),
        Case("fast-mpn-cov", PUBLISHED["fast_mpn_cov"]),
        Case("columns", {**PUBLISHED["fast_mpn_cov"], "is_vec": False, "per_column": True}, shape=(1, 3, 5, 4)),
        Case("umass", PUBLISHED["umass"]),
        Case("bare", {"root": "none", "norm": "none"}, shape=(1, 2, 1, 7)),
        Case("two-vectors", {"gradient_guard": "inside", "gradient_eps": 1e-8}, shape=(2, 3)),
        Case("two-maps", {**PUBLISHED["umass"], "resize": "none", "is_vec": False}, layer=MultimodalBilinearPool2d),
        Case("two-sizes", {**PUBLISHED["matlab"], "resize": "subsample"}, layer=MultimodalBilinearPool2d),
        Case(
            "interpolated",
            {"resize": "interpolate", **PUBLISHED["fast_mpn_cov"], "is_vec": False, "per_column": True},
            shape=(2, 3, 4, 5),
            layer=MultimodalBilinearPool2d,
        ),
    ),
    space={
        "reduction": REDUCTIONS,
        "root": ROOTS,
        "root_eps": (0.0, 1e-5, 1e-8),
        "norm": NORMS,
        "norm_eps": (1e-12, 0.0, 1e-7),
        "gradient_guard": GUARDS,
        "is_vec": (True, False),
        "per_column": (False, True),
    },
    limits=(
        Limit({"reduction": "max"}, ValueError, "reduction must be one of"),
        Limit({"root": "cube"}, ValueError, "root must be one of"),
        Limit({"root": "jump"}, ValueError, "root_eps must be a finite number above 0"),
        Limit({"root_eps": 1e-5}, ValueError, "root_eps is for the roots"),
        Limit({"norm": "l1"}, ValueError, "norm must be one of"),
        Limit({"norm": "inside", "norm_eps": 0.0}, ValueError, "norm_eps must be a finite number above 0"),
        Limit({"gradient_guard": "none"}, ValueError, "gradient_guard must be one of"),
        Limit({"gradient_eps": 0.0}, ValueError, "gradient_eps must be a finite number above 0"),
        Limit({"per_column": True}, ValueError, "per_column needs is_vec=False"),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9), rank=0),
    ),
    notes=(
        "A sum that cancels may leave 1e-16 of its terms, in another order of adding up another rest, and the root "
        "makes 1e-8 of it; sums of products of float16 numbers are exact.",
        "A file of two maps cannot refuse sizes that differ but have one product, which the layer refuses.",
    ),
)
