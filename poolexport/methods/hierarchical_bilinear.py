"""Hierarchical bilinear pooling (Yu et al.): products of three projected maps, pair by pair, summed over the locations.

    Z_k = W_k X_k + b_k      a 1x1 convolution of each map to P channels
    s_ij = sum(Z_il o Z_jl)      over all locations l, for the pairs (1, 2), (1, 3), (2, 3)
    y_ij = sign(s_ij) sqrt(|s_ij|), z_ij = y_ij / sqrt(|y_ij|^2 + eps), answer = (z_12, z_13, z_23)

Training and inference are the same. Everything is computed in float64, because the root magnifies errors near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_positive
from poolexport.methods._pointwise import frames, pointwise
from poolexport.methods._signed_root import normalised, require_guard, signed_root
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank


class HierarchicalBilinearPool2d(Layer):
    """Element-wise products of the projections of three maps, pair by pair, summed, rooted, normalised, side by side.

    ``forward(x1, x2, x3)`` takes maps of one height and width, as three layers of a network give them.

    Args:
        channels: channels of the maps, an int for all or three of them.
        joint_dim: channels P of the projections.
        norm_eps: what is added to the square of every norm, above 0.
        gradient_guard: the slope of the root is 0.5 / sqrt(|s| + gradient_eps) for "inside" and
            0.5 / (sqrt(|s|) + gradient_eps) for "beside"; the authors' code has "beside" and 0.03.
        gradient_eps: as said, above 0; it changes the gradient only, and keeps it finite at 0.

    Parameters:
        bilinear_proj1, bilinear_proj2, bilinear_proj3: 1x1 convolutions, under the names of the authors' network.

    Shape:
        (N, C1, H, W), (N, C2, H, W) and (N, C3, H, W) to (N, 3 P).

    Raises:
        ValueError: an option out of range, or inputs of another rank or number of channels, or of batches, types or
            sizes that differ.

    Example:
        >>> import torch
        >>> from poolexport.nn import HierarchicalBilinearPool2d
        >>> layer = HierarchicalBilinearPool2d((4, 5, 6), joint_dim=8)
        >>> layer(*(torch.rand(2, c, 7, 9) for c in (4, 5, 6))).shape
        torch.Size([2, 24])

    Source:
        Yu, Zhao, Zheng, Zhang, You, ECCV 2018, section 3.3; package ChaojianYu/Hierarchical-Bilinear-Pooling.
    """

    rank: ClassVar[int] = 2

    def __init__(
        self,
        channels: int | Sequence[int],
        joint_dim: int = 8192,
        norm_eps: float = 1e-7,
        gradient_guard: str = "inside",
        gradient_eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.channels = _three(channels)
        if joint_dim < 1:
            raise ValueError(f"joint_dim must be a positive int, got {joint_dim!r}")
        require_positive("norm_eps", norm_eps)
        require_guard(gradient_guard, gradient_eps)
        self.joint_dim = joint_dim
        self.norm_eps = norm_eps
        self.gradient_guard = gradient_guard
        self.gradient_eps = gradient_eps
        self.bilinear_proj1, self.bilinear_proj2, self.bilinear_proj3 = (
            nn.Conv2d(count, joint_dim, 1) for count in self.channels
        )

    def forward(self, x1: Tensor, x2: Tensor, x3: Tensor) -> Tensor:
        maps = (x1, x2, x3)
        for x in maps:
            require_rank(x, self.rank, type(self).__name__)
        self._require_trio(maps)
        shape = (x1.shape[0], x1.shape[2] * x1.shape[3], self.joint_dim)
        convs = (self.bilinear_proj1, self.bilinear_proj2, self.bilinear_proj3)
        projected = [pointwise(conv, frames(x)).reshape(shape) for conv, x in zip(convs, maps)]
        sums = [(a * b).sum(1) for a, b in combinations(projected, 2)]
        roots = [signed_root(s, self.gradient_eps, self.gradient_guard) for s in sums]
        return torch.cat([normalised(y, "inside", self.norm_eps) for y in roots], 1).to(x1.dtype)

    def _require_trio(self, maps: Sequence[Tensor]) -> None:
        for x, count in zip(maps, self.channels):
            if x.shape[1] != count:
                raise ValueError(
                    f"the layer takes maps of {self.channels} channels, got {tuple(x.shape[1] for x in maps)}"
                )
        if torch.compiler.is_compiling():
            return
        if len({(x.shape[0], *x.shape[2:], x.dtype) for x in maps}) > 1:
            found = ", ".join(f"{x.dtype} of shape {tuple(x.shape)}" for x in maps)
            raise ValueError(f"the maps must have one batch, height, width and type, got {found}")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, joint_dim={self.joint_dim}, norm_eps={self.norm_eps}"


def _three(channels: int | Sequence[int]) -> tuple[int, ...]:
    counts = (channels,) * 3 if isinstance(channels, int) else tuple(channels)
    if len(counts) != 3 or not all(isinstance(c, int) and not isinstance(c, bool) and c > 0 for c in counts):
        raise ValueError(f"channels must be a positive int or three of them, got {channels!r}")
    return counts


def reference(
    x: ArrayLike,
    x2: ArrayLike,
    x3: ArrayLike,
    channels: int | Sequence[int],
    joint_dim: int = 8192,
    norm_eps: float = 1e-7,
    gradient_guard: str = "inside",
    gradient_eps: float = 1e-8,
    **state: Floats,
) -> Floats:
    """Hierarchical bilinear pooling, slowly, in float64; needs the whole state. All sums are exact.

    A NaN or an infinity in one map reaches both parts of the answer that the map has to do with, not the third. The
    gradient's guard does not matter here.
    """
    maps = [np.asarray(m, dtype=np.float64) for m in (x, x2, x3)]
    parts = np.zeros((len(maps[0]), 3, joint_dim))
    for n, p in np.ndindex(len(maps[0]), joint_dim):
        z = [_projection(m[n], state, f"bilinear_proj{k}", p) for k, m in enumerate(maps, 1)]
        for pair, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            total = float(exact_sum(z[i] * z[j]))
            parts[n, pair, p] = np.sqrt(total) if total > 0 else -np.sqrt(-total)
    for vector in parts.reshape(-1, joint_dim):
        vector /= np.sqrt(exact_sum(vector**2) + norm_eps)
    return parts.reshape(len(parts), 3 * joint_dim)


def _projection(sample: Floats, state: dict[str, Floats], name: str, p: int) -> Floats:
    """Return one projected channel, location by location."""
    weight, bias = state[f"{name}.weight"][p, :, 0, 0], state[f"{name}.bias"][p]
    columns = sample.reshape(len(sample), -1).T
    return np.array([float(exact_sum(np.append(weight * column, bias))) for column in columns])


def companions(x: ArrayLike, channels: int | Sequence[int], **_: Any) -> tuple[Floats, Floats]:
    """Two further maps of the same size."""
    x = np.asarray(x)
    rng = np.random.default_rng(2)
    lengths = x.shape[2:]
    y, z = (rng.standard_normal((x.shape[0], count, *lengths)).astype(x.dtype) for count in _three(channels)[1:])
    return y, z


def _trained(channels: tuple[int, int, int], joint_dim: int) -> dict[str, Any]:
    """Numbers that trained projections could hold."""
    rng = np.random.default_rng(0)
    state: dict[str, Any] = {}
    for k, count in enumerate(channels, 1):
        state[f"bilinear_proj{k}.weight"] = rng.standard_normal((joint_dim, count, 1, 1))
        state[f"bilinear_proj{k}.bias"] = 0.2 * rng.standard_normal(joint_dim)
    return state


METHOD = Method(
    (HierarchicalBilinearPool2d,),
    summary="Products of three projected maps, pair by pair, summed over the locations, rooted and normalised.",
    paper=Paper(
        "Hierarchical Bilinear Pooling for Fine-Grained Visual Recognition",
        "Yu, Zhao, Zheng, Zhang, You",
        2018,
        "arXiv:1807.09915",
    ),
    reference=reference,
    training="rooted sums of products",
    inference="rooted sums of products",
    operators=(),
    companions=companions,
    companion_axes=("N_HW", "N_HW"),
    dynamic_channels=False,
    cases=(
        Case("one-width", {"channels": 3, "joint_dim": 4}, shape=(2, 3, 5, 6), state=_trained((3, 3, 3), 4)),
        Case("three-widths", {"channels": (3, 2, 5), "joint_dim": 7}, shape=(2, 3, 4, 7), state=_trained((3, 2, 5), 7)),
        Case(
            "guard",
            {"channels": 2, "joint_dim": 3, "norm_eps": 1e-3, "gradient_guard": "beside", "gradient_eps": 1e-6},
            shape=(1, 2, 4, 3),
            state=_trained((2, 2, 2), 3),
        ),
        Case("one-cell", {"channels": (1, 3, 2), "joint_dim": 2}, shape=(2, 1, 1, 1), state=_trained((1, 3, 2), 2)),
    ),
    limits=(
        Limit({"channels": 0}, ValueError, "channels must be a positive int or three of them"),
        Limit({"channels": (1, 2)}, ValueError, "channels must be a positive int or three of them"),
        Limit({"channels": 2, "joint_dim": 0}, ValueError, "joint_dim must be a positive int"),
        Limit({"channels": 2, "norm_eps": 0.0}, ValueError, "norm_eps must be a finite number above 0"),
        Limit({"channels": 2, "gradient_guard": "none"}, ValueError, "gradient_guard must be one of"),
        Limit({"channels": 2, "gradient_eps": -1.0}, ValueError, "gradient_eps must be a finite number above 0"),
        Limit({"channels": 2, "joint_dim": 3}, ValueError, "the layer takes maps of", shape=(1, 3, 4, 4)),
        Limit({"channels": 2, "joint_dim": 3}, ValueError, "expects an input of shape", shape=(2, 2, 9)),
    ),
    notes=(
        "Near 0 the authors' gradient is 0.5 / (|y| + 0.03): gradient_guard='beside', gradient_eps=0.03.",
        "The projections are computed in float64, which is slower than a float32 convolution.",
    ),
)
