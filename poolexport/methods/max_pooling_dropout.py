"""Max-pooling dropout (Wu and Gu): cells are dropped before the maximum; in inference, the mean over all masks.

training   y = max(m_1 x_1, ..., m_K x_K),      every m_i 1 with probability p, else 0; nothing is rescaled
inference  y = p x_(1) + p (1 - p) x_(2) + ... + p (1 - p)^(K - 1) x_(K),      x_(1) >= x_(2) >= ... the sorted cells

For x >= 0 the inference rule is the exact mean of the training rule: the r-th largest cell is the answer when it is
kept and the r - 1 larger ones are dropped. A dropped cell is 0, which beats negative cells; the mean for any sign is

y = sum p (1 - p)^(r - 1) max(x_(r), 0) + p^K min(x_(1), 0)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import WindowLayer, require_choice, widened
from poolexport.reference import Floats, PerAxis, each_window, exact_sum, output_shape
from poolexport_ops._window import Ints
from poolexport_ops.max_pool import max_pool
from poolexport_ops.sorted_weighted_pool import sorted_weighted_pool


class _MaxDropoutPool(WindowLayer):
    """Maximum over the cells that a random mask keeps; in ``eval()`` a weighted sum of the sorted cells.

    The mask is drawn from torch's global generator, one number per element of the input: overlapping windows agree on
    what is dropped.

    Args:
        kernel_size: cells per window, an int or one per spatial axis.
        stride: cells between windows; the kernel size by default.
        padding: cells added on both sides, at most half the kernel; they are never the maximum and have no rank.
        ceil_mode: keep the last, partial window.
        keep: the probability p, in [0, 1], that a cell is kept. torch's dropout is given 1 - p.
        inference: "weighted", the paper's probabilistic weighted pooling, as written for cells of any sign;
            "expectation", the exact mean of the training rule, which differs where cells are negative; "scaled", p
            times the maximum, which the paper compares itself with; "off", the plain maximum.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = floor((n + 2 padding - kernel_size) / stride) + 1``
        (in ceil mode a ceiling, less the last window where it would begin beyond the input).

    Raises:
        ValueError: an option out of range, an input of another rank, or one smaller than the window.

    Example:
        >>> import torch
        >>> from poolexport.nn import MaxDropoutPool2d
        >>> MaxDropoutPool2d(2, keep=0.5).eval()(torch.tensor([[[[1.0, 2.0], [8.0, 4.0]]]]))
        tensor([[[[5.3125]]]])

    Source:
        Wu, Gu, "Towards dropout training for convolutional neural networks", Neural Networks 2015, section 3.
    """

    def __init__(
        self,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        ceil_mode: bool = False,
        keep: float = 0.5,
        inference: str = "weighted",
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode=ceil_mode)
        if not 0 <= keep <= 1:
            raise ValueError(f"keep must lie in [0, 1], got {keep!r}")
        require_choice("inference", inference, ("weighted", "expectation", "scaled", "off"))
        self.keep = keep
        self.inference = inference

    def forward(self, x: Tensor) -> Tensor:
        self.require_rank(x)
        window = self.window.onnx()
        if self.training:
            kept = torch.rand(x.shape, device=x.device) < self.keep
            return max_pool(torch.where(kept, x, 0.0), **window)
        if self.inference == "off":
            return max_pool(x, **window)
        if self.inference == "scaled":
            wide = widened(x)
            # A tensor, because the exporter writes the numbers of Python in float32.
            keep = torch.tensor(self.keep, dtype=wide.dtype, device=x.device)
            return (keep * max_pool(wide, **window)).to(x.dtype)
        first_kept = [self.keep * (1 - self.keep) ** rank for rank in range(self.window.size)]
        if self.inference == "weighted":
            return sorted_weighted_pool(x, **window, weights=first_kept)
        positive = sorted_weighted_pool(x.relu(), **window, weights=first_kept)
        negative = sorted_weighted_pool(x, **window, weights=self._all_kept())
        # One of the two is 0, so that their sum is not rounded. Not clamp(max=0): its ONNX form raises -inf.
        return positive + torch.minimum(negative, torch.zeros_like(negative))

    def _all_kept(self) -> list[float]:
        """Weights of the largest of m cells: the probability that all m are kept, for m from 1 to the window's size."""
        rows = np.zeros((self.window.size, self.window.size))
        rows[:, 0] = self.keep ** np.arange(1, self.window.size + 1)
        return rows.ravel().tolist()

    def extra_options(self) -> dict[str, Any]:
        return {"keep": self.keep, "inference": self.inference}


class MaxDropoutPool1d(_MaxDropoutPool):
    rank = 1


class MaxDropoutPool2d(_MaxDropoutPool):
    rank = 2


class MaxDropoutPool3d(_MaxDropoutPool):
    rank = 3


def reference(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    ceil_mode: bool = False,
    keep: float = 0.5,
    inference: str = "weighted",
) -> Floats:
    """The inference rules of max-pooling dropout, slowly, in float64.

    "expectation" knows nothing of ranks: it is the mean of the training rule's distribution. There and in "weighted" a
    probability of 0 adds nothing, not even where it meets an infinity, and NaN makes its windows NaN unless keep is 0.
    """
    x = np.asarray(x, dtype=np.float64)
    window = (kernel_size, stride, padding, 1, ceil_mode)
    y = np.empty(x.shape[:2] + output_shape(x.shape[2:], *window))
    for index, cells, _, _ in each_window(x, *window):
        if inference == "weighted":
            answer = _weighted(cells, keep)
        elif inference == "expectation":
            answer = _expectation(cells, keep)
        else:
            answer = {"scaled": keep, "off": 1.0}[inference] * cells.max(axis=-1)
        y[(..., *index)] = answer
    return y


def _weighted(cells: Floats, keep: float) -> Floats:
    odds = np.array([keep * (1 - keep) ** larger for larger in range(cells.shape[-1])])
    return _mean(np.sort(cells, axis=-1)[..., ::-1], np.broadcast_to(odds, cells.shape))


def _expectation(cells: Floats, keep: float) -> Floats:
    """The mean of max(m_i x_i): what it can be, each times the chance that it is just that."""
    possible = np.sort(np.concatenate([cells, np.zeros_like(cells[..., :1])], axis=-1), axis=-1)
    at_most = possible[..., :, None]
    chances = (keep * (cells[..., None, :] <= at_most) + (1 - keep) * (at_most >= 0)).prod(axis=-1)
    return _mean(possible, np.diff(chances, axis=-1, prepend=0.0))


def _mean(values: Floats, odds: Floats) -> Floats:
    answer = exact_sum(odds * np.where(odds == 0, 0.0, values))
    return np.where(np.isnan(values).any(axis=-1) & odds.any(axis=-1), np.nan, answer)


METHOD = Method(
    (MaxDropoutPool1d, MaxDropoutPool2d, MaxDropoutPool3d),
    summary="Maximum of randomly kept cells in training, a weighted sum of the sorted cells in inference.",
    paper=Paper("Towards dropout training for convolutional neural networks", "Wu, Gu", 2015, "arXiv:1512.00242"),
    reference=reference,
    training="maximum of the cells that a random mask keeps",
    inference="a fixed rule in place of the mean over all masks",
    operators=(max_pool, sorted_weighted_pool),
    random=True,
    cases=(
        Case("2x2", {"kernel_size": 2}),
        Case("paper", {"kernel_size": 3, "stride": 2, "keep": 0.7}),
        Case("ceil", {"kernel_size": 3, "stride": 2, "ceil_mode": True, "keep": 0.3}, shape=(1, 2, 8, 10)),
        Case("padded", {"kernel_size": (3, 2), "stride": 2, "padding": 1, "keep": 0.9}),
        Case("expectation", {"kernel_size": 2, "keep": 0.6, "inference": "expectation"}),
        Case(
            "expectation-padded",
            {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "inference": "expectation"},
            shape=(1, 2, 8, 10),
        ),
        Case("scaled", {"kernel_size": 2, "stride": 1, "keep": 0.3, "inference": "scaled"}),
        Case("off", {"kernel_size": 3, "stride": 2, "inference": "off"}),
        Case("1d", {"kernel_size": 3, "stride": 2, "keep": 0.8}, shape=(2, 3, 11)),
        Case(
            "3d",
            {"kernel_size": 2, "ceil_mode": True, "keep": 0.7, "inference": "expectation"},
            shape=(1, 2, 5, 6, 7),
        ),
    ),
    space={
        "kernel_size": (1, 2, 3, (3, 2, 1)),
        "stride": (None, 1, 2, 3, (2, 1, 3)),
        "padding": (0, 0, 1),
        "ceil_mode": (False, True),
        "keep": (0.0, 0.3, 0.5, 0.9, 1.0),
        "inference": ("weighted", "expectation", "expectation", "scaled", "off"),
    },
    limits=(
        Limit({"kernel_size": 0}, ValueError, "kernel_size must be a positive int"),
        Limit({"kernel_size": 2, "keep": 1.5}, ValueError, "keep must lie in [0, 1]"),
        Limit({"kernel_size": 2, "inference": "mean"}, ValueError, "inference must be one of"),
        Limit({"kernel_size": 5}, ValueError, "the window does not fit", shape=(1, 1, 4, 9), file="nothing"),
    ),
    notes=(
        "The paper takes activations after a ReLU; where cells are negative its inference rule is not the mean of its "
        "training rule, and inference='expectation' is.",
        "The paper scales nothing in training; layers built on torch's dropout divide what they keep by keep.",
    ),
)
