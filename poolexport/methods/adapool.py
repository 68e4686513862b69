"""AdaPool (Stergiou & Poppe): a learned blend of two weighted means, by closeness to the mean and by size.

    m = mean(x)                              over the window, channel by channel
    eDSCW = sum(w_i x_i) / sum(w_i)          w_i = exp(2 |x_i m| / (x_i^2 + m^2)), the exponent of the Dice coefficient
    eM = sum(v_i x_i) / sum(v_i)             v_i = exp(x_i), which is SoftPool
    y = beta eDSCW + (1 - beta) eM

``beta`` is learned: one number, one per channel, or one per output location; it starts at 0.5. Either mean is available
alone, and so is the paper's baseline of inverse distance weighting, w_i = 1 / |x_i - m|. Training and inference are the
same.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, require_choice
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport.reference import per_axis as sizes_per_axis
from poolexport_ops import Window, per_axis
from poolexport_ops._window import Ints
from poolexport_ops.mean_similarity_pool import mean_similarity_pool
from poolexport_ops.softmax_pool import softmax_pool


class _AdaPool(WindowLayer):
    """Blend of a mean weighted by closeness to the plain mean and one weighted by size.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel; they carry no weight and do not count in the mean.
        ceil_mode: keep the last, partial window.
        weights: "adapool" (the blend), "edscw" or "em" (one of the two), or "idw" (inverse distance to the mean).
        similarity: "dice" (the paper), or "signed_dice", which leaves out the magnitude in the numerator, so that cells
            of the other sign than the mean weigh least (the authors' kernels).
        align: "plain", or "official" (the authors' kernels): every window begins half a kernel, rounded down, earlier
            and is cut at the border; the last half kernel of the input is not looked at. Excludes ``padding`` and
            ``ceil_mode``.
        channels: learn one beta per channel, for this many.
        output_size: learn one beta per output location, for an output of this size, as the authors' package does; at
            other sizes the nearest entry serves. None, like ``channels=None``, learns one beta for the layer.
        clamp_beta: keep beta inside [0, 1]. The package's default path does not.

    Parameters:
        beta: the share of eDSCW, shape (1,), (channels,) or output_size; none unless ``weights`` is "adapool".

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, options that exclude each other, an input of another rank, of another number
            of channels, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import AdaPool2d
        >>> AdaPool2d(2)(torch.tensor([[[[0.0, 0.0], [0.0, 2.0]]]])).round(decimals=3)
        tensor([[[[1.0590]]]], grad_fn=<RoundBackward1>)

    Source:
        Stergiou, Poppe, IEEE TIP 32, 2023, sections III and IV; package alexandrosstergiou/adaPool (idea.py,
        adapool_cuda_kernel.cu).
    """

    def __init__(
        self,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        weights: str = "adapool",
        similarity: str = "dice",
        align: str = "plain",
        channels: int | None = None,
        output_size: Ints | None = None,
        clamp_beta: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        require_choice("weights", weights, ("adapool", "edscw", "em", "idw"))
        require_choice("similarity", similarity, ("dice", "signed_dice"))
        require_choice("align", align, ("plain", "official"))
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be a positive int or None, got {channels!r}")
        if channels is not None and output_size is not None:
            raise ValueError("beta is learned per channel or per output location: channels excludes output_size")
        if align == "official" and (self.window.padded or ceil_mode):
            raise ValueError("align 'official' cuts windows at the border and excludes padding and ceil_mode")
        size = None if output_size is None else per_axis("output_size", output_size, self.rank, minimum=1)
        self.weights = weights
        self.similarity = similarity
        self.align = align
        self.channels = channels
        self.output_size = size
        self.clamp_beta = clamp_beta
        self.earlier = tuple(k // 2 if align == "official" else 0 for k in self.window.kernel_shape)
        if align == "official":
            ends = (0,) * self.rank
            self.window = Window.of(self.window.kernel_shape, self.window.strides, (*self.earlier, *ends))
        if weights == "adapool":
            self.beta = nn.Parameter(torch.full(size or (channels or 1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        wide = x.double()
        if any(self.earlier):
            wide = wide[(..., *(slice(None, -p if p else None) for p in self.earlier))]
        return self._pool(wide).to(x.dtype)

    def _pool(self, x: Tensor) -> Tensor:
        if self.weights == "em":
            return softmax_pool(x, x, **self.window.onnx())
        weighting = "inverse_distance" if self.weights == "idw" else self.similarity
        close = mean_similarity_pool(x, **self.window.onnx(), weighting=weighting)
        if self.weights != "adapool":
            return close
        large = softmax_pool(x, x, **self.window.onnx())
        beta = self._share(close.shape[2:])
        return beta * close + (1 - beta) * large

    def _share(self, lengths: torch.Size) -> Tensor:
        """Beta in a shape that fits the output, of these spatial lengths."""
        beta = self.beta.double()
        beta = beta.clamp(0, 1) if self.clamp_beta else beta
        if self.output_size is None:
            return beta.reshape(1, -1, *(1,) * self.rank)
        for axis, (have, want) in enumerate(zip(self.output_size, lengths)):
            place = torch.arange(want, device=beta.device)
            beta = beta.index_select(axis, (2 * place + 1) * have // (2 * want))
        return beta

    def extra_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"weights": self.weights, "similarity": self.similarity, "align": self.align}
        options["clamp_beta"] = self.clamp_beta
        return options | {
            name: value for name in ("channels", "output_size") if (value := getattr(self, name)) is not None
        }


class AdaPool1d(_AdaPool):
    rank = 1


class AdaPool2d(_AdaPool):
    rank = 2


class AdaPool3d(_AdaPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis = 2,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    weights: str = "adapool",
    similarity: str = "dice",
    align: str = "plain",
    channels: int | None = None,
    output_size: PerAxis | None = None,
    clamp_beta: bool = True,
    beta: ArrayLike | None = None,
) -> Floats:
    """AdaPool, slowly, in float64; None for `beta` is its start, 0.5.

    The Dice coefficient of 0 and 0 is taken as 0. It occurs where a window's mean is 0, and there eDSCW is 0 whatever
    is taken. Inverse distance weighting gives the mean itself where a cell equals it. A window with +inf or NaN is NaN;
    one with -inf is NaN too, except for "em", where such a cell has no weight.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = x.ndim - 2
    output = output_shape(x.shape[2:], kernel_size, stride, padding, 1, ceil_mode)
    if align == "official":
        padding = tuple(k // 2 for k in sizes_per_axis(kernel_size, axes))
    y = np.empty(x.shape[:2] + output)
    with np.errstate(all="ignore"):
        for index, cells, _, _ in each_window(x, kernel_size, stride, padding, 1, ceil_mode):
            if any(i >= o for i, o in zip(index, output)):
                continue
            means = {
                "edscw": lambda cells=cells: _edscw(cells, similarity),
                "em": lambda cells=cells: _em(cells),
                "idw": lambda cells=cells: _idw(cells),
            }
            if weights != "adapool":
                y[(..., *index)] = means[weights]()
                continue
            b = _beta(beta, index, output, None if output_size is None else sizes_per_axis(output_size, axes))
            b = np.clip(b, 0, 1) if clamp_beta else b
            y[(..., *index)] = b * means["edscw"]() + (1 - b) * means["em"]()
    return y


def _edscw(cells: Floats, similarity: str) -> Floats:
    m = exact_sum(cells, cells.shape[-1])[..., None]
    product = cells * m if similarity == "signed_dice" else np.abs(cells * m)
    squares = cells**2 + m**2
    w = np.exp(np.where(squares == 0, 0.0, 2 * product / squares))
    return exact_sum(w * cells, exact_sum(w))


def _em(cells: Floats) -> Floats:
    v = np.exp(cells - cells.max(axis=-1, keepdims=True))
    return exact_sum(np.where(v == 0, 0.0, v * cells), exact_sum(v))


def _idw(cells: Floats) -> Floats:
    m = exact_sum(cells, cells.shape[-1])
    distance = np.abs(cells - m[..., None])
    w = 1 / distance
    return np.where((distance == 0).any(axis=-1), m, exact_sum(w * cells, exact_sum(w)))


def _beta(
    beta: ArrayLike | None, index: tuple[int, ...], output: tuple[int, ...], size: tuple[int, ...] | None
) -> Floats:
    """The share at one output location: a number, or one per channel."""
    if beta is None:
        return np.float64(0.5)  # type: ignore[return-value]
    values = np.asarray(beta, dtype=np.float64)
    if size is None:
        return values
    return values[tuple(int((Fraction(i) + Fraction(1, 2)) * b / o) for i, b, o in zip(index, size, output))]


METHOD = Method(
    (AdaPool1d, AdaPool2d, AdaPool3d),
    summary="A learned blend of a mean weighted by closeness to the mean and a softmax-weighted mean.",
    paper=Paper(
        "AdaPool: Exponential Adaptive Pooling for Information-Retaining Downsampling",
        "Stergiou, Poppe",
        2021,
        "arXiv:2111.00772",
    ),
    reference=reference,
    training="blend of two weighted means with a learned share",
    inference="the same blend",
    operators=(mean_similarity_pool, softmax_pool),
    cases=(
        Case("2x2", {}, state={"beta": [0.3]}),
        Case("initial", {"kernel_size": 3, "stride": 2}),
        Case("padded", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}, shape=(1, 2, 8, 10)),
        Case("per-channel", {"channels": 3}, state={"beta": [0.1, 0.6, 0.9]}),
        Case(
            "per-location",
            {"output_size": (4, 5)},
            state={"beta": np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)},
        ),
        Case("clamped", {}, state={"beta": [1.7]}),
        Case("unclamped", {"clamp_beta": False}, state={"beta": [1.7]}),
        Case("edscw", {"kernel_size": (3, 2), "stride": 1, "weights": "edscw"}),
        Case("em", {"weights": "em"}),
        Case("idw", {"kernel_size": 3, "stride": 2, "weights": "idw"}),
        Case("idw-padded", {"kernel_size": 3, "padding": 1, "weights": "idw"}),
        Case("official", {"similarity": "signed_dice", "align": "official"}, state={"beta": [0.3]}),
        Case("official-3x3", {"kernel_size": 3, "stride": 2, "weights": "edscw", "align": "official"}),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11), state={"beta": [0.8]}),
        Case("3d", {}, shape=(1, 2, 5, 6, 7), state={"beta": [0.8]}),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, False, True),
        "weights": ("adapool", "adapool", "edscw", "em", "idw"),
        "similarity": ("dice", "signed_dice"),
        "align": ("plain", "plain", "official"),
        "channels": (None, 3),
        "output_size": (None, None, 2),
        "clamp_beta": (True, False),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"weights": "max"}, ValueError, "weights must be one of"),
        Limit({"similarity": "cosine"}, ValueError, "similarity must be one of"),
        Limit({"align": "left"}, ValueError, "align must be one of"),
        Limit({"align": "official", "padding": 1}, ValueError, "excludes padding and ceil_mode"),
        Limit({"channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"channels": 2, "output_size": 3}, ValueError, "channels excludes output_size"),
        Limit({"output_size": 0}, ValueError, "output_size must be a positive int"),
        Limit({"channels": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
        Limit(
            {"kernel_size": 3, "align": "official"},
            ValueError,
            "the window does not fit",
            shape=(1, 1, 2, 9),
            file="nothing",
        ),
    ),
    notes=(
        "The authors' kernels differ from the paper: the Dice coefficient keeps its sign (similarity='signed_dice'), "
        "and windows begin half a kernel early (align='official').",
        "The authors' kernels turn NaN into 0 and infinities into the largest number; here they stay.",
        "Inverse distance weighting in the authors' kernels divides by x m / (|x| + |m|), which is no distance and is "
        "not imitated.",
        "The package refuses outputs of another size than beta; here the nearest entry serves, so that a network with "
        "one beta per location runs at any size.",
    ),
)
