"""Grassmann pooling: the subspace that the k leading left singular vectors of a map span.

    X = U S V^T      X is the map as a (C, M) matrix, not centred, M its number of locations
    y = U_k U_k^T    the projection onto the first k columns of U; or U_k itself, or |U_k^T W_j|_F^2 for every class j

A direction whose singular value is not above 2^-20 of the largest is rounding, not data, and is left out: the
projection then has a rank below k, and a map of zeros the projection 0. Training and inference are the same.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice
from poolexport.reference import Floats, symmetric_eigen
from poolexport_ops import require_rank
from poolexport_ops.subspace_basis import subspace_basis
from poolexport_ops.subspace_projection import subspace_projection

OUTPUTS = ("projection", "triu", "basis")


class GrassmannPool2d(Layer):
    """Projection onto the subspace of the k leading left singular vectors of the (C, M) matrix of a map.

    Computed in float64 whatever the type of the input. The projection is unique where the k-th singular value is above
    the next one; with ``output="basis"`` every one of the first k must be, and signs are fixed: of the entries of a
    column that are within a millionth of its largest magnitude, the first is positive. A NaN or an infinity makes all
    numbers of its sample NaN. The paper's reduction of channels is a 1x1 convolution before this layer.

    Args:
        k: dimensions of the subspace, at most C; directions at the level of rounding do not count.
        output: "projection" for the matrix, "triu" for its upper triangle row by row, "basis" for U_k with zeros in
            place of columns that do not count.

    Shape:
        (N, C, H, W) to (N, C, C), (N, C (C + 1) / 2) or (N, C, k).

    Raises:
        ValueError: an option out of range, an input of another rank, with fewer than k channels, or without locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import GrassmannPool2d
        >>> GrassmannPool2d(k=1)(torch.tensor([[[[3.0, 6.0]], [[4.0, 8.0]]]])).round(decimals=4)
        tensor([[[0.3600, 0.4800],
                 [0.4800, 0.6400]]])

    Source:
        Wei, Zhang, Gong, Zhang, Zheng, ECCV 2018; no code of the authors was found.
    """

    rank: ClassVar[int] = 2

    def __init__(self, k: int, output: str = "projection") -> None:
        super().__init__()
        _require_size("k", k)
        require_choice("output", output, OUTPUTS)
        self.k = k
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        _require_map(x, self.k, type(self).__name__)
        if self.output == "basis":
            return subspace_basis(x.flatten(2), k=self.k)
        layout = "matrix" if self.output == "projection" else "rows"
        return subspace_projection(x.flatten(2), k=self.k, layout=layout)

    def extra_repr(self) -> str:
        return f"k={self.k}, output={self.output!r}"


class GrassmannScore2d(Layer):
    """How well the subspace of a map fits the subspace of every class: the squared cosines between them, summed.

    ``score_j = |U_k^T W_j|_F^2``, the inner product of the projections where the columns of ``W_j`` are orthonormal,
    as they are at first; training may move them.

    Args:
        channels: channels of the input.
        classes: how many classes.
        k: dimensions of the subspace of a map, at most ``channels``.
        class_dimensions: columns of every ``W_j``, at most ``channels``; by default ``k``.

    Parameters:
        weight: (channels, classes, class_dimensions).

    Shape:
        (N, channels, H, W) to (N, classes).

    Raises:
        ValueError: an option out of range, an input of another rank or number of channels, or without locations.

    Example:
        >>> import torch
        >>> from poolexport.nn import GrassmannScore2d
        >>> layer = GrassmannScore2d(channels=2, classes=2, k=1)
        >>> _ = layer.load_state_dict({"weight": torch.eye(2).reshape(2, 2, 1)})
        >>> layer(torch.tensor([[[[3.0, 6.0]], [[4.0, 8.0]]]])).round(decimals=4)
        tensor([[0.3600, 0.6400]], grad_fn=<RoundBackward1>)

    Source:
        Wei, Zhang, Gong, Zhang, Zheng, ECCV 2018.
    """

    rank: ClassVar[int] = 2

    def __init__(self, channels: int, classes: int, k: int, class_dimensions: int | None = None) -> None:
        super().__init__()
        columns = k if class_dimensions is None else class_dimensions
        sizes = {"channels": channels, "classes": classes, "k": k, "class_dimensions": columns}
        for name, size in sizes.items():
            _require_size(name, size)
        if max(k, columns) > channels:
            raise ValueError(f"k and class_dimensions must be at most {channels}, the channels, got {k} and {columns}")
        self.k = k
        starts = [nn.init.orthogonal_(torch.empty(channels, columns)) for _ in range(classes)]
        self.weight = nn.Parameter(torch.stack(starts, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        _require_map(x, self.k, type(self).__name__)
        channels, classes, columns = self.weight.shape
        if x.shape[1] != channels:
            raise ValueError(f"the layer has {channels} channels, the input has {x.shape[1]}")
        projection = subspace_projection(x.double().flatten(2), k=self.k, layout="matrix")
        weight = self.weight.double()
        # Row by row, because onnxruntime refuses an empty batch in a batched matrix product.
        inside = projection.reshape(-1, channels) @ weight.flatten(1)
        inside = inside.reshape(x.shape[0], channels, classes, columns)
        return (inside * weight).sum((1, 3)).to(x.dtype)

    def extra_repr(self) -> str:
        channels, classes, columns = self.weight.shape
        return f"channels={channels}, classes={classes}, k={self.k}, class_dimensions={columns}"


def _require_size(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} must be a positive int, got {size!r}")


def _require_map(x: Tensor, k: int, who: str) -> None:
    require_rank(x, 2, who)
    if torch.compiler.is_compiling():
        return
    if x.shape[1] < k:
        raise ValueError(f"k is {k}, but the input has only {x.shape[1]} channels; use a smaller k")
    if 0 in x.shape[2:]:
        raise ValueError(f"there is nothing to pool for {who} in an input of shape {tuple(x.shape)}")


def reference(
    x: ArrayLike,
    k: int,
    output: str = "projection",
    channels: int | None = None,
    classes: int | None = None,
    class_dimensions: int | None = None,
    weight: Floats | None = None,
) -> Floats:
    """Grassmann pooling, slowly: eigenvectors of X X^T for the k largest eigenvalues; with `weight` the scores.

    Eigenvalues are squared singular values, so those not above 2^-40 of the largest do not count, and their vectors
    are 0. Samples with NaN or infinities are NaN all over.
    """
    x = np.asarray(x, dtype=np.float64)
    answers = []
    for sample in x:
        basis = _basis(sample.reshape(len(sample), -1), k)
        if weight is not None:
            scores = [np.sum((basis.T @ weight[:, j]) ** 2) for j in range(weight.shape[1])]
            answers.append(np.array(scores))
        elif output == "basis":
            answers.append(basis)
        else:
            projection = basis @ basis.T
            entries = [projection[i, j] for i in range(len(projection)) for j in range(i, len(projection))]
            answers.append(projection if output == "projection" else np.array(entries))
    return np.array(answers).reshape(len(x), *_shape(x.shape[1], k, output, weight))


def _basis(matrix: Floats, k: int) -> Floats:
    if not np.isfinite(matrix).all():
        return np.full((len(matrix), k), np.nan)
    exact = matrix.astype(np.longdouble)
    values, vectors = symmetric_eigen(exact @ exact.T)
    basis = np.zeros((len(matrix), k))
    for i in range(k):
        if values[i] > values[0] * 2.0**-40:
            vector = vectors[:, i].astype(np.float64)
            first = next(entry for entry in vector if abs(entry) >= (1 - 1e-6) * np.abs(vector).max())
            basis[:, i] = vector if first > 0 else -vector
    return basis


def _shape(channels: int, k: int, output: str, weight: Floats | None) -> tuple[int, ...]:
    if weight is not None:
        return (weight.shape[1],)
    sizes = {"projection": (channels, channels), "triu": (channels * (channels + 1) // 2,), "basis": (channels, k)}
    return sizes[output]


def illustration(image: Tensor) -> Tensor:
    """Every location projected onto the leading direction of the image."""
    projection = GrassmannPool2d(k=1)(image)
    return (projection @ image.flatten(2)).reshape(image.shape)


def _trained(channels: int, classes: int, columns: int) -> dict[str, Any]:
    """Class subspaces that training has moved."""
    rng = np.random.default_rng(0)
    return {"weight": rng.standard_normal((channels, classes, columns))}


METHOD = Method(
    (GrassmannPool2d,),
    summary="The subspace that the leading left singular vectors of a map span, as a projection.",
    paper=Paper(
        "Grassmann Pooling as Compact Homogeneous Bilinear Pooling for Fine-Grained Visual Classification",
        "Wei, Zhang, Gong, Zhang, Zheng",
        2018,
        "doi:10.1007/978-3-030-01219-9_22",
    ),
    reference=reference,
    training="projection onto the leading subspace",
    inference="projection onto the leading subspace",
    operators=(subspace_projection, subspace_basis),
    variants=(GrassmannScore2d,),
    illustration=illustration,
    cases=(
        Case("line", {"k": 1}, shape=(2, 3, 2, 4)),
        Case(
            "plane",
            {"k": 2},
            slack=50.0,
            why="rounding of float64 is magnified by s_1 / (s_2 - s_3), which is 1e4 on a map of two levels",
        ),
        Case("triu", {"k": 2, "output": "triu"}, shape=(2, 4, 3, 3)),
        Case("basis", {"k": 2, "output": "basis"}, shape=(2, 4, 3, 3)),
        Case("everything", {"k": 3}),
        Case("few-cells", {"k": 3}, shape=(2, 5, 1, 2)),
        Case("1x1", {"k": 2, "output": "triu"}, shape=(1, 3, 1, 1)),
        Case(
            "scores",
            {"channels": 4, "classes": 3, "k": 2, "class_dimensions": 1},
            shape=(2, 4, 3, 3),
            layer=GrassmannScore2d,
            state=_trained(4, 3, 1),
        ),
    ),
    space={"k": (1, 2, 3), "output": OUTPUTS},
    limits=(
        Limit({"k": 0}, ValueError, "k must be a positive int"),
        Limit({"k": 2, "output": "vector"}, ValueError, "output must be one of"),
        Limit({"k": 4}, ValueError, "use a smaller k", shape=(2, 3, 5, 5)),
        Limit({"k": 2}, ValueError, "nothing to pool", shape=(2, 3, 0, 5)),
        Limit({"k": 2}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "Where the k-th and the next singular value are equal there is no single answer: torch and a runtime may give "
        "different ones.",
        "The exported form finds the vectors by rotations in a Loop, in float64.",
    ),
)
