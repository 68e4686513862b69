"""Mixed pooling (Yu et al.): maximum or average, drawn in training and settled in inference.

y = lam max(x) + (1 - lam) mean(x),      lam in {0, 1}
training   lam drawn with equal odds; how often each choice fell is counted
inference  the average where it was drawn more often than the maximum, else the maximum
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import CountingLayer, counted_pads, require_choice, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops._window import Ints
from poolexport_ops.average_pool import average_pool
from poolexport_ops.max_pool import max_pool


class _MixedPool(CountingLayer):
    """Maximum or average of every window, drawn anew in every training pass.

    Not to be confused with the learned blend of Lee et al., which is LearnedMixedPool.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel: -inf for the maximum, zeros for the average.
        ceil_mode: keep the last, partial window.
        count_include_pad: count padded cells in the divisor of the average.
        granularity: what shares one draw: the whole "layer", a "channel" (all samples, all windows), or nothing: every
            "window" by itself.
        inference: "frequency" (the paper): per channel, the choice that training drew more often, the maximum in a
            tie; "expectation": the mean of both; "max"; "avg".
        lam: a fixed share of the maximum in [0, 1], in training and inference alike; overrides ``inference``.

    Buffers:
        max_count, average_count: how often each choice fell, one number, or one per channel for that granularity,
        which the first training pass makes.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, one smaller than the window, or "frequency"
            without any count.

    Example:
        >>> import torch
        >>> from poolexport.nn import MixedPool2d
        >>> MixedPool2d(2, inference="expectation").eval()(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
        tensor([[[[4.5000]]]])

    Source:
        Yu, Wang, Chen, Wei, RSKT 2014, section 3.
    """

    max_count: Tensor
    average_count: Tensor

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        granularity: str = "channel",
        inference: str = "frequency",
        lam: float | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        require_choice("granularity", granularity, ("layer", "channel", "window"))
        require_choice("inference", inference, ("frequency", "expectation", "max", "avg"))
        if lam is not None and not 0 <= lam <= 1:
            raise ValueError(f"lam must lie in [0, 1], got {lam!r}")
        self.count_include_pad = count_include_pad
        self.granularity = granularity
        self.inference = inference if lam is None else "fixed"
        self.lam = lam
        self.begin_counting()

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        share = self.lam
        if share is None and not self.training:
            share = {"expectation": 0.5, "max": 1.0, "avg": 0.0}.get(self.inference)
        if share == 1:
            return self._maximum(x)
        if share == 0:
            return self._average(x)
        if share is not None:
            wide = widened(x)
            # A tensor, because the exporter writes the numbers of Python in float32.
            lam = torch.tensor(share, dtype=wide.dtype, device=x.device)
            return (lam * self._maximum(wide) + (1 - lam) * self._average(wide)).to(x.dtype)
        # Choosing, not multiplying by 0 or 1: an infinity in the other branch must not become NaN.
        return torch.where(self.draw(x) if self.training else self._settled(x), self._maximum(x), self._average(x))

    def _maximum(self, x: Tensor) -> Tensor:
        return max_pool(x, **self.window.onnx())

    def _average(self, x: Tensor) -> Tensor:
        return average_pool(x, **self.window.onnx(), counted_pads=counted_pads(self.window, self.count_include_pad))

    def _settled(self, x: Tensor) -> Tensor:
        """True where inference by frequency takes the maximum."""
        self.require_counts(x, "inference='frequency'", "inference='expectation'")
        return (self.max_count >= self.average_count).reshape(1, -1, *(1,) * self.rank)

    @property
    def inference_rule(self) -> str:
        """The fixed rule of this layer in words."""
        if self.lam is not None:
            return f"fixed: {self.lam:g} of the maximum, the rest average"
        return {
            "frequency": "frequency: the choice that training drew more often",
            "expectation": "expectation: the mean of maximum and average",
            "max": "max: the maximum",
            "avg": "avg: the average",
        }[self.inference]

    def extra_options(self) -> dict[str, Any]:
        options = {
            "count_include_pad": self.count_include_pad,
            "granularity": self.granularity,
            "inference": self.inference,
        }
        return options if self.lam is None else {**options, "lam": self.lam}


class MixedPool1d(_MixedPool):
    rank = 1


class MixedPool2d(_MixedPool):
    rank = 2


class MixedPool3d(_MixedPool):
    rank = 3


SHARES = {"expectation": 0.5, "max": 1.0, "avg": 0.0}


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    granularity: str = "channel",
    inference: str = "frequency",
    lam: float | None = None,
    max_count: ArrayLike | None = None,
    average_count: ArrayLike | None = None,
) -> Floats:
    """The inference rule of mixed pooling, slowly, in float64.

    A `lam` in [0, 1] overrides `inference`. The counters hold one entry, or one per channel when
    `granularity` is "channel"; counters that counted nothing settle nothing, and are refused.
    """
    x = np.asarray(x, dtype=np.float64)
    if lam is None and inference == "frequency":
        share = _most_frequent(max_count, average_count, x.shape[1] if granularity == "channel" else 1)
    else:
        share = np.array([SHARES[inference] if lam is None else float(lam)])
    if not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, counted, _ in each_window(x, *window):
        divisor = counted if count_include_pad else cells.shape[-1]
        y[(..., *index)] = _blend(cells.max(axis=-1), exact_sum(cells, divisor), share)
    return y


def _most_frequent(max_count: ArrayLike | None, average_count: ArrayLike | None, entries: int) -> Floats:
    if max_count is None or average_count is None:
        raise ValueError("inference='frequency' needs max_count and average_count")
    maxima, averages = np.asarray(max_count), np.asarray(average_count)
    if maxima.shape != (entries,) or averages.shape != (entries,):
        raise ValueError(f"counters must have shape ({entries},), got {maxima.shape} and {averages.shape}")
    if not maxima.any() and not averages.any():
        raise ValueError("inference='frequency' needs counters that counted something, got only zeros")
    return np.where(averages > maxima, 0.0, 1.0)


def _blend(maximum: Floats, mean: Floats, share: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        both = share * maximum + (1 - share) * mean
    # A share of 0 or 1 chooses; multiplying would turn an infinity of the branch not chosen into NaN.
    return np.where(share == 1, maximum, np.where(share == 0, mean, both))


COUNTS = {"max_count": [5, 2, 3], "average_count": [3, 6, 3]}

METHOD = Method(
    (MixedPool1d, MixedPool2d, MixedPool3d),
    summary="Maximum or average of every window, drawn in training and settled by frequency in inference.",
    paper=Paper("Mixed Pooling for Convolutional Neural Networks", "Yu, Wang, Chen, Wei", 2014, "RSKT 2014"),
    reference=reference,
    training="maximum or average, drawn with equal odds",
    inference="the choice that training drew more often",
    operators=(max_pool, average_pool),
    random=True,
    dynamic_channels=False,
    cases=(
        Case("frequency", {"kernel_size": 2}, state=COUNTS),
        Case(
            "frequency-layer",
            {"kernel_size": 3, "stride": 2, "granularity": "layer"},
            state={"max_count": [1], "average_count": [4]},
        ),
        Case(
            "frequency-window",
            {"kernel_size": 2, "granularity": "window"},
            state={"max_count": [7], "average_count": [7]},
        ),
        Case("expectation", {"kernel_size": 3, "stride": 2, "padding": 1, "inference": "expectation"}),
        Case("max", {"kernel_size": 2, "inference": "max"}),
        Case("avg", {"kernel_size": 3, "stride": 2, "padding": 1, "inference": "avg", "count_include_pad": False}),
        Case("lam", {"kernel_size": 2, "lam": 0.25, "ceil_mode": True}),
        Case("1d", {"kernel_size": 3, "stride": 2}, shape=(2, 3, 11), state=COUNTS),
        Case("3d", {"kernel_size": 2, "ceil_mode": True}, shape=(1, 3, 5, 6, 7), state=COUNTS),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "count_include_pad": (True, False),
        "granularity": ("layer", "channel", "window"),
        "inference": ("expectation", "max", "avg"),
        "lam": (None, None, 0.0, 0.3, 1.0),
    },
    limits=(
        Limit(
            {"kernel_size": 5, "inference": "expectation"},
            ValueError,
            "the window does not fit",
            shape=(1, 1, 4, 9),
            file="nothing",
        ),
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "granularity": "pixel"}, ValueError, "granularity must be one of"),
        Limit({"kernel_size": 2, "inference": "mean"}, ValueError, "inference must be one of"),
        Limit({"kernel_size": 2, "lam": 1.5}, ValueError, "lam must lie in [0, 1]"),
        Limit({"kernel_size": 2}, ValueError, "nothing was counted", shape=(1, 3, 4, 4)),
    ),
    notes=(
        "Reviews disagree on what one draw covers; granularity='channel' is the paper's feature map.",
        "Most layers called MixedPool in public code are the learned blend of Lee et al.: LearnedMixedPool here.",
    ),
)
