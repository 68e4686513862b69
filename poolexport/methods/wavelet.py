"""Wavelet pooling (Williams & Li): two levels of a Haar transform, of which the inverse sees the second level only.

    LL1, ... = DWT(x)      LL2, LH2, HL2, HH2 = DWT(LL1)      y = IDWT(LL2, LH2, HL2, HH2)

The first level's details are dropped, and everything the second level took apart is put together again: y is LL1, for
every input. Along every axis

    y_i = (x_2i + x_(2i+1)) / sqrt(2)      or, with another wavelet,      y_i = sum over j of h_j x_(2i + j - L/2 + 1)

with the L coefficients h of its low-pass filter. The second form is the pooling of WaveCNet, where zeros lie beyond the
border. Training and inference are the same; there is nothing to learn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Real
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from poolexport.method import Case, Limit, Method, Paper
from poolexport.methods._layers import LARGEST, Layer, require_choice, widened
from poolexport.reference import Floats, exact_sum
from poolexport_ops import Window, require_rank
from poolexport_ops._border import continued
from poolexport_ops.weighted_sum_pool import weighted_sum_pool

_R3, _R10 = math.sqrt(3), math.sqrt(10)
_RR = math.sqrt(5 + 2 * _R10)

#: Low-pass filters divided by sqrt(2), so that the coefficients of each add up to 1.
FILTERS: dict[str, tuple[float, ...]] = {
    "haar": (1 / 2, 1 / 2),
    "db2": ((1 + _R3) / 8, (3 + _R3) / 8, (3 - _R3) / 8, (1 - _R3) / 8),
    "db3": (
        (1 + _R10 + _RR) / 32,
        (5 + _R10 + 3 * _RR) / 32,
        (10 - 2 * _R10 + 2 * _RR) / 32,
        (10 - 2 * _R10 - 2 * _RR) / 32,
        (5 + _R10 - 3 * _RR) / 32,
        (1 + _R10 - _RR) / 32,
    ),
    "bior2.2": (0, 1 / 4, 1 / 2, 1 / 4, 0, 0),
    "bior3.3": (0, 0, 1 / 8, 3 / 8, 3 / 8, 1 / 8, 0, 0),
}


class _WaveletPool(Layer):
    """The low band of a wavelet transform, which halves every axis.

    The paper's forward pass, ``rule="reconstruction"``, equals the first level's low band, and that is how it is
    computed: in two dimensions, twice the mean of 2x2 cells. NaN and infinities stay inside their window, where the
    long way round would spread them over four.

    Args:
        rule: "reconstruction" (Williams and Li, Haar only) or "low_band" (WaveCNet, any wavelet).
        wavelet: "haar", "db2", "db3", "bior2.2" or "bior3.3" (WaveCNet calls them ch2.2 and ch3.3), or the coefficients
            of a low-pass filter, an even number of them: PyWavelets' ``rec_lo``. Zeros at its ends are left out.
        odd: what becomes of an axis of odd length: "repeat" (its last line counts twice; filters of two coefficients
            only), "zero" (a line of zeros follows it), or "drop" (with two coefficients, the last line is lost). None
            means "repeat" for "reconstruction", of which the paper does not say it, and "drop" for "low_band".
        scale: "orthonormal" multiplies the mean by sqrt(2) per axis, as the transform does; "mean" leaves that out, so
            that Haar pooling is average pooling.

    Shape:
        (N, C, *spatial) to (N, C, *output) with ``output = ceil(n / 2)``, or ``floor(n / 2)`` with "drop".

    Raises:
        ValueError: an option out of range, options that exclude each other, an input of another rank, or with "drop" an
            axis of length 1.

    Example:
        >>> import torch
        >>> from poolexport.nn import WaveletPool2d
        >>> WaveletPool2d()(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).item()
        6.0

    Source:
        Williams and Li, ICLR 2018, section 3; Li, Shen, Guo, Lai, CVPR 2020, package LiQiufu/WaveCNet (DWT_2D_tiny).
    """

    rank: ClassVar[int]

    def __init__(
        self,
        rule: str = "reconstruction",
        wavelet: str | Sequence[float] = "haar",
        odd: str | None = None,
        scale: str = "orthonormal",
    ) -> None:
        super().__init__()
        require_choice("rule", rule, ("reconstruction", "low_band"))
        require_choice("scale", scale, ("orthonormal", "mean"))
        if rule == "reconstruction" and not (isinstance(wavelet, str) and wavelet == "haar"):
            raise ValueError(f"rule 'reconstruction' is defined for wavelet 'haar', got {wavelet!r}; use 'low_band'")
        taps, begin, end = _trimmed(_taps(wavelet))
        odd = {"reconstruction": "repeat", "low_band": "drop"}[rule] if odd is None else odd
        require_choice("odd", odd, ("repeat", "zero", "drop"))
        if odd == "repeat" and (begin, len(taps), end) != (0, 2, 0):
            raise ValueError(f"odd 'repeat' needs a filter of 2 coefficients, got {wavelet!r}; use 'zero' or 'drop'")
        self.rule = rule
        self.wavelet = wavelet
        self.odd = odd
        self.scale = scale
        self.taps = taps
        self.pads = (begin, end + (odd == "zero"))
        self.gain = 2 ** (self.rank / 2) if scale == "orthonormal" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        require_rank(x, self.rank, type(self).__name__)
        y = widened(x)
        if self.odd == "repeat":
            # An even axis never looks at its further line.
            y = continued(y, [0] * self.rank, [1] * self.rank, "replicate")
        for axis in range(self.rank):
            gain = self.gain if axis == self.rank - 1 else 1.0
            weights = torch.tensor([[gain * tap for tap in self.taps]], dtype=y.dtype, device=y.device)
            y = weighted_sum_pool(y, weights, **self._along(axis).onnx())
        return y.to(x.dtype)

    def _along(self, axis: int) -> Window:
        """The window of the filter along one axis."""
        ones, zeros = [1] * self.rank, [0] * self.rank
        size, stride, begin, end = ones[:], ones[:], zeros[:], zeros[:]
        size[axis], stride[axis] = len(self.taps), 2
        begin[axis], end[axis] = self.pads
        return Window.of(size, stride, [*begin, *end])

    def extra_repr(self) -> str:
        return f"rule={self.rule!r}, wavelet={self.wavelet!r}, odd={self.odd!r}, scale={self.scale!r}"


def _taps(wavelet: str | Sequence[float]) -> tuple[float, ...]:
    """The low-pass filter divided by sqrt(2)."""
    if isinstance(wavelet, str):
        require_choice("wavelet", wavelet, tuple(FILTERS))
        return FILTERS[wavelet]
    if not isinstance(wavelet, Sequence):
        raise ValueError(f"wavelet must be a name or a sequence of coefficients, got {wavelet!r}")
    if not len(wavelet) or len(wavelet) % 2:
        raise ValueError(f"wavelet must be a name or an even number of coefficients, got {len(wavelet)}")
    if not all(isinstance(h, Real) and not isinstance(h, bool) and abs(h) <= LARGEST for h in wavelet):
        raise ValueError(f"the coefficients of wavelet must be finite numbers, got {wavelet!r}")
    return tuple(float(h) / math.sqrt(2) for h in wavelet)


def _trimmed(taps: tuple[float, ...]) -> tuple[tuple[float, ...], int, int]:
    """The filter without zeros at its ends, and how many cells it reaches beyond the border on both sides."""
    reach = len(taps) // 2 - 1
    before = sum(1 for _ in itertools.takewhile(lambda h: h == 0, taps[:reach]))
    after = sum(1 for _ in itertools.takewhile(lambda h: h == 0, taps[::-1][:reach]))
    return taps[before : len(taps) - after], reach - before, reach - after


class WaveletPool1d(_WaveletPool):
    rank = 1


class WaveletPool2d(_WaveletPool):
    rank = 2


class WaveletPool3d(_WaveletPool):
    rank = 3


def reference(
    x: ArrayLike,
    rule: str = "reconstruction",
    wavelet: str | Sequence[float] = "haar",
    odd: str | None = None,
    scale: str = "orthonormal",
) -> Floats:
    """Wavelet pooling, slowly, in float64.

    "reconstruction" goes the long way, as matrices: Haar analysis, analysis of the low band, synthesis of all its
    subbands. Cells whose weight is exactly 0 in the product do not take part, whatever they hold.
    """
    y = np.asarray(x, dtype=np.float64)
    for axis in range(2, y.ndim):
        n = y.shape[axis]
        if rule == "reconstruction":
            matrix = _through_two_levels(n, odd or "repeat")
        else:
            matrix = _low_band(n, _coefficients(wavelet), odd or "drop")
        y = _along(y, matrix if scale == "orthonormal" else matrix / math.sqrt(2), axis)
    return y


def _along(x: Floats, matrix: Floats, axis: int) -> Floats:
    lines = np.moveaxis(x, axis, -1)
    rows = [exact_sum(row[row != 0] * lines[..., row != 0]) for row in matrix]
    return np.moveaxis(np.stack(rows, axis=-1), -1, axis)


def _through_two_levels(n: int, odd: str) -> Floats:
    low_band = _haar(n, odd)[0]
    m = len(low_band)
    if m % 2:
        low_band = np.concatenate([low_band, low_band[-1:]])
    low, high = _haar(len(low_band), "drop")
    synthesis = low.T @ low + high.T @ high
    return (synthesis @ low_band)[:m]


def _haar(n: int, odd: str) -> tuple[Floats, Floats]:
    """Analysis of an axis of length n: its low band and its high band."""
    m = n // 2 if odd == "drop" else (n + 1) // 2
    low, high = np.zeros((m, n)), np.zeros((m, n))
    for i in range(m):
        for place, sign in ((2 * i, 1), (2 * i + 1, -1)):
            if place == n:
                if odd == "zero":
                    continue
                place = n - 1
            low[i, place] += math.sqrt(0.5)
            high[i, place] += sign * math.sqrt(0.5)
    return low, high


def _low_band(n: int, h: Floats, odd: str) -> Floats:
    matrix = np.zeros((n // 2 if odd == "drop" else (n + 1) // 2, n))
    for i, j in itertools.product(range(len(matrix)), range(len(h))):
        place = 2 * i + j - len(h) // 2 + 1
        if odd == "repeat":
            place = min(place, n - 1)
        if 0 <= place < n:
            matrix[i, place] += h[j]
    return matrix


def _coefficients(wavelet: str | Sequence[float]) -> Floats:
    """The low-pass filter: the shortest with N vanishing moments (dbN), or a spline (biorN.N)."""
    if not isinstance(wavelet, str):
        return np.asarray(wavelet, dtype=np.float64)
    moments = int(wavelet[-1]) if wavelet != "haar" else 1
    spline = np.array([math.comb(moments, j) / 2**moments for j in range(moments + 1)])
    if wavelet.startswith("bior"):
        zeros = 1 if moments == 2 else 2
        return math.sqrt(2) * np.concatenate([np.zeros(zeros), spline, np.zeros(2)])
    # Daubechies: |H|^2 = 2 cos^2N times a polynomial in y = sin^2, of which the roots inside the unit circle are kept.
    h = spline.astype(complex)
    for y in np.roots([math.comb(moments - 1 + k, k) for k in range(moments)][::-1]):
        z = min(np.roots([1, 4 * y - 2, 1]), key=abs)
        h = np.convolve(h, [1, -z]) / (1 - z)
    return math.sqrt(2) * h.real


METHOD = Method(
    (WaveletPool1d, WaveletPool2d, WaveletPool3d),
    summary="The low band of a wavelet transform, which halves every axis.",
    paper=Paper(
        "Wavelet Pooling for Convolutional Neural Networks",
        "Williams, Li",
        2018,
        "https://openreview.net/forum?id=rkhlb8lCZ",
    ),
    reference=reference,
    training="low band of a wavelet transform",
    inference="low band of a wavelet transform",
    operators=(weighted_sum_pool,),
    cases=(
        Case("haar", {}),
        Case("even", {}, shape=(1, 2, 8, 10)),
        Case("mean", {"scale": "mean", "odd": "zero"}),
        Case("drop", {"odd": "drop"}),
        Case("wavecnet", {"rule": "low_band", "wavelet": "haar"}),
        Case("db2", {"rule": "low_band", "wavelet": "db2"}),
        Case("db3", {"rule": "low_band", "wavelet": "db3", "odd": "zero", "scale": "mean"}),
        Case("ch2.2", {"rule": "low_band", "wavelet": "bior2.2", "odd": "zero"}),
        Case("ch3.3", {"rule": "low_band", "wavelet": "bior3.3"}, shape=(1, 2, 8, 10)),
        Case("coefficients", {"rule": "low_band", "wavelet": (0.25, 0.75, 0.5, -0.125), "odd": "zero"}),
        Case("1d", {}, shape=(2, 3, 11)),
        Case("3d", {"rule": "low_band", "wavelet": "db2"}, shape=(1, 2, 5, 6, 7)),
    ),
    space={
        "rule": ("reconstruction", "low_band", "low_band"),
        "wavelet": ("haar", "haar", "db2", "db3", "bior2.2", "bior3.3"),
        "odd": (None, "repeat", "zero", "drop"),
        "scale": ("orthonormal", "mean"),
    },
    limits=(
        Limit({"rule": "high_band"}, ValueError, "rule must be one of"),
        Limit({"rule": "low_band", "wavelet": "db99"}, ValueError, "wavelet must be one of"),
        Limit({"rule": "low_band", "wavelet": (1.0, 1.0, 1.0)}, ValueError, "an even number of coefficients, got 3"),
        Limit({"wavelet": "db2"}, ValueError, "rule 'reconstruction' is defined for wavelet 'haar'"),
        Limit({"odd": "crop"}, ValueError, "odd must be one of"),
        Limit({"rule": "low_band", "wavelet": "db2", "odd": "repeat"}, ValueError, "needs a filter of 2 coefficients"),
        Limit({"scale": "sum"}, ValueError, "scale must be one of"),
        Limit({"odd": "drop"}, ValueError, "the window does not fit", shape=(1, 1, 1, 4), file="nothing"),
    ),
    notes=(
        "The second level of the paper changes nothing: its subbands are all kept, so their synthesis gives back the "
        "first level's low band, and Haar pooling is average pooling times sqrt(2) per axis.",
        "An axis of odd length: the paper does not say; Matlab's transform repeats the last line by default "
        "(odd='repeat'). WaveCNet drops it (odd='drop').",
        "WaveCNet filters with the reconstruction low-pass of a biorthogonal wavelet: its ch3.3 is the blur filter of "
        "size 4, without a mirrored border. It multiplies by a whole matrix, so there one infinity spoils a plane.",
    ),
)
