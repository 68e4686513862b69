"""CompactBilinear: the products of all pairs of channels, each added with its signs to the bin that its hashes name.

    z_t = sum of s1_i s2_j x_i y_j over all pairs (i, j) with (h1_i + h2_j) mod d = t      at one location
    z_t summed over all locations, where ``pooled``

This is the circular convolution of two count sketches. A bin that no pair falls into is exactly 0, which a Fourier
transform does not give; sums are made in float64. The graph does not scatter into several places at once (ScatterND
loses updates in onnxruntime) and holds no DFT (onnxruntime's has five digits, or three, at most lengths). It sums up

- "pairs": all products, pooled ones as one matrix product over the locations; or
- "transform": for single locations of many channels, a Fourier transform of the sketches in two steps of matrix
  products, after which bins without a pair are set to 0. Pairs with NaN or an infinity are added one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._operator import Operator

#: Products that the torch form holds at a time.
ROOM = 1 << 23


def torch_form(
    x: Tensor,
    y: Tensor,
    hash_x: Tensor,
    sign_x: Tensor,
    hash_y: Tensor,
    sign_y: Tensor,
    *,
    output_dim: int,
    pooled: int = 1,
    by: str = "pairs",
) -> Tensor:
    """Signed sums of the products of all pairs of channels, by bin.

    Args:
        x, y: (N, C, L) and (N, D, L), channels at L locations.
        hash_x, hash_y: (C,) and (D,), whole numbers.
        sign_x, sign_y: (C,) and (D,), factors of the channels.
        output_dim: number of bins.
        pooled: 1 to sum over the locations.
        by: how the graph sums up where it is not ``pooled``, "pairs" or "transform"; the numbers are the same.

    Returns:
        (N, output_dim), or (N, output_dim, L) where not ``pooled``.
    """
    a, b = x.double() * sign_x.double()[:, None], y.double() * sign_y.double()[:, None]
    bins = (hash_x.long()[:, None] + hash_y.long()) % output_dim
    if pooled:
        z = a.new_zeros(len(a), output_dim)
        pairs = (a @ b.mT).flatten(1)
        return z.scatter_add(1, bins.flatten().expand(len(a), -1), pairs).to(x.dtype)
    z = a.new_zeros(len(a), output_dim, a.shape[2])
    rows = max(1, ROOM // max(1, b.numel()))
    for some, places in zip(a.split(rows, 1), bins.split(rows)):
        pairs = (some[:, :, None] * b[:, None]).flatten(1, 2)
        z = z.scatter_add(1, places.flatten()[:, None].expand_as(pairs), pairs)
    return z.to(x.dtype)


def onnx_form(
    op: Body,
    x: ir.Value,
    y: ir.Value,
    hash_x: ir.Value,
    sign_x: ir.Value,
    hash_y: ir.Value,
    sign_y: ir.Value,
    *,
    output_dim: int,
    pooled: int,
    by: Literal["pairs", "transform"],
) -> ir.Value:
    x, y, sign_x, sign_y = (op.cast(value, ir.DataType.DOUBLE) for value in (x, y, sign_x, sign_y))
    if pooled:
        # The signs come between: onnxruntime 1.20 has no float64 kernel for the node it makes of transpose and product.
        turned = op.Mul(op.Transpose(y, perm=[0, 2, 1]), sign_y)
        gram = op.MatMul(op.Mul(x, op.Unsqueeze(sign_x, op.ints(1))), turned)
        return op.cast(_added_up(op, gram, _bins(op, hash_x, hash_y, output_dim), output_dim), op.dtype)
    # Locations as rows, because it takes less time to scatter along the last axis.
    turned = [op.Transpose(value, perm=[0, 2, 1]) for value in (x, y)]
    rows = [op.Reshape(value, op.Concat(op.ints(-1), _axis(op, value, 2), axis=0)) for value in turned]
    ends = [_End(rows[0], hash_x, sign_x), _End(rows[1], hash_y, sign_y)]
    z = _transformed(op, ends, output_dim) if by == "transform" else _paired(op, ends, output_dim)
    shape = op.Concat(_axis(op, x, 0), _axis(op, x, 2), op.ints(output_dim), axis=0)
    return op.cast(op.Transpose(op.Reshape(z, shape), perm=[0, 2, 1]), op.dtype)


class _End(NamedTuple):
    """One side of the pairs: rows of channels, their hashes and their signs."""

    rows: ir.Value
    hash: ir.Value
    sign: ir.Value


def _bins(op: Body, hash_x: ir.Value, hash_y: ir.Value, d: int) -> ir.Value:
    return op.Reshape(op.Mod(op.Add(op.Unsqueeze(hash_x, op.ints(1)), hash_y), op.ints(d)), op.ints(-1))


def _added_up(op: Body, products: ir.Value, bins: ir.Value, d: int) -> ir.Value:
    """(R, d) of (R, C, D): every row of products added to its bins."""
    batch = _axis(op, products, 0)
    shape = op.Concat(batch, op.Shape(bins), axis=0)
    zeros = _zeros(op, op.Concat(batch, op.ints(d), axis=0))
    return op.ScatterElements(zeros, op.Expand(bins, shape), op.Reshape(products, shape), axis=1, reduction="add")


def _paired(op: Body, ends: Sequence[_End], d: int) -> ir.Value:
    a, b = (op.Mul(end.rows, end.sign) for end in ends)
    products = op.Mul(op.Unsqueeze(a, op.ints(2)), op.Unsqueeze(b, op.ints(1)))
    return _added_up(op, products, _bins(op, ends[0].hash, ends[1].hash, d), d)


def _transformed(op: Body, ends: Sequence[_End], d: int) -> ir.Value:
    """(R, d) of (R, C) and (R, D): sketches convolved through their spectra."""
    zero = op.constant(np.array(0.0))
    usable = [op.Equal(op.Sub(end.rows, end.rows), zero) for end in ends]
    transform = _Transform(op, d)
    sketches = [_sketch(op, op.Where(ok, end.rows, zero), end, d) for ok, end in zip(usable, ends)]
    # How many pairs fall into every bin; constant, so that onnxruntime counts once.
    one = op.constant(np.ones((1, 1)))
    counts = []
    for end in ends:
        ones = op.Expand(one, op.Concat(op.ints(1), op.Shape(end.hash), axis=0))
        counts.append(_scattered(op, ones, end.hash, d))
    hit = op.Greater(transform.convolution(*counts), op.constant(np.array(0.5)))
    z = op.Slice(transform.convolution(*sketches), op.ints(0), _axis(op, ends[0].rows, 0), op.ints(0))
    z = op.Where(hit, z, zero)
    flat = op.Reshape(z, op.ints(-1))
    for ok, this, other in zip(usable, ends, reversed(ends)):
        flat = _with_special(op, flat, ok, this, other, d)
    return op.Reshape(flat, op.Shape(z))


def _sketch(op: Body, rows: ir.Value, end: _End, d: int) -> ir.Value:
    return _scattered(op, op.Mul(rows, end.sign), end.hash, d)


def _scattered(op: Body, rows: ir.Value, hashes: ir.Value, d: int) -> ir.Value:
    places = op.Expand(op.Mod(hashes, op.ints(d)), op.Shape(rows))
    # One row at least: onnxruntime refuses products of a matrix and an empty batch.
    zeros = _zeros(op, op.Concat(op.Max(_axis(op, rows, 0), op.ints(1)), op.ints(d), axis=0))
    return op.ScatterElements(zeros, places, rows, axis=1, reduction="add")


def _with_special(op: Body, flat: ir.Value, usable: ir.Value, this: _End, other: _End, d: int) -> ir.Value:
    """All pairs of a cell that is not finite, added where they belong: no work where there is none.

    Two such cells meet twice, which changes nothing about an infinity or NaN.
    """
    channels = _axis(op, this.rows, 1)
    found = op.NonZero(op.Not(op.Reshape(usable, op.ints(-1))))
    found = op.Reshape(found, op.ints(-1))
    row, channel = op.Div(found, channels), op.Mod(found, channels)
    value = op.Gather(op.Reshape(this.rows, op.ints(-1)), found, axis=0)
    value = op.Mul(value, op.Gather(this.sign, channel, axis=0))
    partners = op.Mul(op.Gather(other.rows, row, axis=0), other.sign)
    products = op.Mul(op.Unsqueeze(value, op.ints(1)), partners)
    bins = op.Mod(op.Add(op.Unsqueeze(op.Gather(this.hash, channel, axis=0), op.ints(1)), other.hash), op.ints(d))
    bins = op.Add(op.Unsqueeze(op.Mul(row, op.ints(d)), op.ints(1)), bins)
    return op.ScatterElements(
        flat, op.Reshape(bins, op.ints(-1)), op.Reshape(products, op.ints(-1)), axis=0, reduction="add"
    )


class _Transform:
    """Circular convolution of rows of length d by matrix products.

    A length L = n m is transformed along n, turned by an angle that depends on both places, and transformed along m;
    of the n frequencies of real numbers only n // 2 + 1 are needed. Where d has no such factors the rows are padded to
    a length that has, and what leaves the end comes in again at the front.
    """

    def __init__(self, op: Body, d: int) -> None:
        self.op, self.d = op, d
        self.length, self.n, self.m = factored(d)
        frequencies, places = np.arange(self.n // 2 + 1), np.arange(self.n)
        forward = _wave(np.outer(frequencies, places), self.n)
        twice = np.where((frequencies == 0) | (2 * frequencies == self.n), 1.0, 2.0) / self.length
        back = (forward * twice[:, None]).T
        self.forward = op.constant(np.concatenate([forward.real, forward.imag]))
        # Real part of the conjugate times a spectrum.
        self.back = op.constant(np.concatenate([back.real, back.imag], axis=1))
        inner = _wave(np.outer(np.arange(self.m), np.arange(self.m)), self.m)
        self.inner = op.constant(np.block([[inner.real, inner.imag], [-inner.imag, inner.real]]))
        self.inner_back = op.constant(np.block([[inner.real, -inner.imag], [inner.imag, inner.real]]))
        turn = _wave(np.outer(frequencies, np.arange(self.m)), self.length)
        self.cos, self.sin = op.constant(turn.real.copy()), op.constant(turn.imag.copy())

    def convolution(self, a: ir.Value, b: ir.Value) -> ir.Value:
        op = self.op
        (a_re, a_im), (b_re, b_im) = self._spectrum(a), self._spectrum(b)
        re = op.Sub(op.Mul(a_re, b_re), op.Mul(a_im, b_im))
        im = op.Add(op.Mul(a_re, b_im), op.Mul(a_im, b_re))
        return self._signal(re, im)

    def _spectrum(self, rows: ir.Value) -> tuple[ir.Value, ir.Value]:
        op = self.op
        if self.length != self.d:
            rows = op.Pad(rows, op.ints(0, 0, 0, self.length - self.d), op.constant(np.array(0.0)), mode="constant")
        grid = op.Reshape(rows, self._shape(rows, self.n, self.m))
        re, im = self._halves(op.MatMul(self.forward, grid), axis=1)
        turned = [
            op.Sub(op.Mul(re, self.cos), op.Mul(im, self.sin)),
            op.Add(op.Mul(re, self.sin), op.Mul(im, self.cos)),
        ]
        return self._halves(self._along_last(op.Concat(*turned, axis=2), self.inner), axis=2)

    def _signal(self, re: ir.Value, im: ir.Value) -> ir.Value:
        op = self.op
        re, im = self._halves(self._along_last(op.Concat(re, im, axis=2), self.inner_back), axis=2)
        turned = [
            op.Add(op.Mul(re, self.cos), op.Mul(im, self.sin)),
            op.Sub(op.Mul(im, self.cos), op.Mul(re, self.sin)),
        ]
        grid = op.MatMul(self.back, op.Concat(*turned, axis=1))
        rows = op.Reshape(grid, op.Concat(_axis(op, grid, 0), op.ints(self.length), axis=0))
        if self.length == self.d:
            return rows
        first = op.Slice(rows, op.ints(0), op.ints(self.d), op.ints(1))
        rest = op.Slice(rows, op.ints(self.d), op.ints(2 * self.d), op.ints(1))
        short = 2 * self.d - self.length
        if short > 0:
            rest = op.Pad(rest, op.ints(0, 0, 0, short), op.constant(np.array(0.0)), mode="constant")
        return op.Add(first, rest)

    def _along_last(self, grid: ir.Value, matrix: ir.Value) -> ir.Value:
        op = self.op
        product = op.MatMul(op.Reshape(grid, op.ints(-1, 2 * self.m)), matrix)
        return op.Reshape(product, self._shape(grid, self.n // 2 + 1, 2 * self.m))

    def _shape(self, rows: ir.Value, *lengths: int) -> ir.Value:
        return self.op.Concat(_axis(self.op, rows, 0), self.op.ints(*lengths), axis=0)

    def _halves(self, value: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
        middle = self.n // 2 + 1 if axis == 1 else self.m
        first, second = (self.op.ints(i * middle) for i in (0, 1))
        last, axes = self.op.ints(2 * middle), self.op.ints(axis)
        return self.op.Slice(value, first, second, axes), self.op.Slice(value, second, last, axes)


def factored(d: int) -> tuple[int, int, int]:
    """The cheapest length L = n m to transform: d, or one from 2 d - 1 on where the factors of d are too far apart.

    Example:
        >>> factored(16000), factored(8191)
        ((16000, 200, 80), (16393, 169, 97))
    """
    lengths = [d, *range(2 * d - 1, 2 * d + 64)]
    small = [(length, n) for length in lengths for n in range(1, math.isqrt(length) + 1) if length % n == 0]
    choices = [choice for length, n in small for choice in ((length, n, length // n), (length, length // n, n))]
    return min(choices, key=lambda choice: choice[0] * (choice[1] + 2 * choice[2]))


def _wave(turns: np.ndarray, length: int) -> np.ndarray:
    """exp(-2 pi i turns / length), of whole turns left out, so that angles are small."""
    return np.exp(-2j * math.pi * (turns % length) / length)


def _axis(op: Body, x: ir.Value, axis: int) -> ir.Value:
    return op.Slice(op.Shape(x), op.ints(axis), op.ints(axis + 1), op.ints(0))


def _zeros(op: Body, shape: ir.Value) -> ir.Value:
    return op.ConstantOfShape(shape, value=ir.tensor(np.zeros(1)))


def output_shape(x: Tensor, *_: Tensor, output_dim: int, pooled: int, by: str) -> Sequence[int]:
    return (x.shape[0], output_dim) if pooled else (x.shape[0], output_dim, x.shape[2])


compact_bilinear = Operator("CompactBilinear", torch_form, onnx_form, output_shape=output_shape, widen=False)
