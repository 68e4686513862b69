"""What the float64 references share: walking over windows, and adding up without rounding on the way.

    length  o = floor((n + 2p - d(k - 1) - 1) / s) + 1 along every axis; ceil_mode takes the ceiling instead,
            then drops the last window if it would begin at or beyond n + p
    window  cell j of window i lies at i s - p + j d, and is real when 0 <= i s - p + j d < n

Numpy and the standard library only. Nothing here is fast, and nothing here knows a layer.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
PerAxis = int | tuple[int, ...]
#: More than any matrix needs; three or four usually do.
JACOBI_SWEEPS = 10
# The index is ints; typed as Any because a type checker rejects (..., *index) on an array otherwise.
Window = tuple[tuple[Any, ...], Floats, int, NDArray[np.int64]]


def each_window(
    x: ArrayLike,
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
) -> Iterator[Window]:
    """Visit every pooling window of `x` in row-major order of the output.

    Args:
        x: the input, in any float type; taken as float64.
        kernel_size: cells of a window along each axis; here and below an int counts for all axes.
        stride: cells from one window to the next; None means `kernel_size`.
        padding: imaginary cells before and after each axis; they are never among `cells`.
        dilation: step between neighbouring cells of a window, in cells.
        ceil_mode: keep a last window that hangs over the far end, unless it begins at or beyond n + padding.

    Yields:
        index: where the result belongs in the output, one int per spatial axis.
        cells: (N, C, m), the m real cells of the window in row-major order; m is 0 where dilation steps
            over the whole input.
        counted: positions of the window inside [-padding, n + padding), real or not. This is the divisor of
            an average that counts padding: what lies beyond n + padding is never counted.
        positions: (m,), flat row-major index of each real cell inside its (n, c) plane.

    Shape: x is (N, C, *spatial) with one to three spatial axes; indices cover `output_shape(spatial, ...)`.

    Raises:
        ValueError: x has no spatial axis or more than three, or `output_shape` refuses the sizes.

    Example:
        >>> for index, cells, counted, positions in each_window([[[1, 2, 3]]], kernel_size=2, padding=1):
        ...     print(index, cells[0, 0], counted, positions)
        (0,) [1.] 2 [0]
        (1,) [2. 3.] 2 [1 2]
    """
    x = np.asarray(x, dtype=np.float64)
    spatial = x.shape[2:]
    if not 1 <= len(spatial) <= 3:
        raise ValueError(f"x must be (N, C, *spatial) with 1 to 3 spatial axes, got shape {x.shape}")
    output = output_shape(spatial, kernel_size, stride, padding, dilation, ceil_mode)
    k, p, d = (per_axis(size, len(spatial)) for size in (kernel_size, padding, dilation))
    s = k if stride is None else per_axis(stride, len(spatial))
    planes = x.reshape(*x.shape[:2], math.prod(spatial))

    for index in np.ndindex(*output):
        counted, real = 1, []
        for i, n, k_, s_, p_, d_ in zip(index, spatial, k, s, p, d, strict=True):
            places = [i * s_ - p_ + j * d_ for j in range(k_)]
            counted *= sum(-p_ <= place < n + p_ for place in places)
            real.append([place for place in places if 0 <= place < n])
        positions = np.array([_flat(cell, spatial) for cell in itertools.product(*real)], dtype=np.int64)
        yield index, planes[:, :, positions], counted, positions


def output_shape(
    spatial: tuple[int, ...],
    kernel_size: PerAxis,
    stride: PerAxis | None = None,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    ceil_mode: bool = False,
) -> tuple[int, ...]:
    """Return the spatial sizes that pooling gives, by torch's rule.

    Args: as for `each_window`, but with the spatial sizes of the input, in cells, instead of the input.

    Shape: o = floor((n + 2p - d(k - 1) - 1) / s) + 1 along each axis, and the ceiling with `ceil_mode`, less
        one if then (o - 1) s >= n + p.

    Raises:
        ValueError: a size is not positive, the padding is negative or above half the dilated kernel, an
            option has the wrong number of axes, or no window fits.

    Example:
        >>> output_shape((5, 6), kernel_size=2), output_shape((5, 6), kernel_size=2, ceil_mode=True)
        ((2, 3), (3, 3))
    """
    axes = len(spatial)
    k, p, d = (per_axis(size, axes) for size in (kernel_size, padding, dilation))
    s = k if stride is None else per_axis(stride, axes)
    lengths = zip(spatial, k, s, p, d, strict=True)
    return tuple(_output_length(n, k_, s_, p_, d_, ceil_mode) for n, k_, s_, p_, d_ in lengths)


def per_axis(value: PerAxis, axes: int) -> tuple[int, ...]:
    """Return one int per axis: an int repeated, or a tuple checked for its length.

    Example:
        >>> per_axis(3, 2), per_axis((1, 2), 2)
        ((3, 3), (1, 2))
    """
    sizes = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sizes) != axes:
        raise ValueError(f"expected an int or {axes} ints, got {value!r}")
    return sizes


def exact_sum(terms: Floats, divisor: ArrayLike = 1.0) -> Floats:
    """Return sum(terms) / divisor over the last axis; the sum is exact until it is rounded once.

    Infinities and NaN give what IEEE addition gives. A sum beyond float64 is inf only if its quotient is too.

    Example:
        >>> exact_sum(np.array([[1e16, 1.0, -1e16], [1.5e308, 1.5e308, 1.5e308]]), divisor=3).tolist()
        [0.3333333333333333, 1.5e+308]
    """
    lead = terms.shape[:-1]
    rows = terms.reshape(math.prod(lead), terms.shape[-1]).tolist()
    by = np.asarray(divisor, dtype=np.float64)
    divisors = [by.item()] * len(rows) if by.ndim == 0 else np.broadcast_to(by, lead).ravel().tolist()
    return np.array([_sum_over(row, each) for row, each in zip(rows, divisors, strict=True)]).reshape(lead)


def power_of_two(magnitude: Floats) -> Floats:
    """Return the largest power of two not above each magnitude, and 1 for zero, inf and NaN.

    Dividing by it takes a number near 1 without rounding, so sums that cancel exactly still do.

    Example:
        >>> power_of_two(np.array([0.0, 0.75, 1.0, 7.0])).tolist()
        [1.0, 0.5, 1.0, 4.0]
    """
    usable = np.isfinite(magnitude) & (magnitude > 0)
    _, exponent = np.frexp(np.where(usable, magnitude, 1.0))
    return np.ldexp(1.0, exponent - 1)


def _output_length(n: int, k: int, s: int, p: int, d: int, ceil_mode: bool) -> int:
    extent = d * (k - 1) + 1
    if min(n, k, s, d) < 1 or p < 0 or 2 * p > extent:
        raise ValueError(f"no pooling of length {n} with kernel {k}, stride {s}, padding {p}, dilation {d}")
    steps = n + 2 * p - extent
    last = -(-steps // s) if ceil_mode else steps // s
    if ceil_mode and last * s >= n + p:
        last -= 1
    if last < 0:
        raise ValueError(f"no window fits: length {n}, kernel {k}, padding {p}, dilation {d}")
    return last + 1


def _flat(cell: tuple[int, ...], spatial: tuple[int, ...]) -> int:
    flat = 0
    for place, n in zip(cell, spatial, strict=True):
        flat = flat * n + place
    return flat


def _sum_over(row: list[float], divisor: float) -> float:
    try:
        return math.fsum(row) / divisor
    except ValueError:  # infinities of both signs
        return math.nan
    except OverflowError:  # a partial sum left the range; the quotient may still be inside
        special = [value for value in row if not math.isfinite(value)]
        if special:
            return sum(special) / divisor
        return math.fsum(value * 2.0**-64 for value in row) / divisor * 2.0**64


def symmetric_eigen(a: ArrayLike) -> tuple[NDArray[np.longdouble], NDArray[np.longdouble]]:
    """Return the eigenvalues of a symmetric matrix in falling order, and its eigenvectors as columns.

    Cyclic Jacobi rotations in numpy's longest float: where that has more digits than float64, so has the answer.

    Example:
        >>> values, vectors = symmetric_eigen([[2.0, 1.0], [1.0, 2.0]])
        >>> values.astype(float).round(12).tolist(), np.abs(vectors[:, 0]).astype(float).round(4).tolist()
        ([3.0, 1.0], [0.7071, 0.7071])
    """
    a = np.array(a, dtype=np.longdouble)
    n = len(a)
    vectors = np.eye(n, dtype=np.longdouble)
    for _, p, q in itertools.product(range(JACOBI_SWEEPS), range(n), range(n)):
        if p < q and a[p, q] != 0:
            angle = np.arctan2(2 * a[p, q], a[q, q] - a[p, p]) / 2
            rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            a[:, [p, q]] = a[:, [p, q]] @ rotation
            a[[p, q]] = rotation.T @ a[[p, q]]
            vectors[:, [p, q]] = vectors[:, [p, q]] @ rotation
    order = np.argsort(-a.diagonal(), kind="stable")
    return a.diagonal()[order], vectors[:, order]
