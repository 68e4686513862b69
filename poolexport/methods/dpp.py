"""Detail-preserving pooling (Saeedan et al.): the mean of every 2 by 2 window, weighted by distance from its average.

c   = mean of the window ("lite"), or a learned 3 by 3 filter around it ("full")
d_i = x_i - c ("sym"), or max(x_i - c, 0) ("asym")
v_i = d_i^2 + eps, over its mean in the window
w_i = v_i^(exp(l) / 2) + exp(a)
y   = sum(w_i x_i) / sum(w_i)

l and a are learned. Training and inference are the same, but for the stochastic variant: it pools at all four shifts by
one pixel; training keeps random rows and columns of the four interleaved answers, inference is the mean of the four.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, exact_sum
from poolexport_ops import Window, require_rank
from poolexport_ops.detail_preserving_pool import detail_preserving_pool
from poolexport_ops.weighted_sum_pool import weighted_sum_pool

WINDOW = Window.from_torch(2, 2)
#: The filter's window: 3 by 3 cells around the 2 by 2, which begin one cell before them.
AROUND = Window((3, 3), (2, 2), (1, 1, 0, 0), (1, 1))

#: What the authors' code calls our parameters: the Torch7 graph, the CUDA layer, the PyTorch file.
OFFICIAL_NAMES = {
    "CWeightCalc.weight": "log_lambda",
    "PositiveBias.weight": "log_alpha",
    "lambda": "log_lambda",
    "alpha": "log_alpha",
    "pospowbias.Lambda": "log_lambda",
    "pospowbias.Alpha": "log_alpha",
}


class _DetailPreserving(Layer):
    """Parameters and options that the plain and the stochastic layer share."""

    rank: ClassVar[int] = 2
    filters: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        channels: int | None = None,
        variant: str = "sym",
        full: bool = False,
        normalize: str | None = "mean",
        exponent_scale: float = 0.5,
        eps: float = 1e-3,
        alpha_max: float = 10.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be a positive int or None, got {channels!r}")
        require_choice("variant", variant, ("sym", "asym"))
        if normalize not in ("mean", "sum", None):
            raise ValueError(f"normalize must be one of 'mean', 'sum', None, got {normalize!r}")
        if math.isnan(alpha_max):
            raise ValueError("alpha_max must be a number or an infinity, got nan")
        for name, value in (("exponent_scale", exponent_scale), ("eps", eps)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if bias and not full:
            raise ValueError("bias belongs to the learned filter; pass full=True with it")
        self.channels = channels
        self.variant = variant
        self.full = full
        self.normalize = normalize
        self.exponent_scale = exponent_scale
        self.eps = eps
        self.alpha_max = alpha_max
        entries = channels or 1
        self.log_lambda = nn.Parameter(torch.zeros(entries))
        self.log_alpha = nn.Parameter(torch.zeros(entries))
        self.filter_weight = self.filter_bias = None
        if full:
            box = torch.zeros(*self.filters, entries, 1, 3, 3)
            box[..., 1:, 1:] = 0.25
            self.filter_weight = nn.Parameter(box)
            self.filter_bias = nn.Parameter(torch.zeros(*self.filters, entries)) if bias else None

    def _check(self, x: Tensor) -> None:
        require_rank(x, self.rank, type(self).__name__)
        if self.channels is not None and x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")

    def _pool(self, x: Tensor, filter_weight: Tensor | None, filter_bias: Tensor | None) -> Tensor:
        # Tensors, because the exporter writes the numbers of Python in float32.
        options = (self.exponent_scale, self.alpha_max, self.eps)
        scale, most, eps = (torch.tensor(value, dtype=torch.float64, device=x.device) for value in options)
        return detail_preserving_pool(
            x,
            scale * self.log_lambda.double().exp(),
            torch.minimum(self.log_alpha.double(), most),
            eps,
            *self._centre(x, filter_weight, filter_bias),
            **WINDOW.onnx(),
            above_only=self.variant == "asym",
            normalize=self.normalize or "none",
        )

    # Nothing for the mean of the window. In float64, where sums of the largest cells stay in range.
    def _centre(self, x: Tensor, filter_weight: Tensor | None, filter_bias: Tensor | None) -> list[Tensor]:
        if filter_weight is None:
            return []
        centre = weighted_sum_pool(x.double(), filter_weight.double().flatten(1), **AROUND.onnx())
        return [centre if filter_bias is None else centre + filter_bias.double().reshape(1, -1, 1, 1)]

    def extra_repr(self) -> str:
        names = ("channels", "variant", "full", "normalize", "exponent_scale", "eps", "alpha_max")
        shown = {**{name: getattr(self, name) for name in names}, "bias": self.filter_bias is not None}
        return ", ".join(f"{name}={value!r}" for name, value in {**shown, **self.extra_options()}.items())

    def extra_options(self) -> dict[str, Any]:
        return {}


class DPP2d(_DetailPreserving):
    """Mean of every 2 by 2 window, weighted by how far each cell lies from the window's centre; stride 2.

    Four functions were published under this name:

    - the authors' Torch7 graph, which their models use: the defaults, with ``channels``;
    - the paper's formula: ``normalize=None, alpha_max=math.inf``;
    - the authors' CUDA layer: ``normalize="sum"``, symmetric and lite alone;
    - the authors' PyTorch file: ``exponent_scale=1.0``, without ``channels``.

    Args:
        channels: learn l, a and the filter per channel, for this many; None learns them once for the layer.
        variant: "sym" rewards cells on both sides of the centre, "asym" those above it.
        full: learn the filter whose answer is the centre; otherwise ("lite") the centre is the mean of the window.
        normalize: divide v by its "mean" or its "sum" over the window, or not at all with None.
        exponent_scale: the exponent of v is this times exp(l).
        eps: added to the squared difference, which keeps the weights of a flat window equal; the paper's epsilon
            squared.
        alpha_max: a counts as this where it is larger.
        bias: give the learned filter a bias, as the Torch7 graph does where its model builder does not remove it.

    Parameters:
        log_lambda: l, shape (1,) or (channels,); starts at 0. The authors call it ``CWeightCalc.weight``, ``lambda`` or
            ``pospowbias.Lambda``; their Torch7 graph starts uniformly within 1 / sqrt(channels), l and a alike.
        log_alpha: a, likewise. The authors call it ``PositiveBias.weight``, ``alpha`` or ``pospowbias.Alpha``.
        filter_weight: with ``full``, shape (1, 1, 3, 3) or (channels, 1, 3, 3), the weights of the authors' one-channel
            convolutions side by side; starts as the mean of the window.
        filter_bias: with ``bias``, shape (1,) or (channels,); starts at 0.

    Shape:
        (N, C, H, W) to (N, C, floor(H / 2), floor(W / 2)); the last line of an odd axis is left out.

    Raises:
        ValueError: an option out of range, an input of another rank, of another number of channels, or one smaller
            than 2 by 2.

    Example:
        >>> import torch
        >>> from poolexport.nn import DPP2d
        >>> DPP2d()(torch.tensor([[[[1.0, 1.0], [1.0, 9.0]]]])).detach()
        tensor([[[[3.9281]]]])

    Source:
        Saeedan, Weber, Goesele, Roth, CVPR 2018, section 3; official code visinf/dpp, visinf_package/DPP_*.lua,
        SpatialInverseBilateralPooling.cu and DPPinPytorch.
    """

    #: One forward pass in training is like another.
    inference: ClassVar[str] = "fixed"

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return self._pool(x, self.filter_weight, self.filter_bias)


class S3DPP2d(_DetailPreserving):
    """Detail-preserving pooling at all four shifts by one pixel; in training random lines of the four answers.

    The input is shifted to the left, upwards, and both, repeating its last line. The four answers interleave to a map
    of twice their size. Training cuts each axis of that map in two halves and keeps a random half of the lines of each,
    in order, drawn from torch's global generator for the whole batch and all channels.

    Args:
        channels: learn l, a and the filters per channel, for this many; None learns them once for the layer.
        variant: "sym" rewards cells on both sides of the centre, "asym" those above it.
        full: learn the filter whose answer is the centre, one for each shift; otherwise the centre is the mean.
        normalize: divide v by its "mean" or its "sum" over the window, or not at all with None.
        exponent_scale: the exponent of v is this times exp(l).
        eps: added to the squared difference, which keeps the weights of a flat window equal.
        alpha_max: a counts as this where it is larger.
        bias: give the learned filters a bias.
        inference: "average", the mean of the four answers.

    Parameters:
        log_lambda, log_alpha: l and a as in DPP2d, shared by the four shifts.
        filter_weight: with ``full``, shape (4, 1, 1, 3, 3) or (4, channels, 1, 3, 3), in the order: no shift, left, up,
            both.
        filter_bias: with ``bias``, shape (4, 1) or (4, channels).

    Shape:
        (N, C, H, W) to (N, C, floor(H / 2), floor(W / 2)); the last line of an odd axis is left out where it is not
        shifted in.

    Raises:
        ValueError: an option out of range, an input of another rank, of another number of channels, or one smaller
            than 2 by 2.

    Example:
        >>> import torch
        >>> from poolexport.nn import S3DPP2d
        >>> S3DPP2d().eval()(torch.tensor([[[[1.0, 1.0], [1.0, 9.0]]]])).detach()
        tensor([[[[5.7320]]]])

    Source:
        Saeedan, Weber, Goesele, Roth, CVPR 2018, section 4 (stochasticity); official code visinf/dpp,
        visinf_package/S3_DPP_*.lua, merger.lua and s3pool.lua.
    """

    filters = (4,)

    def __init__(
        self,
        channels: int | None = None,
        variant: str = "sym",
        full: bool = False,
        normalize: str | None = "mean",
        exponent_scale: float = 0.5,
        eps: float = 1e-3,
        alpha_max: float = 10.0,
        bias: bool = False,
        inference: str = "average",
    ) -> None:
        super().__init__(channels, variant, full, normalize, exponent_scale, eps, alpha_max, bias)
        require_choice("inference", inference, ("average",))
        self.inference = inference

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        wide = widened(x)
        left = torch.cat([wide[..., 1:], wide[..., -1:]], 3)
        up, both = (torch.cat([shifted[..., 1:, :], shifted[..., -1:, :]], 2) for shifted in (wide, left))
        answers = []
        for i, shifted in enumerate((wide, left, up, both)):
            weight = None if self.filter_weight is None else self.filter_weight[i]
            bias = None if self.filter_bias is None else self.filter_bias[i]
            answers.append(self._pool(shifted, weight, bias))
        if self.training:
            return _half_of_the_lines(_interleaved(*answers)).to(x.dtype)
        # In float64, where the sum of the largest answers stays in range.
        return torch.stack(answers).double().mean(0).to(x.dtype)

    def extra_options(self) -> dict[str, Any]:
        return {"inference": self.inference}


def _interleaved(unshifted: Tensor, left: Tensor, up: Tensor, both: Tensor) -> Tensor:
    """One map of twice the size whose cell (2 i + a, 2 j + b) is cell (i, j) of the answer shifted up a, left b."""
    even = torch.stack([unshifted, left], -1).flatten(-2)
    odd = torch.stack([up, both], -1).flatten(-2)
    return torch.stack([even, odd], -2).flatten(-3, -2)


def _half_of_the_lines(x: Tensor) -> Tensor:
    """Random half of the lines of each half of an axis, in order; an even half where four does not divide the axis."""
    for axis in (2, 3):
        length = x.shape[axis]
        middle = length // 4 * 2
        kept = [
            start + torch.randperm(end - start, device=x.device)[: (end - start) // 2].sort().values
            for start, end in ((0, middle), (middle, length))
        ]
        x = x.index_select(axis, torch.cat(kept))
    return x


def reference(
    x: ArrayLike,
    channels: int | None = None,
    variant: str = "sym",
    full: bool = False,
    normalize: str | None = "mean",
    exponent_scale: float = 0.5,
    eps: float = 1e-3,
    alpha_max: float = 10.0,
    bias: bool = False,
    inference: str | None = None,
    log_lambda: ArrayLike = 0.0,
    log_alpha: ArrayLike = 0.0,
    filter_weight: ArrayLike | None = None,
    filter_bias: ArrayLike = 0.0,
) -> Floats:
    """Detail-preserving pooling, slowly, in float64; `inference="average"` is the stochastic layer's.

    Walks over the windows of the four shifts, or of none. The formula holds as written: a window that sees NaN or an
    infinity is NaN, unless only the learned filter sees it and its cells all lie below the centre.
    """
    x = np.asarray(x, dtype=np.float64)
    power = exponent_scale * np.exp(np.asarray(log_lambda, dtype=np.float64))
    alpha = np.exp(np.minimum(np.asarray(log_alpha, dtype=np.float64), alpha_max))
    shifts = [(0, 0)] if inference is None else [(0, 0), (0, 1), (1, 0), (1, 1)]
    masks = np.zeros((len(shifts), channels or 1, 3, 3))
    masks[..., 1:, 1:] = 0.25
    if filter_weight is not None:
        masks = np.asarray(filter_weight, dtype=np.float64).reshape(masks.shape)
    offsets = np.broadcast_to(np.asarray(filter_bias, dtype=np.float64), (*masks.shape[:1], channels or 1))
    repeated = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)), mode="edge")
    y = np.empty((len(shifts), *x.shape[:2], x.shape[2] // 2, x.shape[3] // 2))
    for s, (down, right) in enumerate(shifts):
        seen = repeated[:, :, down:, right:]
        for i, j in np.ndindex(*y.shape[3:]):
            cells = seen[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(*x.shape[:2], 4)
            centre = _filtered(seen, i, j, masks[s]) + offsets[s] if full else exact_sum(cells, 4.0)
            y[s, :, :, i, j] = _weighted_mean(cells, centre, variant, normalize, eps, power, alpha)
    return exact_sum(np.moveaxis(y, 0, -1), len(shifts))


def _filtered(seen: Floats, i: int, j: int, mask: Floats) -> Floats:
    """The 3 by 3 cells from (2 i - 1, 2 j - 1) on, times the mask of each channel; 0 before the first line."""
    terms = []
    for row, column in np.ndindex(3, 3):
        inside = 2 * i + row > 0 and 2 * j + column > 0
        cell = seen[:, :, 2 * i - 1 + row, 2 * j - 1 + column] if inside else np.zeros(seen.shape[:2])
        terms.append(mask[:, row, column] * cell)
    return exact_sum(np.stack(terms, axis=-1))


def _weighted_mean(
    cells: Floats,
    centre: Floats,
    variant: str,
    normalize: str | None,
    eps: float,
    power: Floats,
    alpha: Floats,
) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):
        d = cells - centre[..., None]
        v = (np.maximum(d, 0.0) if variant == "asym" else d) ** 2 + eps
        if normalize is not None:
            v = v / exact_sum(v, {"mean": 4.0, "sum": 1.0}[normalize])[..., None]
        w = v ** power[..., None] + alpha[..., None]
        return exact_sum(w * cells) / exact_sum(w)


def _state(entries: int, filters: tuple[int, ...] | None = None, bias: bool = False) -> dict[str, Any]:
    """Parameters as training may leave them, different in every channel."""
    steps = np.arange(entries)
    state: dict[str, Any] = {"log_lambda": 0.4 - 0.5 * steps, "log_alpha": -0.8 + 0.7 * steps}
    if filters is not None:
        noise = np.sin(np.arange(9.0 * entries * math.prod(filters))).reshape(*filters, entries, 1, 3, 3)
        state["filter_weight"] = 1 / 9 + 0.2 * noise
    if filters is not None and bias:
        state["filter_bias"] = np.cos(np.arange(entries * math.prod(filters))).reshape(*filters, entries)
    return {name: value.astype(np.float32) for name, value in state.items()}


METHOD = Method(
    (DPP2d,),
    summary="The mean of every 2 by 2 window, weighted by how far each cell lies from the window's average.",
    paper=Paper(
        "Detail-Preserving Pooling in Deep Networks", "Saeedan, Weber, Goesele, Roth", 2018, "arXiv:1804.04076"
    ),
    reference=reference,
    training="detail-weighted mean; the stochastic variant keeps random lines of four shifted ones",
    inference="detail-weighted mean",
    operators=(weighted_sum_pool, detail_preserving_pool),
    random=True,
    variants=(S3DPP2d,),
    cases=(
        Case("sym-lite", state=_state(1)),
        Case("initial", shape=(1, 2, 8, 10)),
        Case("asym-lite", {"channels": 3, "variant": "asym"}, state=_state(3)),
        Case("sym-full", {"channels": 3, "full": True}, state=_state(3, ())),
        Case(
            "asym-full",
            {"channels": 3, "variant": "asym", "full": True, "bias": True},
            shape=(1, 3, 8, 11),
            state=_state(3, (), bias=True),
        ),
        Case("shared-full", {"full": True}, state=_state(1, ())),
        Case("printed", {"channels": 3, "normalize": None, "alpha_max": math.inf}, state=_state(3)),
        Case("printed-asym", {"variant": "asym", "normalize": None}, state=_state(1)),
        Case("black-box", {"channels": 3, "normalize": "sum"}, state=_state(3)),
        Case("pytorch-file", {"exponent_scale": 1.0}, state=_state(1)),
        Case("clamped", {"alpha_max": -1.5, "eps": 0.1}, state=_state(1)),
        Case("stochastic", {"channels": 3, "inference": "average"}, layer=S3DPP2d, state=_state(3)),
        Case(
            "stochastic-asym-full",
            {"channels": 3, "variant": "asym", "full": True, "bias": True, "inference": "average"},
            shape=(1, 3, 8, 11),
            layer=S3DPP2d,
            state=_state(3, (4,), bias=True),
        ),
        Case(
            "stochastic-options",
            {"normalize": None, "exponent_scale": 1.0, "eps": 0.1, "alpha_max": -1.5, "inference": "average"},
            layer=S3DPP2d,
            state=_state(1),
        ),
    ),
    space={
        "channels": (None, 3),
        "variant": ("sym", "asym"),
        "full": (False, True),
        "normalize": ("mean", "sum", None),
        "exponent_scale": (0.5, 1.0),
        "eps": (1e-3, 0.2),
        "alpha_max": (10.0, -1.0),
    },
    limits=(
        Limit({"channels": 0}, ValueError, "channels must be a positive int"),
        Limit({"channels": 2}, ValueError, "the layer has 2 channels", shape=(1, 3, 4, 4)),
        Limit({"variant": "both"}, ValueError, "variant must be one of"),
        Limit({"normalize": "max"}, ValueError, "normalize must be one of"),
        Limit({"eps": 0.0}, ValueError, "eps must be a positive number"),
        Limit({"exponent_scale": -1.0}, ValueError, "exponent_scale must be a positive number"),
        Limit({"bias": True}, ValueError, "bias belongs to the learned filter"),
        Limit({}, ValueError, "the window does not fit", shape=(1, 1, 1, 4), file="nothing"),
        Limit({"full": True}, ValueError, "the window does not fit", shape=(1, 1, 4, 1), file="nothing"),
    ),
    notes=(
        "Dividing v by its sum instead of its mean is not a rescaling: it makes exp(a) count 4^(exp(l) / 2) times as "
        "much.",
        "A learned filter held in float16 is rounded, and with it the centre that every weight depends on.",
        "The authors' graph cannot run on odd sizes; here their last line is left out.",
        "The authors' stochastic layer needs square maps whose size four divides; where it does not, here the first "
        "half of the lines is an even number.",
    ),
)
