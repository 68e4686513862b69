"""Blur pooling (Zhang): low-pass filter, then subsampling.

    w_j = C(k - 1, j) / 2^(k - 1)      j = 0 ... k - 1, along every axis
    y_i = sum over j of w_j x_(s i - b + j)

k is the size of the filter and s the stride; the b cells before the first one, and those behind the last, are mirrored,
repeated or zero. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport.reference import per_axis as sizes_per_axis
from poolexport_ops import per_axis, require_rank
from poolexport_ops._blur import PAD_RULES, binomial_filter, blur
from poolexport_ops._border import BORDERS
from poolexport_ops._window import Ints
from poolexport_ops.weighted_sum_pool import weighted_sum_pool


class _BlurPool(Layer):
    """Binomial low-pass filter with stride.

    Args:
        channels: channels of the input, which puts the filter into the state dict as the author's package does;
            None serves any number and keeps nothing there, as timm does.
        filt_size: cells of the filter, an int or one per spatial axis; 1 is plain subsampling.
        stride: cells between results, an int or one per spatial axis.
        pad_mode: what lies beyond the border: "reflect" (mirrored about the outermost cell), "replicate", or "zero".
        pad_rule: how many cells lie there, for size k and stride s: "zhang" ((k - 1) // 2 before and k // 2 after),
            "timm" ((k + s - 2) // 2 on both sides), or "kornia" ((k - 1) // 2 on both sides). They agree where k is odd
            and s is 1 or 2.

    Buffers:
        filt: the filter, (channels, 1, *filt_size); (1, 1, *filt_size) and not saved where channels is None.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + before + after - filt_size) / stride) + 1``; by
        the rule of "zhang" that is ``ceil(n / stride)``.

    Raises:
        ValueError: an option out of range, an input of another rank, of another number of channels, smaller than the
            filter, or not longer than the part of it that is mirrored.

    Example:
        >>> import torch
        >>> from poolexport.nn import BlurPool1d
        >>> BlurPool1d(filt_size=3)(torch.tensor([[[4.0, 8.0, 0.0, 4.0]]]))
        tensor([[[6., 3.]]])

    Source:
        Zhang, ICML 2019, section 3.2; package antialiased-cnns; timm layers/blur_pool.py; kornia filters/blur_pool.py.
    """

    rank: ClassVar[int]
    filt: Tensor

    def __init__(
        self,
        channels: int | None = None,
        filt_size: Ints = 4,
        stride: Ints = 2,
        pad_mode: str = "reflect",
        pad_rule: str = "zhang",
    ) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be a positive int or None, got {channels!r}")
        self.channels = channels
        self.filt_size = per_axis("filt_size", filt_size, self.rank, minimum=1)
        self.stride = per_axis("stride", stride, self.rank, minimum=1)
        require_choice("pad_mode", pad_mode, BORDERS)
        require_choice("pad_rule", pad_rule, tuple(PAD_RULES))
        self.pad_mode = pad_mode
        self.pad_rule = pad_rule
        filt = binomial_filter(self.filt_size).repeat(channels or 1, 1, *(1,) * self.rank)
        self.register_buffer("filt", filt, persistent=channels is not None)

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        return blur(widened(x), widened(self.filt), self.stride, self.pad_mode, self.pad_rule).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, filt_size={self.filt_size}, stride={self.stride}, "
            f"pad_mode={self.pad_mode!r}, pad_rule={self.pad_rule!r}"
        )


class BlurPool1d(_BlurPool):
    rank = 1


class BlurPool2d(_BlurPool):
    rank = 2


class BlurPool3d(_BlurPool):
    rank = 3


def reference(
    x: ArrayLike,
    channels: int | None = None,
    filt_size: PerAxis = 4,
    stride: PerAxis = 2,
    pad_mode: str = "reflect",
    pad_rule: str = "zhang",
    filt: ArrayLike | None = None,
) -> Floats:
    """Blur pooling, slowly, in float64; a given `filt`, (channels, 1, *filt_size), replaces the binomial one.

    NaN and infinities spread to every window that holds them, and to no other.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = x.ndim - 2
    k, s = sizes_per_axis(filt_size, axes), sizes_per_axis(stride, axes)
    beyond = [_beyond(k_, s_, pad_rule) for k_, s_ in zip(k, s, strict=True)]
    modes: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "zero": "constant"}
    padded = np.pad(x, [(0, 0), (0, 0), *beyond], mode=modes[pad_mode])
    weights = np.array([_binomial(cell, k) for cell in itertools.product(*map(range, k))])
    if filt is not None:
        weights = np.asarray(filt, dtype=np.float64).reshape(-1, math.prod(k))
    y = np.empty(x.shape[:2] + output_shape(padded.shape[2:], k, s))
    for index, cells, _, _ in each_window(padded, k, s):
        y[(..., *index)] = exact_sum(weights * cells)
    return y


def _binomial(cell: tuple[int, ...], sizes: tuple[int, ...]) -> float:
    return math.prod(math.comb(k - 1, j) for j, k in zip(cell, sizes)) / 2 ** (sum(sizes) - len(sizes))


def _beyond(k: int, s: int, rule: str) -> tuple[int, int]:
    """Cells before the first cell of an axis and after its last."""
    if rule == "zhang":
        return math.floor((k - 1) / 2), math.ceil((k - 1) / 2)
    both = {"timm": ((s - 1) + (k - 1)) // 2, "kornia": (k - 1) // 2}[rule]
    return both, both


METHOD = Method(
    (BlurPool1d, BlurPool2d, BlurPool3d),
    summary="A binomial low-pass filter with stride.",
    paper=Paper("Making Convolutional Networks Shift-Invariant Again", "Zhang", 2019, "arXiv:1904.11486"),
    reference=reference,
    training="blur, then subsample",
    inference="blur, then subsample",
    operators=(weighted_sum_pool,),
    cases=(
        Case("official", {}),
        Case("channels", {"channels": 3, "filt_size": 4}),
        Case("timm", {"filt_size": 3, "pad_rule": "timm"}, shape=(1, 2, 8, 10)),
        Case("timm-even-filter", {"filt_size": 4, "stride": 3, "pad_rule": "timm"}),
        Case("kornia", {"filt_size": 5, "pad_mode": "zero", "pad_rule": "kornia"}),
        Case("replicate", {"filt_size": 7, "stride": (1, 3), "pad_mode": "replicate"}),
        Case("box", {"filt_size": 2}, shape=(1, 2, 8, 10)),
        Case("subsample", {"filt_size": 1, "stride": 2}),
        Case("unequal-sides", {"filt_size": (6, 3), "stride": (3, 2), "pad_mode": "zero"}),
        Case("1d", {"filt_size": 5}, shape=(2, 3, 11)),
        Case("3d", {"filt_size": 3}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "channels": (None, None, 3),
        "filt_size": (1, 2, 3, 4, 5, 7),
        "stride": (1, 2, 3),
        "pad_mode": ("reflect", "replicate", "zero"),
        "pad_rule": ("zhang", "timm", "kornia"),
    },
    limits=(
        Limit({"filt_size": 0}, ValueError, "filt_size must be a positive int"),
        Limit({"stride": 0}, ValueError, "stride must be a positive int"),
        Limit({"channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"pad_mode": "same"}, ValueError, "pad_mode must be one of"),
        Limit({"pad_rule": "same"}, ValueError, "pad_rule must be one of"),
        Limit({"channels": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
        Limit({"filt_size": 5}, ValueError, "the mirror image does not fit", shape=(1, 1, 2, 9)),
        Limit(
            {"pad_mode": "zero", "pad_rule": "kornia"},
            ValueError,
            "the window does not fit",
            shape=(1, 1, 1, 9),
            file="nothing",
        ),
    ),
    notes=(
        "Even filters: the author's package pads one cell more behind than before, timm equally on both sides and one "
        "cell more in all, kornia equally and one cell less: pad_rule.",
        "kornia pads with zeros: pad_mode='zero', pad_rule='kornia'.",
        "An exported graph does not refuse inputs too short to be mirrored; the runtime answers something else there.",
    ),
)
