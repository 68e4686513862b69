"""Fractional regions: where the windows of fractional max pooling lie, in torch and in a graph.

Along one axis let n be the length, o the output, k the kernel, and s the sample of the axis.

    torch          start_i = trunc((i + s) a) - trunc(s a) with a = (n - k) / (o - 1), and n - k for the last;
                   every window has k cells
    pseudorandom   c_i = ceil(a (i + u)) - 1 with a = n / o and u = s min((f + 2) / a - 1, (n + 1 - f) / a - (o - 1)),
                   f = floor(a); c_0 = 0 and c_o = n
    random         c_i - c_(i-1) is f + 1 for the n mod o steps with the smallest samples, and f for the others

Graham's regions, the last two, hold the cells c_i ... c_(i+1) - 1, and cell c_(i+1) as well where they overlap. The
bound on u is TensorFlow's; it keeps every step at f or f + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import INT64_MAX, Body
from poolexport_ops._regions import Regions, length

REGIONS = ("torch", "pseudorandom", "random")
PRECISIONS = ("float32", "float64")


@dataclass(frozen=True)
class Rule:
    """How regions are made; one entry per spatial axis.

    Args:
        kernel_shape: cells per window; 0 for Graham's regions.
        output_size: lengths of the output; 0 where the ratio decides.
        output_ratio: share of the input's length, as text: an ONNX attribute would round it to single precision.
        regions: "torch", "pseudorandom" or "random".
        overlapping: whether Graham's regions share their border cell with the next.
        precision: floating type in which torch's starts are computed.
        per_plane: whether every plane has its own sample.
    """

    kernel_shape: tuple[int, ...]
    output_size: tuple[int, ...]
    output_ratio: tuple[str, ...]
    regions: str
    overlapping: bool
    precision: str
    per_plane: bool

    @classmethod
    def of(
        cls,
        kernel_shape: Sequence[int],
        output_size: Sequence[int],
        output_ratio: str,
        regions: str,
        overlapping: int,
        precision: str,
        per_plane: int,
    ) -> Rule:
        """A rule from the attributes of an operator call."""
        sizes = (tuple(kernel_shape), tuple(output_size), tuple(output_ratio.split(",")))
        return cls(*sizes, regions, bool(overlapping), precision, bool(per_plane))

    @property
    def rank(self) -> int:
        return len(self.output_size)

    def sample_column(self, axis: int) -> int:
        """Which of a plane's samples is a spatial axis's: torch has (width, height), but (depth, height, width)."""
        return 1 - axis if self.rank == 2 else axis

    def output_lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Lengths of the output; sizes may be symbolic."""
        return tuple(
            size or math.floor(n * float(ratio)) for n, size, ratio in zip(lengths, self.output_size, self.output_ratio)
        )

    def require_fit(self, x: Tensor, samples: Tensor) -> None:
        """Raise a ValueError where the regions do not fit, or samples are missing for some plane."""
        for axis, (n, o, k) in enumerate(zip(x.shape[2:], self.output_lengths(x.shape[2:]), self.kernel_shape)):
            cells = o + max(k, 1) - 1
            if not 1 <= o <= cells <= n:
                raise ValueError(
                    f"the regions do not fit: spatial axis {axis} has length {n}, and {o} outputs need at least "
                    f"{max(cells, 1)} cells and one output"
                )
        if self.per_plane:
            (rows, columns), (batch, channels) = samples.shape[:2], x.shape[:2]
            if (rows != 1 and rows < batch) or columns not in (1, channels):
                raise ValueError(
                    f"there are samples for {rows} inputs of {columns} channels, but the input has shape "
                    f"{tuple(x.shape)}; a larger batch needs more samples, or the same for all"
                )

    def bounds(self, n: int, axis: int, samples: Tensor) -> tuple[Tensor, Tensor]:
        """First cell of every region of an axis, and the cell after its last: (O,), or (N, C, O) with per_plane."""
        o = self.output_lengths([n] * self.rank)[axis]
        columns = samples[..., self.sample_column(axis)]
        if self.regions == "torch":
            k = self.kernel_shape[axis]
            sample = columns[..., None] if self.per_plane else columns[0]
            first = _starts(n, o, k, sample.to(getattr(torch, self.precision)))
            return first, first + k
        c = _pseudorandom(n, o, columns[0, 0]) if self.regions == "pseudorandom" else _random(n, o, columns[0])
        return c[:-1], (c[1:] + int(self.overlapping)).clamp(max=n)

    def onnx(self, op: Body, x: ir.Value, samples: ir.Value) -> dict[int, Regions]:
        """The regions of every axis in a graph."""
        return {axis: self._onnx_axis(op, x, samples, axis) for axis in range(self.rank)}

    def _onnx_axis(self, op: Body, x: ir.Value, samples: ir.Value, axis: int) -> Regions:
        n, o = length(op, x, axis), self._onnx_output_length(op, x, axis)
        columns = op.Gather(samples, op.constant(np.array(self.sample_column(axis))), axis=2)
        if self.regions == "torch":
            return self._onnx_starts(op, x, n, o, columns, self.kernel_shape[axis])
        if self.regions == "pseudorandom":
            c = _onnx_pseudorandom(op, n, o, op.Reshape(columns, op.ints(1)))
        else:
            c = _onnx_random(op, n, o, op.Reshape(columns, op.ints(-1)))
        first = op.Slice(c, op.ints(0), op.ints(-1), op.ints(0))
        end = op.Slice(c, op.ints(1), op.ints(INT64_MAX), op.ints(0))
        return Regions(first, op.Min(op.Add(end, op.ints(1)), n) if self.overlapping else end)

    def _onnx_output_length(self, op: Body, x: ir.Value, axis: int) -> ir.Value:
        if self.output_size[axis]:
            return op.ints(self.output_size[axis])
        ratio = op.constant(np.array(float(self.output_ratio[axis])))
        return op.cast(op.Mul(op.cast(length(op, x, axis), ir.DataType.DOUBLE), ratio), ir.DataType.INT64)

    def _onnx_starts(self, op: Body, x: ir.Value, n: ir.Value, o: ir.Value, columns: ir.Value, k: int) -> Regions:
        real = ir.DataType.FLOAT if self.precision == "float32" else ir.DataType.DOUBLE
        if self.per_plane:
            batch = op.Shape(x, start=0, end=1)
            columns = op.Slice(columns, op.ints(0), batch, op.ints(0))
            sample = op.Unsqueeze(columns, op.ints(-1))
        else:
            sample = op.Reshape(columns, op.ints(1))
        sample = op.cast(sample, real)
        spread, steps = op.Sub(n, op.ints(k)), op.Max(op.Sub(o, op.ints(1)), op.ints(1))
        alpha = op.Div(op.cast(spread, real), op.cast(steps, real))
        i = _ramp(op, o)
        ahead = op.cast(op.Mul(op.Add(op.cast(i, real), sample), alpha), ir.DataType.INT64)
        first = op.Sub(ahead, op.cast(op.Mul(sample, alpha), ir.DataType.INT64))
        first = op.Where(op.Equal(i, op.Sub(o, op.ints(1))), spread, first)
        if self.per_plane:
            first = op.Expand(first, op.Concat(op.Shape(x, start=0, end=2), o, axis=0))
        return Regions(first, op.Add(first, op.ints(k)), width=k, per_plane=self.per_plane)


def _starts(n: int, o: int, k: int, sample: Tensor) -> Tensor:
    """First cells of torch's windows, (..., O), computed in the sample's type."""
    alpha = torch.tensor(n - k, dtype=sample.dtype) / torch.tensor(max(o - 1, 1), dtype=sample.dtype)
    i = torch.arange(o, dtype=sample.dtype, device=sample.device)
    first = ((i + sample) * alpha).long() - (sample * alpha).long()
    first[..., -1] = n - k
    return first


def _pseudorandom(n: int, o: int, sample: Tensor) -> Tensor:
    """Borders of Graham's pseudo-random regions, (O + 1,)."""
    i = torch.arange(o + 1, device=sample.device)
    alpha, f = n / o, n // o
    if n % o == 0:
        return i * f
    bound = min((f + 2) / alpha - 1, (n + 1 - f) / alpha - (o - 1))
    c = torch.ceil(alpha * (i + sample.double() * bound)).long() - 1
    c[0], c[-1] = 0, n
    return c


def _random(n: int, o: int, keys: Tensor) -> Tensor:
    """Borders of Graham's random regions, (O + 1,); keys are used in turn where there are fewer than steps."""
    i = torch.arange(o, device=keys.device)
    order = keys[i % len(keys)].argsort(stable=True)
    steps = torch.full_like(i, n // o)
    steps[order[: n % o]] += 1
    return torch.cat([steps.new_zeros(1), steps.cumsum(0)])


def _onnx_pseudorandom(op: Body, n: ir.Value, o: ir.Value, sample: ir.Value) -> ir.Value:
    i, f = _ramp(op, op.Add(o, op.ints(1))), op.Div(n, o)

    def real(value: ir.Value) -> ir.Value:
        return op.cast(value, ir.DataType.DOUBLE)

    one = op.constant(np.array(1.0))
    alpha = op.Div(real(n), real(o))
    first_fits = op.Sub(op.Div(real(op.Add(f, op.ints(2))), alpha), one)
    last_fits = op.Sub(op.Div(real(op.Sub(op.Add(n, op.ints(1)), f)), alpha), op.Sub(real(o), one))
    u = op.Mul(sample, op.Min(first_fits, last_fits))
    c = op.Sub(op.cast(op.Ceil(op.Mul(alpha, op.Add(real(i), u))), ir.DataType.INT64), op.ints(1))
    c = op.Where(op.Equal(i, op.ints(0)), op.ints(0), op.Where(op.Equal(i, o), n, c))
    return op.Where(op.Equal(op.Mod(n, o), op.ints(0)), op.Mul(i, f), c)


def _onnx_random(op: Body, n: ir.Value, o: ir.Value, keys: ir.Value) -> ir.Value:
    turns = op.Gather(keys, op.Mod(_ramp(op, o), op.Shape(keys)), axis=0)
    _, order = op.TopK(turns, o, largest=0, outputs=2)
    _, place = op.TopK(order, o, largest=0, outputs=2)
    longer = op.cast(op.Less(place, op.Mod(n, o)), ir.DataType.INT64)
    steps = op.Add(op.Div(n, o), longer)
    return op.Concat(op.ints(0), op.CumSum(steps, op.constant(np.array(0))), axis=0)


def _ramp(op: Body, count: ir.Value) -> ir.Value:
    """0, 1, ... below a count that is a vector of one int64."""
    return op.Range(op.constant(np.array(0)), op.Squeeze(count), op.constant(np.array(1)))


def winners(x: Tensor, samples: Tensor, rule: Rule) -> Tensor:
    """Where every region's largest cell is: row-major positions, the first of equal cells, the last NaN."""
    best = x.detach()
    position = torch.arange(math.prod(x.shape[2:]), device=x.device).reshape(x.shape[2:]).expand(x.shape)
    claim = torch.where(best.isnan(), -1 - position, position)
    for axis, n in enumerate(x.shape[2:]):
        first, end = rule.bounds(n, axis, samples[: x.shape[0]] if rule.per_plane else samples)
        steps = torch.arange(int((end - first).max()) if first.numel() else 1, device=x.device)
        taps = torch.minimum(first[..., None] + steps, end[..., None] - 1)
        cells, claims = _pick(best, taps, axis), _pick(claim, taps, axis)
        best = cells.amax(3 + axis, keepdim=True)
        wins = (cells == best) | (claims < 0)
        claim = torch.where(wins, claims, INT64_MAX).amin(3 + axis)
        best = best.squeeze(3 + axis)
    return torch.where(claim < 0, -1 - claim, claim)


def _pick(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """The cells (..., O, T) of a spatial axis of ``x``; O and T take its place."""
    if taps.dim() == 2:
        return x.index_select(2 + axis, taps.flatten()).unflatten(2 + axis, taps.shape)
    index = taps.flatten(2)[(slice(None), slice(None), *[None] * axis, ..., *[None] * (x.dim() - 3 - axis))]
    return torch.take_along_dim(x, index, 2 + axis).unflatten(2 + axis, taps.shape[-2:])
