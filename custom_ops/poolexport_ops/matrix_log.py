"""MatrixLog: the logarithm of S + a I, for symmetric positive semidefinite S and a small positive a.

    a = max(epsilon, f tr S)               f = 2^-44 in float64, 2^-23 in float32
    log(S + a I) = U diag(log(l)) U^T      with the eigenvalues l and eigenvectors U of S + a I

Eigenvalues far below the trace are rounding errors of S; f keeps them from being taken for numbers, and keeps the
condition number below 2^44. ONNX has no eigenvalues. Its form brings the spectrum into [1/16, 1] with square roots, and
ends with a polynomial:

    b = |S|_F + a,  A = (S + a I) / b,  so that the spectrum of A is in [m, 1] with m = a / b
    while m < 1/16:  A = sqrt(A), m = sqrt(m)               j times
    log(S + a I) = 2^j (A - I) p(A) + log(b) I              p = Chebyshev series of log(x) / (x - 1) on [1/16, 1]

Every square root is a Newton iteration Y, Z = Y T, T Z with T = u (3 I - u^2 Z Y) / 2, whose scale u and number of
steps follow from m alone, sample by sample: a sample does not depend on its batch.

Errors in float64, measured against eigenvalues: near 1e-16 times the largest eigenvalue over a, which is 1e-13 for
published covariance networks, and 2e-3 at worst, where f takes the place of epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from poolexport_ops._body import Body
from poolexport_ops._loop import State, Step, loop
from poolexport_ops._operator import Operator
from poolexport_ops._spd import eye_like, eye_node, trace, trace_node

#: The share of the trace below which an eigenvalue is not told from 0.
FLOOR = {torch.float64: 2.0**-44, torch.float32: 2.0**-23}
#: Where the series begins.
LOWEST = 1 / 16
#: Terms of the series: so many blocks of so many.
ROWS, BLOCK = 8, 8
#: Steps of all square roots together; a condition number of 2^44 needs fewer.
MOST_STEPS = 100


def torch_form(s: Tensor, epsilon: Tensor) -> Tensor:
    """The logarithm of every regularised matrix; NaN all over where a matrix is not finite.

    Its gradient is right and finite for repeated eigenvalues too.

    Args:
        s: (N, D, D), symmetric, no eigenvalue below 0.
        epsilon: (1,), above 0, of the type of ``s``.

    Returns:
        (N, D, D).
    """
    eye = eye_like(s)
    a = torch.maximum(epsilon.reshape(1, 1, 1), FLOOR[s.dtype] * trace(s))
    usable = (s + a * eye).isfinite().all(dim=2, keepdim=True).all(dim=1, keepdim=True)
    # A scaled matrix and the logarithm of its scale: entries far below a keep their digits.
    a = torch.where(usable, a, 1.0)
    log: Tensor = _LogOfOnePlus.apply(torch.where(usable, s, eye) / a) + a.log() * eye
    return torch.where(usable, log, math.nan)


class _LogOfOnePlus(torch.autograd.Function):
    """log(I + S) by the eigenvalues of S; those below 0 are rounding errors.

    Derivatives are divided differences of the logarithm, which have a limit where eigenvalues meet.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(s)
        values = values.clamp(min=0)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.log1p().unsqueeze(1)) @ vectors.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        rows, columns = values.unsqueeze(2), values.unsqueeze(1)
        # log((1 + r) / (1 + c)) / (r - c) = 2 artanh(q) / (q (2 + r + c)) with q = (r - c) / (2 + r + c)
        q = (rows - columns) / (2 + rows + columns)
        ratio = torch.where(q == 0, 1.0, torch.atanh(q) / torch.where(q == 0, 1.0, q))
        inner = vectors.transpose(1, 2) @ gradients[0] @ vectors
        found = vectors @ (inner * ratio * 2 / (2 + rows + columns)) @ vectors.transpose(1, 2)
        return (found + found.transpose(1, 2)) / 2


def onnx_form(op: Body, s: ir.Value, epsilon: ir.Value) -> ir.Value:
    floor = FLOOR[torch.float64 if op.dtype == ir.DataType.DOUBLE else torch.float32]
    eye = eye_node(op, s)
    t = trace_node(op, s, eye)
    a = op.Max(op.Reshape(epsilon, op.ints(1, 1, 1)), op.Mul(t, op.number(floor)))
    shares = op.Div(s, op.Where(op.Equal(t, op.number(0.0)), op.number(1.0), t))
    norm = op.Sqrt(op.ReduceSum(op.Mul(shares, shares), op.ints(1, 2), keepdims=1))
    b = op.Add(op.Mul(t, norm), a)
    m = op.Div(a, b)
    matrix = op.Div(op.Add(s, op.Mul(a, eye)), b)
    z = op.Expand(eye, op.Shape(s))
    doublings = op.Add(op.Sub(m, m), op.number(1.0))
    start = (matrix, z, eye, m, op.Sqrt(m), doublings)
    most = op.constant(np.array(MOST_STEPS))
    (matrix, _, _, _, _, doublings), _ = loop(op, most, start, [op.dtype] * len(start), _root_step, _any_below(op, m))
    return op.Add(op.Mul(doublings, _series_node(op, matrix, eye)), op.Mul(op.Log(b), eye))


def _any_below(op: Body, m: ir.Value) -> ir.Value:
    below = op.cast(op.Less(m, op.number(LOWEST)), ir.DataType.FLOAT)
    # A sum, because nothing is the largest of an empty batch.
    total = op.ReduceSum(below, op.ints(0, 1, 2), keepdims=0)
    return op.Greater(total, op.constant(np.array(0.0, np.float32)))


def _root_step(op: Body, _: ir.Value, state: State) -> Step:
    """One Newton step of every sample that still needs one; a root that is found is the next matrix.

    ``low`` bounds the eigenvalues of ``sqrt(z y)`` from below; they are never above 1.
    """
    y, z, eye, m, low, doublings = state
    one, half, three = op.number(1.0), op.number(0.5), op.number(3.0)
    square = op.Div(three, op.Add(op.Add(op.Mul(low, low), low), one))
    scale = op.Sqrt(square)
    factor = op.Mul(op.Mul(scale, half), op.Sub(op.Mul(three, eye), op.Mul(square, op.MatMul(z, y))))
    closer = op.Mul(op.Mul(op.Mul(scale, low), half), op.Sub(three, op.Mul(square, op.Mul(low, low))))
    found = op.Greater(closer, op.number(1 - 16 * float(np.finfo(op.dtype.numpy()).eps)))
    active = op.Less(m, op.number(LOWEST))
    ends = op.And(active, found)
    m = op.Where(ends, op.Sqrt(m), m)
    states = (
        op.Where(active, op.MatMul(y, factor), y),
        op.Where(ends, eye, op.MatMul(factor, z)),
        op.Identity(eye),
        m,
        op.Where(ends, op.Sqrt(m), closer),
        op.Where(ends, op.Add(doublings, doublings), doublings),
    )
    return _any_below(op, m), states, []


def _series_node(op: Body, matrix: ir.Value, eye: ir.Value) -> ir.Value:
    """The logarithm of matrices with a spectrum in [1/16, 1]: 16 products of matrices.

    The factor A - I makes the logarithm of the identity exactly 0.
    """
    two = op.number(2.0)
    less = op.Sub(matrix, eye)
    powers = [eye, op.Add(eye, op.Mul(op.number(2 / (1 - LOWEST)), less))]
    for k in range(2, BLOCK + 1):
        product = op.Mul(two, op.MatMul(powers[k // 2], powers[(k + 1) // 2]))
        powers.append(op.Sub(product, powers[k % 2]))
    *others, first = (
        op.Sum(*(op.Mul(op.number(c), power) for c, power in zip(row, powers))) for row in reversed(_blocks().tolist())
    )
    later, last = others[0], op.Add(others[1], op.Mul(two, op.MatMul(powers[BLOCK], others[0])))
    for block in others[2:]:
        later, last = last, op.Sub(op.Add(block, op.Mul(two, op.MatMul(powers[BLOCK], last))), later)
    return op.MatMul(less, op.Sub(op.Add(first, op.MatMul(powers[BLOCK], last)), later))


@cache
def _blocks() -> np.ndarray:
    """Coefficients of T_j T_8q, row q and column j, that add up to the series of log(x) / (x - 1).

    T_(8q + j) = 2 T_j T_8q - T_(8q - j) takes the highest coefficients apart first.
    """
    middle, width = (1 + LOWEST) / 2, (1 - LOWEST) / 2
    # At cosines no x is 1.
    nodes = np.polynomial.chebyshev.chebpts1(ROWS * BLOCK)
    x = middle + width * nodes
    series = np.polynomial.chebyshev.chebvander(nodes, ROWS * BLOCK - 1).T @ (np.log(x) / (x - 1)) * 2 / len(nodes)
    series[0] /= 2
    blocks = np.zeros((ROWS, BLOCK))
    for q in range(ROWS - 1, 0, -1):
        blocks[q, 0] = series[q * BLOCK]
        for j in range(1, BLOCK):
            blocks[q, j] = 2 * series[q * BLOCK + j]
            series[q * BLOCK - j] -= series[q * BLOCK + j]
    blocks[0] = series[:BLOCK]
    return blocks


def output_shape(s: Tensor, epsilon: Tensor) -> Sequence[int]:
    return tuple(s.shape)


matrix_log = Operator("MatrixLog", torch_form, onnx_form, output_shape=output_shape)
