"""Windows whose kernel, stride, padding or dilation is computed from the input's size, in torch's own words.

No operator of ONNX takes a computed window. The graph computes which cells every window has instead, gathers them, and
reduces them, one axis after the other:

    window i of an axis holds the cells  i s - p,  i s - p + d,  ...,  i s - p + (k - 1) d     that lie in 0 ... n - 1

Windows that overlap are gathered as often as they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import SymInt, Tensor

#: Behind every position of a plane: what a cell outside of the map claims.
NOWHERE = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class ComputedWindow:
    """A window in torch's words, one entry per spatial axis: a number, or one that follows the input.

    Args:
        kernel, stride, padding, dilation: in cells.
        ceil_mode: keep a last window that ends behind the map.
    """

    kernel: Sequence[Any]
    stride: Sequence[Any]
    padding: Sequence[Any]
    dilation: Sequence[Any]
    ceil_mode: bool = False

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def computed(self) -> bool:
        """Whether an entry follows the input."""
        entries = (*self.kernel, *self.stride, *self.padding, *self.dilation)
        return any(isinstance(entry, SymInt) for entry in entries)

    def largest(self, x: Tensor) -> Tensor:
        """Largest cell of every window, NaN where it holds one; ONNX's reductions drop NaN, so that flags go along."""
        nan = x.isnan().to(torch.uint8)
        for axis, cells in self._axes(x):
            x = cells.of(x, axis, -torch.inf).amax(axis)
            nan = cells.of(nan, axis, 0).amax(axis)
        return torch.where(nan > 0, torch.nan, x)

    def largest_and_where(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Largest cell of every window and its position in the plane: the first of equal cells, the last NaN.

        Every cell claims its position, or -1 - position where it is NaN; of the cells that equal the largest, or are
        NaN, the smallest claim is the one looked for.
        """
        lengths = x.shape[-self.rank :]
        count = 1
        for n in lengths:
            count = count * n
        position = torch.arange(count).reshape(lengths)
        best, claim = x, torch.where(x.isnan(), -1 - position, position)
        for axis, cells in self._axes(x):
            values, claims = cells.of(best, axis, -torch.inf), cells.of(claim, axis, NOWHERE)
            best = values.amax(axis, keepdim=True)
            claim = torch.where((values == best) | (claims < 0), claims, NOWHERE).amin(axis)
            best = best.squeeze(axis)
        return torch.where(claim < 0, torch.nan, best), torch.where(claim < 0, -1 - claim, claim)

    def average(self, x: Tensor, count_include_pad: bool, divisor: int | None) -> Tensor:
        """Mean of every window, added up in float64; pads count where they are included, cells behind them never."""
        y = x.double()
        counts: list[Any] = []
        for axis, cells in self._axes(x):
            y = cells.of(y, axis, 0.0).sum(axis)
            counts.append(cells.counted(count_include_pad).double().reshape(-1, *[1] * (-1 - axis)))
        for share in counts if divisor is None else [divisor]:
            y = y / share
        return y.to(x.dtype)

    def _axes(self, x: Tensor) -> Iterator[tuple[int, _Cells]]:
        """Every spatial axis, counted from the back, as it is once its cells have been gathered, and those cells."""
        entries = zip(self.kernel, self.stride, self.padding, self.dilation)
        for axis, (k, s, p, d) in enumerate(entries, -self.rank):
            yield axis, _Cells.of_axis(x.shape[axis], k, s, p, d, self.ceil_mode)


@dataclass(frozen=True)
class _Cells:
    """The cells of all windows of an axis.

    Args:
        places: of every window, (O, K); some lie outside of the axis.
        length: of the axis.
        padding: cells before and after it.
    """

    places: Tensor
    length: Any
    padding: Any

    @classmethod
    def of_axis(cls, n: Any, k: Any, s: Any, p: Any, d: Any, ceil_mode: bool) -> _Cells:
        extent = d * (k - 1) + 1
        # Ceil mode is a wider pad at the end: see poolexport_ops/_window.py.
        end = torch.sym_min(extent - 1, p + s - 1) if ceil_mode else p
        starts = torch.arange((n + p + end - extent) // s + 1) * s - p
        return cls(starts.unsqueeze(1) + torch.arange(k) * d, n, p)

    def of(self, x: Tensor, axis: int, outside: float) -> Tensor:
        """The cells of ``x``: O takes the place of the axis, K the one after it; so it is axis ``axis`` in turn."""
        windows, taps = self.places.shape
        flat = x.index_select(axis, self.places.clamp(0, self.length - 1).flatten())
        cells = flat.unflatten(axis, (windows, taps))
        inside = (self.places >= 0) & (self.places < self.length)
        return torch.where(inside.reshape(windows, taps, *[1] * (-1 - axis)), cells, outside)

    def counted(self, pads: bool) -> Tensor:
        """Cells of every window that lie on the axis, or on its pads as well, (O,)."""
        first, end = (-self.padding, self.length + self.padding) if pads else (0, self.length)
        return ((self.places >= first) & (self.places < end)).sum(1)
