"""Multimodal compact bilinear pooling: sketches of all products of the channels of two inputs, such as image and text.

    z_t = sum of s1_i s2_j x_i y_j over all pairs of channels (i, j) with (h1_i + h2_j) mod d = t
    y = z / |z| after the root sign(z) sqrt|z|, then dropout in training

Inputs are two vectors; or a map, whose every location meets the other vector, or the other map at that location.
Inference drops nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._sketch import SketchLayer
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.compact_bilinear import compact_bilinear


class _MultimodalCompactBilinear(SketchLayer):
    """Compact bilinear pooling of two inputs, which may come from different networks.

    ``forward(x, y)`` takes vectors in both places, or, in two dimensions, a map first, and a vector or another map.
    Published weights need the hashes and signs they were trained with: they are in the state dict, and can be given to
    the constructor.

    Args:
        channels: channels of the first input.
        other_channels: channels of the second.
        output_dim: numbers in the answer, d.
        seed: of numpy's legacy generator. Hashes and signs of the first input, then of the second, are drawn with
            ``seed``, ``seed + 2``, ``seed + 4`` and ``seed + 6``.
        rand_h_1, rand_h_2: hashes to use instead, ints from 0 to ``output_dim - 1``.
        rand_s_1, rand_s_2: signs to use instead, any finite factors.
        learn: make the signs parameters.
        signed_sqrt: take the signed square root.
        sqrt_eps: added to the magnitude under the root, where it is not 0.
        norm: "floor" divides by ``max(|z|, norm_eps)``, "inside" by ``sqrt(|z|^2 + norm_eps)``, "none" by nothing.
        norm_eps: the bound, above 0.
        norm_over: of maps, normalise the whole "sample", or each "location" on its own.
        dropout: share of the answer that training sets to 0, below 1.
        channels_last: of maps, put the bins last.

    Shape:
        (N, C) and (N, D) to (N, output_dim); in two dimensions (N, C, H, W) and (N, D) or (N, D, H, W) to
        (N, output_dim, H, W), or (N, H, W, output_dim) with ``channels_last``.

    Raises:
        ValueError: an option out of range, hashes or signs that do not fit, or inputs of another rank or number of
            channels, or of different batches or sizes.

    Example:
        >>> import torch
        >>> from poolexport.nn import MultimodalCompactBilinear0d
        >>> sketch = {"rand_h_1": [0, 1], "rand_s_1": [1, 1], "rand_h_2": [2], "rand_s_2": [-1]}
        >>> layer = MultimodalCompactBilinear0d(2, 1, 4, signed_sqrt=False, norm="none", **sketch).eval()
        >>> layer(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0]]))
        tensor([[  0.,   0., -10., -15.]])

    Source:
        Fukui, Park, Yang, Rohrbach, Darrell, Rohrbach, EMNLP 2016, section 3.1; vqa-mcb in Caffe (``norm="inside"``,
        ``norm_eps=1e-7``) and Torch7 (``norm_over="location"``).
    """

    rank: ClassVar[int]

    def __init__(
        self,
        channels: int,
        other_channels: int,
        output_dim: int = 16000,
        seed: int = 1,
        rand_h_1: ArrayLike | None = None,
        rand_s_1: ArrayLike | None = None,
        rand_h_2: ArrayLike | None = None,
        rand_s_2: ArrayLike | None = None,
        learn: bool = False,
        signed_sqrt: bool = True,
        sqrt_eps: float = 0.0,
        norm: str = "floor",
        norm_eps: float = 1e-12,
        norm_over: str = "sample",
        dropout: float = 0.1,
        channels_last: bool = False,
    ) -> None:
        sizes = (channels, other_channels)
        super().__init__(sizes, output_dim, signed_sqrt, sqrt_eps, norm, norm_eps, norm_over, channels_last)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, got {dropout!r}")
        given = {"rand_h_1": rand_h_1, "rand_s_1": rand_s_1, "rand_h_2": rand_h_2, "rand_s_2": rand_s_2}
        self.hold_sketches(seed, given, learn)
        self.dropout = dropout

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        self._require_partner(x, y)
        self.require_channels(x, y)
        locations = x.double().unsqueeze(2).flatten(2)
        # Vectors meet every location.
        others = y.double().unsqueeze(2).flatten(2).expand(-1, -1, locations.shape[2])
        z = self.finished(self.sketched(locations, others, pooled=False))
        z = z.reshape(x.shape[0], self.output_dim, *x.shape[2:])
        z = z.permute(0, 2, 3, 1) if self.channels_last and self.rank else z
        return F.dropout(z, self.dropout, self.training).to(x.dtype)

    def _require_partner(self, x: Tensor, y: Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        if y.dim() not in (2, x.dim()) or y.shape[:1] != x.shape[:1] or (y.dim() > 2 and y.shape[2:] != x.shape[2:]):
            raise ValueError(
                f"the second input must be vectors (N, D){' or a map of the size of the first' if self.rank else ''}, "
                f"of the same batch; got {tuple(y.shape)} beside {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dropout={self.dropout}"


class MultimodalCompactBilinear0d(_MultimodalCompactBilinear):
    rank = 0


class MultimodalCompactBilinear2d(_MultimodalCompactBilinear):
    rank = 2


def reference(
    x: ArrayLike,
    y: ArrayLike,
    *,
    channels: int,
    other_channels: int,
    output_dim: int = 16000,
    seed: int = 1,
    learn: bool = False,
    signed_sqrt: bool = True,
    sqrt_eps: float = 0.0,
    norm: str = "floor",
    norm_eps: float = 1e-12,
    norm_over: str = "sample",
    dropout: float = 0.1,
    channels_last: bool = False,
    rand_h_1: ArrayLike | None = None,
    rand_s_1: ArrayLike | None = None,
    rand_h_2: ArrayLike | None = None,
    rand_s_2: ArrayLike | None = None,
) -> Floats:
    """Multimodal compact bilinear pooling, slowly, in float64: bin by bin, each the exact sum over its pairs."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    y = y.reshape(*y.shape, *(1,) * (x.ndim - y.ndim)) + np.zeros((1, 1, *x.shape[2:]))
    h1, s1 = _sketch(channels, output_dim, seed, rand_h_1, rand_s_1)
    h2, s2 = _sketch(other_channels, output_dim, seed + 4, rand_h_2, rand_s_2)
    z = np.zeros((x.shape[0], output_dim, *x.shape[2:]))
    for t in range(output_dim):
        partners = [(i, (t - h1[i]) % output_dim) for i in range(channels)]
        pairs = [(i, j) for i, rest in partners for j in range(other_channels) if h2[j] == rest]
        if pairs:
            z[:, t] = exact_sum(np.stack([s1[i] * x[:, i] * s2[j] * y[:, j] for i, j in pairs], axis=-1))
    if signed_sqrt:
        z = np.where(z == 0, z, np.sign(z) * np.sqrt(np.abs(z) + sqrt_eps))
    for n in range(len(x)) if norm != "none" else ():
        whole = norm_over == "sample"
        for group in [(n,)] if whole else [(n, slice(None), *place) for place in np.ndindex(*x.shape[2:])]:
            square = float(exact_sum(np.square(z[group]).ravel()))
            z[group] /= np.maximum(np.sqrt(square), norm_eps) if norm == "floor" else np.sqrt(square + norm_eps)
    return np.moveaxis(z, 1, -1) if channels_last else z


def _sketch(size: int, d: int, seed: int, hashes: ArrayLike | None, signs: ArrayLike | None) -> tuple[Any, Any]:
    drawn = np.random.RandomState(seed).randint(0, d, size) if hashes is None else np.asarray(hashes)
    coins = np.random.RandomState(seed + 2).randint(0, 2, size)
    return drawn, np.where(coins == 1, 1.0, -1.0) if signs is None else np.asarray(signs, dtype=np.float64)


def companions(x: ArrayLike, other_channels: int, **_: Any) -> tuple[np.ndarray]:
    """The other modality: a vector for every sample."""
    x = np.asarray(x)
    return (np.random.default_rng(1).standard_normal((x.shape[0], other_channels)).astype(x.dtype),)


def illustration(image: Tensor) -> Tensor:
    """The first three bins of an image whose every location meets one vector."""
    layer = MultimodalCompactBilinear2d(image.shape[1], 2, 3, signed_sqrt=False, norm="none").eval()
    return layer(image, image.new_ones(image.shape[0], 2))


METHOD = Method(
    (MultimodalCompactBilinear0d, MultimodalCompactBilinear2d),
    summary="Sketches of all products of the channels of two inputs, such as image and text.",
    paper=Paper(
        "Multimodal Compact Bilinear Pooling for Visual Question Answering and Visual Grounding",
        "Fukui, Park, Yang, Rohrbach, Darrell, Rohrbach",
        2016,
        "arXiv:1606.01847",
    ),
    reference=reference,
    training="sums of signed products by bin, then dropout",
    inference="sums of signed products by bin, without dropout",
    operators=(compact_bilinear,),
    companions=companions,
    illustration=illustration,
    dynamic_channels=False,
    random=True,
    cases=(
        Case("map", {"channels": 3, "other_channels": 4, "output_dim": 24}, shape=(2, 3, 4, 5)),
        Case(
            "location",
            {"channels": 3, "other_channels": 2, "output_dim": 9, "norm_over": "location", "channels_last": True},
            shape=(2, 3, 4, 5),
        ),
        Case("vectors", {"channels": 5, "other_channels": 4, "output_dim": 32, "dropout": 0.5}, shape=(2, 5)),
        Case(
            "caffe",
            {"channels": 4, "other_channels": 6, "output_dim": 7, "seed": 5, "norm": "inside", "norm_eps": 1e-7},
            shape=(2, 4),
        ),
        Case("many-pairs", {"channels": 9, "other_channels": 8, "output_dim": 5, "signed_sqrt": False}, shape=(2, 9)),
        Case(
            "given",
            {
                "channels": 2,
                "other_channels": 3,
                "output_dim": 12,
                "rand_h_1": [0, 7],
                "rand_s_1": [1, -1],
                "rand_h_2": [4, 1, 11],
                "rand_s_2": [-1, -1, 1],
                "sqrt_eps": 1e-8,
            },
            shape=(2, 2),
        ),
        Case(
            "learned",
            {"channels": 3, "other_channels": 2, "output_dim": 4, "learn": True, "norm": "none"},
            shape=(2, 3),
            state={"rand_s_1": [0.5, -1.25, 2.0], "rand_s_2": [-0.75, 1.5]},
        ),
    ),
    space={
        "channels": (3,),
        "other_channels": (1, 2, 5),
        "output_dim": (1, 4, 13),
        "seed": (1, 2, 1000),
        "signed_sqrt": (True, False),
        "norm": ("floor", "inside", "none"),
        "norm_eps": (1e-12, 1e-7),
        "norm_over": ("sample", "location"),
        "channels_last": (False, True),
    },
    limits=(
        Limit({"channels": 0, "other_channels": 2}, ValueError, "channels must be a positive int"),
        Limit({"channels": 2, "other_channels": 0}, ValueError, "other_channels must be a positive int"),
        Limit({"channels": 2, "other_channels": 2, "output_dim": 0}, ValueError, "output_dim must be a positive int"),
        Limit({"channels": 2, "other_channels": 3, "rand_h_2": [1, 2]}, ValueError, "rand_h_2 must hold 3 ints"),
        Limit({"channels": 2, "other_channels": 3, "rand_s_1": [1]}, ValueError, "rand_s_1 must hold 2 finite numbers"),
        Limit({"channels": 2, "other_channels": 2, "dropout": 1.0}, ValueError, "dropout must be from 0 to below 1"),
        Limit({"channels": 2, "other_channels": 2, "norm": "l1"}, ValueError, "norm must be one of"),
        Limit(
            {"channels": 4, "other_channels": 2, "output_dim": 8},
            ValueError,
            "the layer has 4 channels, the input has 3",
            shape=(2, 3, 7, 7),
        ),
        Limit({"channels": 3, "other_channels": 2}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "Published models drew 16000 bins in Caffe; their weights need their hashes and signs.",
        "Caffe normalises maps over the whole sample, Torch7's code every location: norm_over.",
        "A file sums up many pairs by a transform in float64: bins are right to 1e-15 of the largest, and bins without "
        "a pair are 0. torch adds the pairs one by one, which takes much longer than a transform for vectors of "
        "thousands.",
    ),
)
