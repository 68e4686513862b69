"""Left singular vectors of a batch of matrices, from standard nodes, in float64.

    L      Gram-Schmidt on the rows of X, each time the longest that is left: X = L Q with orthonormal rows of Q, so X
           and L have the same left singular vectors; L has min(C, M) columns, in falling order of size
    V      one-sided Jacobi rotates pairs of columns of L until all are orthogonal: column i is then s_i u_i

No Gram matrix is formed, so small singular values keep their digits beside large ones: the error is that of float64 at
the scale of the largest, not of its square. A round rotates n / 2 disjoint pairs; n - 1 rounds meet all of them, and
six to eight such sweeps suffice. One thread takes 1 ms for a map of 8 channels and 49 locations, 35 to 40 for 64 and
196, and 400 to 580 for 256 and 196.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from poolexport_ops._body import INT64_MAX, Body
from poolexport_ops._loop import State, Step, loop

#: What Gram-Schmidt leaves of a row below this share of the longest, squared, is rounding.
NOISE = 2.0**-80
#: Columns whose cosines were all below this before the last sweep are orthogonal after it: convergence is quadratic.
SETTLED = 1e-9
SWEEPS = 40


def scaled_left_vectors(op: Body, x: ir.Value, at_least: int = 1) -> tuple[ir.Value, ir.Value]:
    """The left singular vectors times their values as rows (B, n, C), in no order, and the values squared (B, n, 1).

    Args:
        op: a body in float64.
        x: (B, C, M) of finite numbers, and not an empty batch.
        at_least: a lower bound on n, which is even and not below min(C, M); missing rows are 0.
    """
    channels, locations = op.Shape(x, start=1, end=2), op.Shape(x, start=2, end=3)
    rank = op.Min(channels, locations)
    columns = _lower_factor(op, x, op.Squeeze(rank))
    half = op.Max(op.Div(op.Add(op.Max(rank, op.ints(at_least)), op.ints(1)), op.ints(2)), op.ints(2))
    missing = op.Sub(op.Mul(half, op.ints(2)), rank)
    columns = op.Pad(columns, op.Concat(op.ints(0, 0, 0, 0), missing, op.ints(0), axis=0), op.number(0.0))
    vectors = _orthogonal(op, columns, half)
    return vectors, op.ReduceSumSquare(vectors, op.ints(2), keepdims=1)


def _lower_factor(op: Body, x: ir.Value, steps: ir.Value) -> ir.Value:
    """The columns of L as rows: (B, steps, C)."""
    floor = op.Mul(op.ReduceMax(op.ReduceSumSquare(x, op.ints(2), keepdims=1), op.ints(1)), op.number(NOISE))

    def step(op: Body, _: ir.Value, state: State) -> Step:
        (rest,) = state
        squares = op.ReduceSumSquare(rest, op.ints(2), keepdims=1)
        longest = op.ReduceMax(squares, op.ints(1), keepdims=1)
        place = op.ArgMax(squares, axis=1, keepdims=0)
        row = op.GatherND(rest, place, batch_dims=1)
        alive = op.Greater(longest, floor)
        length = op.Sqrt(op.Where(alive, longest, op.number(1.0)))
        q = op.Where(alive, op.Div(op.Unsqueeze(row, op.ints(1)), length), op.number(0.0))
        column = op.MatMul(rest, op.Reshape(q, op.ints(0, -1, 1)))
        rest = op.Sub(rest, op.Mul(column, q))
        return op.constant(np.array(True)), [rest], [op.Squeeze(column, op.ints(2))]

    _, (columns,) = loop(op, steps, [x], [ir.DataType.DOUBLE], step)
    return op.Transpose(columns, perm=[1, 0, 2])


def _orthogonal(op: Body, rows: ir.Value, half: ir.Value) -> ir.Value:
    """The rows (B, 2 half, C), rotated pair by pair until they are orthogonal."""
    everything = op.ints(INT64_MAX)
    axis = op.ints(1)
    first, second = op.Slice(rows, op.ints(0), half, axis), op.Slice(rows, half, everything, axis)
    rounds = op.Squeeze(op.Sub(op.Mul(half, op.ints(2)), op.ints(1)))

    def step(op: Body, _: ir.Value, state: State) -> Step:
        p, q, calm = state
        p, q, moved = _rotated(op, p, q)
        calm = op.Where(moved, op.constant(np.array(0)), op.Add(calm, op.constant(np.array(1))))
        # The pairs of the next round: all rows but the first move on by one place, around both tensors.
        one, end, axis = op.ints(1), op.ints(INT64_MAX), op.ints(1)
        zero, last = op.ints(0), op.ints(-1)
        stays, risen = op.Slice(p, zero, one, axis), op.Slice(q, zero, one, axis)
        following = op.Concat(stays, risen, op.Slice(p, one, last, axis), axis=1)
        others = op.Concat(op.Slice(q, one, end, axis), op.Slice(p, last, end, axis), axis=1)
        return op.Less(calm, rounds), [following, others, calm], []

    count = op.Mul(rounds, op.constant(np.array(SWEEPS)))
    types = [ir.DataType.DOUBLE, ir.DataType.DOUBLE, ir.DataType.INT64]
    (first, second, _), _ = loop(op, count, [first, second, op.constant(np.array(0))], types, step)
    return op.Concat(first, second, axis=1)


def _rotated(op: Body, p: ir.Value, q: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Pairs of rows, each rotated until it is orthogonal, and whether some pair was not nearly so before."""
    one, axis = op.number(1.0), op.ints(2)
    a, b = op.ReduceSumSquare(p, axis, keepdims=1), op.ReduceSumSquare(q, axis, keepdims=1)
    g = op.ReduceSum(op.Mul(p, q), axis, keepdims=1)
    skew = op.Abs(g)
    apart = op.Greater(skew, op.number(0.0))
    ratio = op.Div(op.Sub(b, a), op.Where(apart, op.Add(g, g), one))
    size = op.Add(op.Abs(ratio), op.Sqrt(op.Add(op.Mul(ratio, ratio), one)))
    tangent = op.Reciprocal(op.Where(op.Less(ratio, op.number(0.0)), op.Neg(size), size))
    tangent = op.Where(apart, tangent, op.number(0.0))
    cosine = op.Reciprocal(op.Sqrt(op.Add(op.Mul(tangent, tangent), one)))
    sine = op.Mul(cosine, tangent)
    turned = op.Sub(op.Mul(cosine, p), op.Mul(sine, q)), op.Add(op.Mul(sine, p), op.Mul(cosine, q))
    cosines = op.Sub(skew, op.Mul(op.Sqrt(op.Mul(a, b)), op.number(SETTLED)))
    return *turned, op.Greater(op.ReduceMax(cosines, keepdims=0), op.number(0.0))


def leading_vectors(op: Body, x: ir.Value, k: int, bound: float) -> tuple[ir.Value, ir.Value]:
    """The k leading left singular vectors times their values as rows (B, k, C), and one over the values (B, k, 1).

    The latter is 0 for a value that is not above ``bound`` times the largest.
    """
    vectors, squares = scaled_left_vectors(op, x, k)
    leading, places = op.TopK(squares, op.ints(k), axis=1, outputs=2)
    wanted = op.Expand(places, op.Concat(op.ints(1, 1), op.Shape(vectors, start=2), axis=0))
    largest = op.Slice(leading, op.ints(0), op.ints(1), op.ints(1))
    kept = op.Greater(leading, op.Mul(largest, op.number(bound**2)))
    inverse = op.Reciprocal(op.Sqrt(op.Where(kept, leading, op.number(1.0))))
    return op.GatherElements(vectors, wanted, axis=1), op.Where(kept, inverse, op.number(0.0))


def weighted_outer(op: Body, rows: ir.Value, weights: ir.Value) -> ir.Value:
    """Sum of the rows' outer products with themselves, each times its weight: (B, C, C)."""
    # Weights go onto the transposed rows: onnxruntime 1.20 fuses a bare Transpose into a float64 MatMul it cannot run.
    columns = op.Mul(op.Transpose(rows, perm=[0, 2, 1]), op.Reshape(weights, op.ints(0, 1, -1)))
    return op.MatMul(columns, rows)
