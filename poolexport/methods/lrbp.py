"""Low-rank bilinear pooling (Kong and Fowlkes): class scores of bilinear features that are never formed.

    Z = P X      a 1x1 convolution of the channels to m
    score_k = |U_k+^T Z|^2 - |U_k-^T Z|^2 + b_k      squares summed over all locations and r / 2 columns each

This is a linear classifier on Z Z^T whose matrix for every class has at most r / 2 positive and r / 2 negative
eigenvalues. Training and inference are the same.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer
from poolexport.methods._pointwise import frames, pointwise
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank


class LRBP2d(Layer):
    """Scores of bilinear features by classifiers of low rank, without the features; computed in float64.

    Args:
        channels: channels of the input.
        num_classes: scores K.
        reduced_dim: channels m after the projection.
        class_rank: columns r of every class, even; the first half counts for the class, the second half against it.

    Parameters:
        projection: the 1x1 convolution, of weight (m, C, 1, 1) and bias (m).
        classifiers: (m, r K), the columns of the first class, then those of the second, and so on.
        bias: (K), added to the scores.

    Shape:
        (N, C, H, W) to (N, K).

    Raises:
        ValueError: an option out of range, or an input of another rank or number of channels.

    Example:
        >>> import torch
        >>> from poolexport.nn import LRBP2d
        >>> layer = LRBP2d(2, num_classes=1, reduced_dim=2, class_rank=2)
        >>> with torch.no_grad():
        ...     _ = layer.projection.weight.copy_(torch.eye(2)[:, :, None, None]), layer.projection.bias.zero_()
        ...     _ = layer.classifiers.copy_(torch.eye(2)), layer.bias.zero_()
        >>> layer(torch.tensor([[[[3.0, 1.0]], [[1.0, 2.0]]]]))  # 3^2 + 1^2 - 1^2 - 2^2
        tensor([[5.]], grad_fn=<ToCopyBackward0>)

    Source:
        Kong, Fowlkes, CVPR 2017, section 3, eq. 5; package aimerykong/Low-Rank-Bilinear-Pooling.
    """

    rank: ClassVar[int] = 2

    def __init__(self, channels: int, num_classes: int, reduced_dim: int = 100, class_rank: int = 8) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("num_classes", num_classes), ("reduced_dim", reduced_dim)):
            if value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        if class_rank < 2 or class_rank % 2:
            raise ValueError(f"class_rank must be a positive even int, got {class_rank!r}")
        self.channels = channels
        self.num_classes = num_classes
        self.reduced_dim = reduced_dim
        self.class_rank = class_rank
        self.projection = nn.Conv2d(channels, reduced_dim, 1)
        self.classifiers = nn.Parameter(torch.randn(reduced_dim, class_rank * num_classes) / math.sqrt(reduced_dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        if x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        responses = pointwise(self.projection, frames(x)) @ self.classifiers.double()
        energy = responses.square().reshape(x.shape[0], x.shape[2] * x.shape[3], responses.shape[1]).sum(1)
        halves = energy.reshape(x.shape[0], self.num_classes, 2, self.class_rank // 2).transpose(2, 3).sum(2)
        return (halves[:, :, 0] - halves[:, :, 1] + self.bias.double()).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, num_classes={self.num_classes}, reduced_dim={self.reduced_dim}, "
            f"class_rank={self.class_rank}"
        )


def reference(
    x: ArrayLike, channels: int, num_classes: int, reduced_dim: int = 100, class_rank: int = 8, **state: Floats
) -> Floats:
    """Low-rank bilinear scores, slowly, in float64, with exact sums; needs the whole state.

    An infinity makes scores infinite, or NaN where it counts for and against a class; a NaN makes all scores NaN.
    """
    x = np.asarray(x, dtype=np.float64)
    scores = np.zeros((len(x), num_classes))
    for n, sample in enumerate(x.reshape(len(x), channels, math.prod(x.shape[2:]))):
        located = [_projected(column, state) for column in sample.T]
        for k in range(num_classes):
            columns = state["classifiers"].T[k * class_rank : (k + 1) * class_rank]
            terms = [state["bias"][k]]
            for j, column in enumerate(columns):
                sign = 1.0 if 2 * j < class_rank else -1.0
                terms += [sign * float(exact_sum(column * z)) ** 2 for z in located]
            scores[n, k] = exact_sum(np.array(terms))
    return scores


def _projected(column: Floats, state: dict[str, Floats]) -> Floats:
    weight, bias = state["projection.weight"][:, :, 0, 0], state["projection.bias"]
    return np.array([float(exact_sum(np.append(row * column, b))) for row, b in zip(weight, bias)])


def _trained(channels: int, num_classes: int, reduced_dim: int, class_rank: int) -> dict[str, Any]:
    """Numbers that a trained classifier could hold."""
    rng = np.random.default_rng(0)
    return {
        "projection.weight": rng.standard_normal((reduced_dim, channels, 1, 1)),
        "projection.bias": 0.2 * rng.standard_normal(reduced_dim),
        "classifiers": 0.5 * rng.standard_normal((reduced_dim, class_rank * num_classes)),
        "bias": rng.standard_normal(num_classes),
    }


METHOD = Method(
    (LRBP2d,),
    summary="Class scores of bilinear features by classifiers of low rank, without forming the features.",
    paper=Paper("Low-rank Bilinear Pooling for Fine-Grained Classification", "Kong, Fowlkes", 2017, "arXiv:1611.05109"),
    reference=reference,
    training="squares for a class minus those against",
    inference="squares for a class minus those against",
    operators=(),
    dynamic_channels=False,
    cases=(
        Case(
            "ten-classes",
            {"channels": 3, "num_classes": 10, "reduced_dim": 8, "class_rank": 4},
            shape=(2, 3, 7, 5),
            state=_trained(3, 10, 8, 4),
        ),
        Case(
            "rank-two",
            {"channels": 3, "num_classes": 2, "reduced_dim": 5, "class_rank": 2},
            shape=(1, 3, 7, 4),
            state=_trained(3, 2, 5, 2),
        ),
        Case(
            "one-class",
            {"channels": 2, "num_classes": 1, "reduced_dim": 1, "class_rank": 6},
            shape=(2, 2, 1, 5),
            state=_trained(2, 1, 1, 6),
        ),
        Case("defaults", {"channels": 2, "num_classes": 2}, shape=(1, 2, 3, 4), state=_trained(2, 2, 100, 8)),
    ),
    limits=(
        Limit({"channels": 0, "num_classes": 2}, ValueError, "channels must be a positive int"),
        Limit({"channels": 2, "num_classes": 0}, ValueError, "num_classes must be a positive int"),
        Limit({"channels": 2, "num_classes": 2, "reduced_dim": 0}, ValueError, "reduced_dim must be a positive int"),
        Limit({"channels": 2, "num_classes": 2, "class_rank": 3}, ValueError, "class_rank must be a positive even int"),
        Limit({"channels": 2, "num_classes": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
        Limit({"channels": 2, "num_classes": 2}, ValueError, "expects an input of shape", shape=(2, 2, 9)),
    ),
    notes=(
        "The bilinear features are neither rooted nor normalised, which needs the features themselves; variants of the "
        "authors' code scale or root the channels before the projection, outside of this layer.",
    ),
)
