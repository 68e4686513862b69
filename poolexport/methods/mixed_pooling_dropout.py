"""Mixed-pooling dropout (Ait Skourt et al.): cells are dropped before a maximum or an average drawn at random.

a = m x                              every m_i 1 with probability p, else 0; nothing is rescaled
y = lam max(a) + (1 - lam) mean(a),  lam in {0, 1}
training   m and lam drawn, lam with equal odds; how often each choice fell is counted
inference  y = lam' E[max(a)] + (1 - lam') p mean(x), or the same without dropout; lam' is a fixed number

E[max(a)] = sum p (1 - p)^(r - 1) max(x_(r), 0) + p^K min(x_(1), 0)      over the sorted cells x_(1) >= ... >= x_(K)

The r-th largest cell is the answer when it is kept and the r - 1 larger ones are dropped; a dropped cell is 0.
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
from poolexport_ops.sorted_weighted_pool import sorted_weighted_pool


class _MixedDropoutPool(CountingLayer):
    """Maximum or average, drawn anew in every training pass, of the cells that a random mask keeps.

    Mask and choice come from torch's global generator; the mask has one number per element of the input.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel: absent for the maximum, zeros for the average.
        ceil_mode: keep the last, partial window.
        count_include_pad: count padded cells in the divisor of the average.
        keep: the probability p, in [0, 1], that a cell is kept. torch's dropout is given 1 - p.
        granularity: what shares one choice: the whole "layer", a "channel" (all samples, all windows), or nothing:
            every "window" by itself.
        inference: "expectation", the mean over all masks; "off", without dropout, as a framework's own dropout layer
            behaves before mixed pooling.
        share: lam' in inference: "half" (its mean in training), "recorded" (how large a part of the draws was the
            maximum), or "majority" (mixed pooling's own rule: 1 where the maximum was drawn at least as often, else 0).

    Buffers:
        max_count, average_count: how often each choice fell, one number, or one per channel for that granularity,
        which the first training pass makes.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, one smaller than the window, or "recorded" or
            "majority" without any count.

    Example:
        >>> import torch
        >>> from poolexport.nn import MixedDropoutPool2d
        >>> MixedDropoutPool2d(2, keep=0.5).eval()(torch.tensor([[[[1.0, 2.0], [8.0, 4.0]]]]))
        tensor([[[[3.5938]]]])

    Source:
        Ait Skourt, El Hassani, Majda 2021 (training); Wu, Gu 2015, section 3 (the mean of a masked maximum); Yu, Wang,
        Chen, Wei 2014 (the choice by majority).
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
        keep: float = 0.5,
        granularity: str = "channel",
        inference: str = "expectation",
        share: str = "half",
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        if not 0 <= keep <= 1:
            raise ValueError(f"keep must lie in [0, 1], got {keep!r}")
        require_choice("granularity", granularity, ("layer", "channel", "window"))
        require_choice("inference", inference, ("expectation", "off"))
        require_choice("share", share, ("half", "recorded", "majority"))
        self.count_include_pad = count_include_pad
        self.keep = keep
        self.granularity = granularity
        self.inference = inference
        self.share = share
        self.begin_counting()

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        if self.training:
            kept = torch.where(torch.rand(x.shape, device=x.device) < self.keep, x, 0.0)
            return torch.where(self.draw(x), max_pool(kept, **self.window.onnx()), self._average(kept))
        wide = widened(x)
        if self.inference == "off":
            maximum, mean = max_pool(wide, **self.window.onnx()), self._average(wide)
        else:
            # A tensor, because the exporter writes the numbers of Python in float32.
            keep = torch.tensor(self.keep, dtype=wide.dtype, device=x.device)
            maximum, mean = self._expected_maximum(wide), keep * self._average(wide)
        if self.share == "half":
            return (0.5 * maximum + 0.5 * mean).to(x.dtype)
        share = self._share(wide)
        both = share * maximum + (1 - share) * mean
        # Choosing where the share is 0 or 1: an infinity in the other branch must not become NaN.
        return torch.where(share == 1, maximum, torch.where(share == 0, mean, both)).to(x.dtype)

    def _average(self, x: Tensor) -> Tensor:
        return average_pool(x, **self.window.onnx(), counted_pads=counted_pads(self.window, self.count_include_pad))

    def _expected_maximum(self, x: Tensor) -> Tensor:
        """The mean, over all masks, of the maximum of the masked window."""
        window, size = self.window.onnx(), self.window.size
        first_kept = [self.keep * (1 - self.keep) ** rank for rank in range(size)]
        positive = sorted_weighted_pool(x.relu(), **window, weights=first_kept)
        all_kept = np.zeros((size, size))
        all_kept[:, 0] = self.keep ** np.arange(1, size + 1)  # by the number of real cells
        negative = sorted_weighted_pool(x, **window, weights=all_kept.ravel().tolist())
        # Not clamp(max=0): its ONNX form raises -inf.
        return positive + torch.minimum(negative, torch.zeros_like(negative))

    def _share(self, x: Tensor) -> Tensor:
        """lam' where it comes from the counts, one number or one per channel."""
        self.require_counts(x, f"share={self.share!r}", "share='half'")
        if self.share == "majority":
            share = (self.max_count >= self.average_count).to(x.dtype)
        else:
            share = self.max_count.to(x.dtype) / (self.max_count + self.average_count).to(x.dtype)
        return share.reshape(1, -1, *(1,) * self.rank)

    def extra_options(self) -> dict[str, Any]:
        names = ("count_include_pad", "keep", "granularity", "inference", "share")
        return {name: getattr(self, name) for name in names}


class MixedDropoutPool1d(_MixedDropoutPool):
    rank = 1


class MixedDropoutPool2d(_MixedDropoutPool):
    rank = 2


class MixedDropoutPool3d(_MixedDropoutPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    keep: float = 0.5,
    granularity: str = "channel",
    inference: str = "expectation",
    share: str = "half",
    max_count: ArrayLike | None = None,
    average_count: ArrayLike | None = None,
) -> Floats:
    """The inference rules of mixed-pooling dropout, slowly, in float64.

    The mean of the masked maximum is taken from its distribution: the chance that it is at most t is the product,
    over the cells, of the chances that each of them is. Chances of 0 add nothing, also where they meet an infinity.
    """
    x = np.asarray(x, dtype=np.float64)
    lam = _share(share, x.shape[1] if granularity == "channel" else 1, max_count, average_count)
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, counted, _ in each_window(x, *window):
        mean = exact_sum(cells, counted if count_include_pad else cells.shape[-1])
        with np.errstate(invalid="ignore"):
            if inference == "off":
                maximum = cells.max(axis=-1)
            else:
                maximum, mean = _masked_maximum(cells, keep), keep * mean
            both = lam * maximum + (1 - lam) * mean
        y[(..., *index)] = np.where(lam == 1, maximum, np.where(lam == 0, mean, both))
    return y


def _share(rule: str, entries: int, max_count: ArrayLike | None, average_count: ArrayLike | None) -> Floats:
    if rule == "half":
        return np.array([0.5])
    maxima, averages = (np.asarray(count, dtype=np.float64) for count in (max_count, average_count))
    if maxima.shape != (entries,) or averages.shape != (entries,) or not (maxima + averages).all():
        raise ValueError(f"share={rule!r} needs {entries} counts of each choice, got {maxima} and {averages}")
    return np.where(averages > maxima, 0.0, 1.0) if rule == "majority" else maxima / (maxima + averages)


def _masked_maximum(cells: Floats, keep: float) -> Floats:
    answers = np.concatenate([cells, np.zeros_like(cells[..., :1])], axis=-1)
    answers.sort(axis=-1)
    total = np.zeros(cells.shape[:-1])
    before = np.zeros(cells.shape[:-1])
    for t in np.moveaxis(answers, -1, 0):
        at_most = (keep * (cells <= t[..., None]) + (1 - keep) * (t[..., None] >= 0)).prod(axis=-1)
        odds = at_most - before
        total += odds * np.where(odds == 0, 0.0, t)
        before = at_most
    return np.where(np.isnan(cells).any(axis=-1) & (keep > 0), np.nan, total)


COUNTS = {"max_count": [5, 2, 3], "average_count": [3, 6, 3]}

METHOD = Method(
    (MixedDropoutPool1d, MixedDropoutPool2d, MixedDropoutPool3d),
    summary="Maximum or average, drawn in training, of randomly kept cells; in inference the mean over all masks.",
    paper=Paper(
        "Mixed-pooling-dropout for convolutional neural network regularization",
        "Ait Skourt, El Hassani, Majda",
        2021,
        "https://www.sciencedirect.com/science/article/pii/S131915782100104X",
    ),
    reference=reference,
    training="maximum or average, drawn, of the cells that a random mask keeps",
    inference="a fixed blend of maximum and average",
    operators=(max_pool, average_pool, sorted_weighted_pool),
    random=True,
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("overlapping", {"kernel_size": 3, "stride": 2, "padding": 1, "keep": 0.7}),
        Case(
            "exclude-pad",
            {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
            shape=(1, 2, 8, 10),
        ),
        Case("recorded", {"kernel_size": 2, "keep": 0.6, "share": "recorded"}, state=COUNTS),
        Case("majority", {"kernel_size": (2, 3), "stride": 2, "keep": 0.8, "share": "majority"}, state=COUNTS),
        Case("off", {"kernel_size": 2, "inference": "off"}),
        Case("off-majority", {"kernel_size": 3, "stride": 2, "inference": "off", "share": "majority"}, state=COUNTS),
        Case(
            "off-recorded-layer",
            {"kernel_size": 2, "stride": 1, "granularity": "layer", "inference": "off", "share": "recorded"},
            state={"max_count": [1], "average_count": [4]},
        ),
        Case("1d", {"kernel_size": 3, "stride": 2, "keep": 0.3}, shape=(2, 3, 11)),
        Case(
            "3d",
            {"kernel_size": 2, "ceil_mode": True, "granularity": "window", "share": "recorded"},
            shape=(1, 3, 5, 6, 7),
            state={"max_count": [70], "average_count": [74]},
        ),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "count_include_pad": (True, False),
        "keep": (0.0, 0.3, 0.5, 0.9, 1.0),
        "granularity": ("layer", "channel", "window"),
        "inference": ("expectation", "off"),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "keep": -0.1}, ValueError, "keep must lie in [0, 1]"),
        Limit({"kernel_size": 2, "granularity": "pixel"}, ValueError, "granularity must be one of"),
        Limit({"kernel_size": 2, "inference": "weighted"}, ValueError, "inference must be one of"),
        Limit({"kernel_size": 2, "share": "max"}, ValueError, "share must be one of"),
        Limit({"kernel_size": 2, "share": "recorded"}, ValueError, "nothing was counted", shape=(1, 3, 4, 4)),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
    ),
    notes=(
        "The source that describes the method does not settle its inference rule: inference='expectation' is the mean "
        "over all masks, inference='off' what a framework's dropout layer leaves.",
        "Layers built on torch's dropout divide what they keep by keep; here nothing is rescaled.",
    ),
)
