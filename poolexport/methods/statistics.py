"""Statistics pooling: the mean and the standard deviation of every channel, side by side.

    mean = sum(x_t) / T, var = sum((x_t - mean)^2) / T, or / (T - 1)      over all T locations of one channel
    y = (mean_1 ... mean_C, std_1 ... std_C) with std = sqrt(max(var, eps)), or sqrt(var + eps), or sqrt(var) + eps

The attentive variant weighs the locations by a softmax over time of a small network's scores, channel by channel.
Training and inference are the same, but for the network's batch normalisation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import Layer, require_choice, widened
from poolexport.reference import Floats, exact_sum
from poolexport_ops import require_rank
from poolexport_ops.global_average_pool import global_average_pool
from poolexport_ops.global_max_pool import global_max_pool

GUARDS = ("floor", "variance", "deviation")


class _StatisticsPool(Layer):
    """Mean and standard deviation over all locations of every channel.

    Published models differ in how they keep the deviation away from 0: ``guard="floor", eps=1e-10`` is Kaldi's
    x-vector; ``unbiased=True, guard="variance", eps=1e-7`` is wespeaker's; ``unbiased=True, guard="deviation",
    eps=1e-5`` is speechbrain's, without the noise that it adds to the mean.

    Args:
        unbiased: divide the sum of squares by T - 1 instead of T.
        eps: the guard, in units of the variance for "floor" and "variance", of the deviation for "deviation"; 0 for
            none.
        guard: "floor" raises the variance to ``eps``, "variance" adds ``eps`` to it, "deviation" adds ``eps`` to the
            root.
        keepdim: keep the spatial axes, with length 1.

    Shape:
        (N, C, *spatial) to (N, 2 C, 1, ...), or to (N, 2 C) without ``keepdim``.

    Raises:
        ValueError: an option out of range, an input of another rank, or an unbiased deviation of one location.

    Example:
        >>> import torch
        >>> from poolexport.nn import StatisticsPool1d
        >>> StatisticsPool1d(keepdim=False)(torch.tensor([[[1.0, 5.0, 5.0, 9.0]]])).round(decimals=4)
        tensor([[5.0000, 2.8284]])

    Source:
        Snyder et al., ICASSP 2018, section 3; Kaldi nnet3, StatisticsPoolingComponent.
    """

    rank: ClassVar[int]

    def __init__(self, unbiased: bool = False, eps: float = 1e-10, guard: str = "floor", keepdim: bool = True) -> None:
        super().__init__()
        _require_eps(eps)
        require_choice("guard", guard, GUARDS)
        self.unbiased = unbiased
        self.eps = eps
        self.guard = guard
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        if self.unbiased and not torch.compiler.is_compiling() and math.prod(x.shape[2:]) < 2:
            raise ValueError(f"an unbiased deviation needs two locations, got an input of shape {tuple(x.shape)}")
        axes = list(range(2, 2 + self.rank))
        wide = widened(x)
        mean = global_average_pool(wide, axes=axes)
        deviation = _deviation(wide - mean, self._mean_square, axes, self.eps, self.guard)
        return _side_by_side(mean, deviation, self.keepdim).to(x.dtype)

    def _mean_square(self, d: Tensor) -> Tensor:
        mean = global_average_pool(d.square(), axes=list(range(2, 2 + self.rank)))
        if not self.unbiased:
            return mean
        locations = d.new_ones(1, 1, *d.shape[2:]).sum()
        return mean * (locations / (locations - 1))

    def extra_repr(self) -> str:
        return f"unbiased={self.unbiased}, eps={self.eps}, guard={self.guard!r}, keepdim={self.keepdim}"


class StatisticsPool1d(_StatisticsPool):
    rank = 1


class StatisticsPool2d(_StatisticsPool):
    rank = 2


class AttentiveStatisticsPool1d(Layer):
    """Attention-weighted mean and standard deviation over time, with weights of their own for every channel.

    Scores come from a network of two 1x1 convolutions, ``conv(tanh(norm(relu(tdnn.conv(h)))))``, on the input, or on
    the input beside its plain mean and deviation. Their softmax over time is the weights.

    Args:
        channels: channels of the input.
        attention_channels: width of the network.
        global_context: show the network the mean and deviation of the whole recording in every frame.
        eps: lower bound on both variances, not below 0.
        keepdim: keep the time axis, with length 1.

    Parameters:
        tdnn.conv.conv, tdnn.norm.norm, conv.conv: the network, under speechbrain's names.

    Shape:
        (N, C, T) to (N, 2 C, 1), or to (N, 2 C) without ``keepdim``.

    Raises:
        ValueError: an option out of range, or an input of another rank or number of channels.

    Example:
        >>> import torch
        >>> from poolexport.nn import AttentiveStatisticsPool1d
        >>> layer = AttentiveStatisticsPool1d(1, attention_channels=4).eval()
        >>> _ = torch.nn.init.zeros_(layer.conv["conv"].weight)  # all scores equal: plain statistics
        >>> layer(torch.tensor([[[1.0, 5.0, 5.0, 9.0]]])).flatten().round(decimals=4)
        tensor([5.0000, 2.8284], grad_fn=<RoundBackward1>)

    Source:
        Okabe, Koshinaka, Shinoda, Interspeech 2018 (one weight per frame); Desplanques, Thienpondt, Demuynck,
        ECAPA-TDNN, Interspeech 2020 (per channel, with global context); speechbrain AttentiveStatisticsPooling, whose
        state loads.
    """

    rank: ClassVar[int] = 1

    def __init__(
        self,
        channels: int,
        attention_channels: int = 128,
        global_context: bool = True,
        eps: float = 1e-12,
        keepdim: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("attention_channels", attention_channels)):
            if value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        _require_eps(eps)
        self.channels = channels
        self.global_context = global_context
        self.eps = eps
        self.keepdim = keepdim
        seen = 3 * channels if global_context else channels
        self.tdnn = nn.ModuleDict(
            {
                "conv": nn.ModuleDict({"conv": nn.Conv1d(seen, attention_channels, 1)}),
                "norm": nn.ModuleDict({"norm": nn.BatchNorm1d(attention_channels)}),
            }
        )
        self.conv = nn.ModuleDict({"conv": nn.Conv1d(attention_channels, channels, 1)})

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, 1, type(self).__name__)
        if x.shape[1] != self.channels:
            raise ValueError(f"the layer has {self.channels} channels, the input has {x.shape[1]}")
        wide = widened(x)
        weights = torch.softmax(self._scores(wide), dim=2)
        mean = (weights * wide).sum(2, keepdim=True)
        deviation = _deviation(
            wide - mean, lambda d: (weights * d.square()).sum(2, keepdim=True), [2], self.eps, "floor"
        )
        return _side_by_side(mean, deviation, self.keepdim).to(x.dtype)

    def _scores(self, x: Tensor) -> Tensor:
        seen = x
        if self.global_context:
            mean = global_average_pool(x, axes=[2])
            deviation = _deviation(
                x - mean, lambda d: global_average_pool(d.square(), axes=[2]), [2], self.eps, "floor"
            )
            seen = torch.cat([x, mean.expand_as(x), deviation.expand_as(x)], dim=1)
        # Frame by frame, because onnxruntime refuses an empty batch in a batched matrix product.
        frames = seen.transpose(1, 2).flatten(0, 1)
        hidden = torch.tanh(self._norm(torch.relu(_pointwise(self.get_submodule("tdnn.conv.conv"), frames))))
        scores = _pointwise(self.get_submodule("conv.conv"), hidden)
        return scores.reshape(x.shape[0], x.shape[2], self.channels).transpose(1, 2)

    def _norm(self, x: Tensor) -> Tensor:
        norm = cast(nn.BatchNorm1d, self.get_submodule("tdnn.norm.norm"))
        if self.training:
            return cast(Tensor, norm(x.to(norm.weight.dtype))).to(x.dtype)
        mean, var, weight, bias = (
            widened(cast(Tensor, t)) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        # Spelled out, because the epsilon of the standard node is a float32.
        return (x - mean) * (weight / torch.sqrt(var + var.new_tensor(norm.eps))) + bias

    def extra_repr(self) -> str:
        return f"channels={self.channels}, global_context={self.global_context}, eps={self.eps}, keepdim={self.keepdim}"


def _require_eps(eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a finite number, not below 0, got {eps!r}")


def _deviation(
    d: Tensor, mean_square: Callable[[Tensor], Tensor], axes: Sequence[int], eps: float, guard: str
) -> Tensor:
    """Guarded root of the mean square of the differences ``d``, which are scaled so that no square leaves the range."""
    # Tensors, because the exporter rounds Python numbers to float32.
    floor = d.new_tensor(0.0 if guard == "deviation" else math.sqrt(eps))
    scale = torch.maximum(global_max_pool(d.abs(), axes=axes).detach(), floor)
    scale = torch.where(scale == 0, 1.0, scale)
    square, share = mean_square(d / scale), (floor / scale).square()
    square = torch.maximum(square, share) if guard == "floor" else square + share
    positive = square > 0
    root = torch.where(positive, torch.where(positive, square, 1.0).sqrt(), square)
    return scale * root + (d.new_tensor(eps) if guard == "deviation" else 0.0)


def _side_by_side(mean: Tensor, deviation: Tensor, keepdim: bool) -> Tensor:
    y = torch.cat([mean, deviation], dim=1)
    return y if keepdim else y.flatten(1)


def _pointwise(conv: nn.Module, frames: Tensor) -> Tensor:
    """A 1x1 convolution of (frames, channels) as a matrix product, for which runtimes have a float64 kernel."""
    weight, bias = (widened(cast(Tensor, t)) for t in (conv.weight, conv.bias))
    return F.linear(frames, weight[:, :, 0], bias)


def reference(
    x: ArrayLike,
    unbiased: bool = False,
    eps: float | None = None,
    guard: str = "floor",
    keepdim: bool = True,
    channels: int | None = None,
    attention_channels: int = 128,
    global_context: bool = True,
    **state: Floats,
) -> Floats:
    """Statistics pooling, slowly, in float64; with `channels` the attentive variant, which needs its whole state.

    NaN and infinities make the deviation NaN; the mean is what adding up gives. In the attentive variant they reach
    all channels through the scores.
    """
    x = np.asarray(x, dtype=np.float64)
    planes = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    if channels is None:
        y = _plain(planes, unbiased, 1e-10 if eps is None else eps, guard)
    else:
        y = _attentive(planes, 1e-12 if eps is None else eps, global_context, state)
    return y.reshape(*y.shape, *(1,) * (x.ndim - 2)) if keepdim else y


def _plain(planes: Floats, unbiased: bool, eps: float, guard: str) -> Floats:
    """Return means, then deviations, from the standard library's exact rational variance."""
    variance = statistics.variance if unbiased else statistics.pvariance
    y = np.empty((planes.shape[0], 2 * planes.shape[1]))
    for n, c in np.ndindex(*planes.shape[:2]):
        row = planes[n, c].tolist()
        y[n, c] = exact_sum(planes[n, c], len(row))
        var = variance(row) if all(map(math.isfinite, row)) else math.nan
        if guard == "floor":
            std = math.sqrt(eps if var < eps else var)
        else:
            std = math.sqrt(var + eps) if guard == "variance" else math.sqrt(var) + eps
        y[n, planes.shape[1] + c] = std
    return y


def _attentive(planes: Floats, eps: float, global_context: bool, state: Mapping[str, Floats]) -> Floats:
    """Return the weighted statistics of every sample, frame by frame."""
    y = np.empty((planes.shape[0], 2 * planes.shape[1]))
    for n, frames in enumerate(np.moveaxis(planes, -1, 1)):
        context = _plain(planes[n : n + 1], False, eps, "floor")[0] if global_context else np.empty(0)
        scores = np.array([_score(np.concatenate([frame, context]), state) for frame in frames])
        for c in range(planes.shape[1]):
            shares = np.exp(scores[:, c] - scores[:, c].max())
            shares = shares / shares.sum()
            mean = exact_sum(shares * frames[:, c])
            var = exact_sum(shares * (frames[:, c] - mean) ** 2)
            y[n, c], y[n, planes.shape[1] + c] = mean, np.sqrt(np.maximum(var, eps))
    return y


def _score(seen: Floats, state: Mapping[str, Floats]) -> Floats:
    hidden = np.maximum(state["tdnn.conv.conv.weight"][:, :, 0] @ seen + state["tdnn.conv.conv.bias"], 0.0)
    centred = (hidden - state["tdnn.norm.norm.running_mean"]) / np.sqrt(state["tdnn.norm.norm.running_var"] + 1e-5)
    hidden = np.tanh(state["tdnn.norm.norm.weight"] * centred + state["tdnn.norm.norm.bias"])
    return cast(Floats, state["conv.conv.weight"][:, :, 0] @ hidden + state["conv.conv.bias"])


def _trained(channels: int, attention_channels: int, seen: int) -> dict[str, Any]:
    """Numbers that a trained attention network could hold."""
    rng = np.random.default_rng(0)
    return {
        "tdnn.conv.conv.weight": 0.5 * rng.standard_normal((attention_channels, seen, 1)),
        "tdnn.conv.conv.bias": 0.1 * rng.standard_normal(attention_channels),
        "tdnn.norm.norm.weight": rng.uniform(0.5, 1.5, attention_channels),
        "tdnn.norm.norm.bias": 0.2 * rng.standard_normal(attention_channels),
        "tdnn.norm.norm.running_mean": rng.uniform(0, 1, attention_channels),
        "tdnn.norm.norm.running_var": rng.uniform(0.5, 2, attention_channels),
        "conv.conv.weight": rng.standard_normal((channels, attention_channels, 1)),
        "conv.conv.bias": 0.1 * rng.standard_normal(channels),
    }


METHOD = Method(
    (StatisticsPool1d, StatisticsPool2d),
    summary="The mean and the standard deviation of every channel, side by side.",
    paper=Paper(
        "X-Vectors: Robust DNN Embeddings for Speaker Recognition",
        "Snyder, Garcia-Romero, Sell, Povey, Khudanpur",
        2018,
        "doi:10.1109/ICASSP.2018.8461375",
    ),
    reference=reference,
    training="mean and standard deviation",
    inference="mean and standard deviation",
    operators=(global_average_pool, global_max_pool),
    variants=(AttentiveStatisticsPool1d,),
    cases=(
        Case("plane", {}),
        Case("wespeaker", {"unbiased": True, "eps": 1e-7, "guard": "variance"}),
        Case("speechbrain", {"unbiased": True, "eps": 1e-5, "guard": "deviation", "keepdim": False}),
        Case("no-guard", {"eps": 0}, shape=(1, 2, 8, 10)),
        Case("high-floor", {"eps": 0.9, "keepdim": False}),
        Case("1d", {}, shape=(2, 3, 11)),
        Case("1d-unbiased", {"unbiased": True}, shape=(2, 3, 11)),
        Case(
            "attentive",
            {"channels": 3, "attention_channels": 4},
            shape=(2, 3, 11),
            state=_trained(3, 4, 9),
            layer=AttentiveStatisticsPool1d,
        ),
        Case(
            "attentive-local",
            {"channels": 3, "attention_channels": 5, "global_context": False, "eps": 1e-4, "keepdim": False},
            shape=(2, 3, 11),
            state=_trained(3, 5, 3),
            layer=AttentiveStatisticsPool1d,
        ),
    ),
    space={
        "unbiased": (False, True),
        "eps": (1e-10, 1e-5, 0, 0.5),
        "guard": GUARDS,
        "keepdim": (True, False),
    },
    limits=(
        Limit({"eps": -1}, ValueError, "eps must be a finite number, not below 0"),
        Limit({"guard": "clamp"}, ValueError, "guard must be one of"),
        Limit(
            {"unbiased": True},
            ValueError,
            "an unbiased deviation needs two locations",
            shape=(2, 3, 1, 1),
            file="numbers",
        ),
        Limit({}, ValueError, "expects an input of shape", shape=(2, 3, 9)),
    ),
    notes=(
        "speechbrain adds noise to the mean, in inference too; this layer does not.",
        "A file with an unbiased deviation answers NaN for one location, where the layer refuses.",
        "Recordings of different lengths in one batch need masks, which are not supported.",
    ),
)
