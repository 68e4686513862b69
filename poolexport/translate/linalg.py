"""Decompositions and functions of matrices, in float64 products and loops; ONNX has none of them.

    eigh           one-sided Jacobi rotations of A + c I, c twice the norm of A: its singular vectors are eigenvectors
    svd            the eigenvectors of A A^T, or of A^T A where that is smaller; values are lengths of A^T u
    inverse        X <- X (2 I - A X) from A^T / (|A|_1 |A|_inf)
    Cholesky       one column after the other
    exponential    a Taylor series of A / 2^s, squared s times

Eigenvectors and singular vectors have no sign of their own, and are not unique where values are equal: a model whose
answer depends on that choice differs from its file, as it differs from itself on another machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from poolexport.errors import ExportError
from poolexport.translate._writing import Write, Writer
from poolexport_ops._body import INT64_MAX, Body
from poolexport_ops._jacobi import scaled_left_vectors
from poolexport_ops._loop import State, Step, loop
from poolexport_ops._spd import eye_node
from poolexport_ops._subspace import SafeNode

#: Each doubles the digits; before that the first ones halve the distance, for condition numbers up to 10^10.
NEWTON_STEPS = 72
#: Terms of exp for matrices whose norm is at most 1/2: what is left out is below 2^-80.
TERMS = 18
#: exp of a matrix of a larger norm than 2^this has left the range.
MOST_SQUARINGS = 12


def entries() -> dict[str, Write]:
    return {
        "aten::_linalg_eigh": _eigh,
        "aten::_linalg_svd": _svd,
        "aten::linalg_inv": lambda writer, **options: _inverse(writer, **options)[0],
        "aten::linalg_inv_ex": _inverse,
        "aten::inverse": lambda writer, self: _inverse(writer, self)[0],
        "aten::linalg_cholesky": lambda writer, **options: _cholesky(writer, **options)[0],
        "aten::linalg_cholesky_ex": _cholesky,
        "aten::linalg_matrix_exp": _exponential,
    }


class _Matrices:
    """Matrices (..., M, N) as a batch (B, M, N) in float64, near 1, and the way back."""

    def __init__(self, writer: Writer, a: ir.Value) -> None:
        self.op, self.dtype = writer.op, writer.op.dtype
        self.lead = self.op.Shape(a, end=-2)
        batch = self.op.ReduceProd(self.lead, self.op.ints(0), keepdims=1)
        flat = self.op.Reshape(a, self.op.Concat(batch, self.op.Shape(a, start=-2), axis=0), allowzero=1)
        self.safe = SafeNode.of(self.op, flat)
        self.wide = self.safe.op

    def answer(self, y: ir.Value, scaled: bool, axes: int = 2) -> ir.Value:
        """(..., M, N) of (B, M, N), times the matrices' scale where ``scaled``; (..., M) where ``axes`` is 1."""
        y = self.safe.answer(self.wide.Mul(y, self.safe.scale) if scaled else y, self.dtype)
        inner = self.op.Shape(y, start=1, end=1 + axes)
        return self.op.Reshape(y, self.op.Concat(self.lead, inner, axis=0), allowzero=1)

    def no_trouble(self) -> ir.Value:
        """What torch's decompositions answer beside their result: 0, nothing went wrong."""
        return self.op.ConstantOfShape(self.lead, value=ir.tensor(np.zeros(1, np.int32)))


def _eigh(writer: Writer, A: ir.Value, UPLO: str, compute_v: bool) -> Any:
    matrices = _Matrices(writer, A)
    op, a = matrices.wide, matrices.safe.x
    upper = int(UPLO.upper() == "U")
    triangle = op.Trilu(a, upper=upper)
    rest = op.Trilu(a, op.constant(np.array(1 if upper else -1)), upper=upper)
    symmetric = op.Add(triangle, _transposed(op, rest))
    values, vectors = _decomposed(op, symmetric, descending=False)
    return matrices.answer(values, scaled=True, axes=1), matrices.answer(_transposed(op, vectors), scaled=False)


def _decomposed(op: Body, a: ir.Value, descending: bool) -> tuple[ir.Value, ir.Value]:
    """Eigenvalues (B, D, 1) of symmetric matrices, and their vectors as rows (B, D, D)."""
    norm = op.Sqrt(op.ReduceSumSquare(a, op.ints(1, 2), keepdims=1))
    shift = op.Where(op.Equal(norm, op.number(0.0)), op.number(1.0), op.Add(norm, norm))
    size = op.Shape(a, start=1, end=2)
    rows, squares = scaled_left_vectors(op, op.Add(a, op.Mul(shift, eye_node(op, a))))
    # A row of zeros may have come in beside them; it is the smallest by far.
    squares, places = op.TopK(squares, size, axis=1, outputs=2)
    rows = op.GatherElements(rows, op.Expand(places, op.Concat(op.ints(1), size, size, axis=0)), axis=1)
    lengths = op.Sqrt(squares)
    values, vectors = op.Sub(lengths, shift), op.Div(rows, lengths)
    if not descending:
        values, vectors = (_reversed(op, x) for x in (values, vectors))
    return values, vectors


def _reversed(op: Body, x: ir.Value) -> ir.Value:
    return op.Slice(x, op.ints(-1), op.ints(-INT64_MAX), op.ints(1), op.ints(-1))


def _transposed(op: Body, x: ir.Value) -> ir.Value:
    return op.Transpose(x, perm=[0, 2, 1])


def _svd(writer: Writer, A: ir.Value, full_matrices: bool, compute_uv: bool, driver: str | None = None) -> Any:
    rows, columns = (A.shape[-2], A.shape[-1]) if A.shape is not None else (None, None)
    if full_matrices and compute_uv and str(rows) != str(columns):
        raise ExportError(
            f"svd of {rows} x {columns} matrices with full_matrices=True has no form; pass full_matrices=False"
        )
    matrices = _Matrices(writer, A)
    op, a = matrices.wide, matrices.safe.x
    tall = isinstance(rows, int) and isinstance(columns, int) and columns < rows
    # The halves keep onnxruntime 1.20 from fusing a transpose into a float64 product, which it cannot run.
    half = op.constant(np.full(1, 0.5))
    wide = op.Mul(_transposed(op, a), half) if tall else a
    gram = op.MatMul(wide, op.Mul(_transposed(op, wide), half))
    _, vectors = _decomposed(op, gram, descending=True)
    fewer = op.Min(op.Shape(wide, start=1, end=2), op.Shape(wide, start=2, end=3))
    vectors = op.Slice(vectors, op.ints(0), fewer, op.ints(1))
    images = op.MatMul(vectors, wide)
    values = op.Sqrt(op.ReduceSumSquare(images, op.ints(2), keepdims=1))
    nothing = op.Equal(values, op.number(0.0))
    others = op.Div(images, op.Where(nothing, op.number(1.0), values))
    left, right = (others, vectors) if tall else (vectors, others)
    if tall:
        values = op.Add(values, values)
    u, vh = matrices.answer(_transposed(op, left), scaled=False), matrices.answer(right, scaled=False)
    return u, matrices.answer(values, scaled=True, axes=1), vh


def _inverse(writer: Writer, A: ir.Value, check_errors: bool = False) -> Any:
    matrices = _Matrices(writer, A)
    op, a = matrices.wide, matrices.safe.x
    magnitude = op.Abs(a)
    largest = [
        op.ReduceMax(op.ReduceSum(magnitude, op.ints(axis), keepdims=1), op.ints(1, 2), keepdims=1) for axis in (1, 2)
    ]
    product = op.Mul(*largest)
    start = op.Div(_transposed(op, a), op.Where(op.Equal(product, op.number(0.0)), op.number(1.0), product))
    twice = op.Mul(op.number(2.0), eye_node(op, a))

    def step(inner: Body, _: ir.Value, state: State) -> Step:
        (x,) = state
        return inner.constant(np.array(True)), [inner.MatMul(x, inner.Sub(twice, inner.MatMul(a, x)))], []

    count = op.constant(np.array(NEWTON_STEPS))
    (x,), _ = loop(op, count, [start], [ir.DataType.DOUBLE], step)
    return matrices.answer(op.Div(x, matrices.safe.scale), scaled=False), matrices.no_trouble()


def _cholesky(writer: Writer, self: ir.Value, upper: bool = False, check_errors: bool = False) -> Any:
    matrices = _Matrices(writer, self)
    op, a = matrices.wide, matrices.safe.x
    lower = op.Trilu(_transposed(op, a) if upper else a, upper=0)
    symmetric = op.Add(lower, _transposed(op, op.Trilu(lower, op.constant(np.array(-1)), upper=0)))
    size = op.Shape(a, start=1, end=2)
    ramp = op.Range(op.constant(np.array(0)), op.Squeeze(size), op.constant(np.array(1)))

    def step(inner: Body, number: ir.Value, state: State) -> Step:
        (rest,) = state
        column = inner.Gather(rest, number, axis=2)
        root = inner.Sqrt(inner.Gather(column, inner.Unsqueeze(number, inner.ints(0)), axis=1))
        reached = inner.GreaterOrEqual(ramp, number)
        column = inner.Where(reached, inner.Div(column, root), inner.number(0.0))
        outer = inner.Mul(inner.Unsqueeze(column, inner.ints(2)), inner.Unsqueeze(column, inner.ints(1)))
        return inner.constant(np.array(True)), [inner.Sub(rest, outer)], [column]

    _, (columns,) = loop(op, op.Squeeze(size), [symmetric], [ir.DataType.DOUBLE], step)
    factor = op.Transpose(columns, perm=[1, 0, 2] if upper else [1, 2, 0])
    return matrices.answer(op.Mul(factor, op.Sqrt(matrices.safe.scale)), scaled=False), matrices.no_trouble()


def _exponential(writer: Writer, self: ir.Value) -> Any:
    matrices = _Matrices(writer, self)
    op = matrices.wide
    a = op.Mul(matrices.safe.x, matrices.safe.scale)
    norms = op.Sqrt(op.ReduceSumSquare(a, op.ints(1, 2), keepdims=1))
    halvings = op.Ceil(op.Div(op.Log(op.Max(norms, op.number(0.5))), op.number(np.log(2.0))))
    halvings = op.Add(op.Min(op.Max(halvings, op.number(-1.0)), op.number(MOST_SQUARINGS - 1.0)), op.number(1.0))
    most = op.ReduceMax(halvings, keepdims=0)
    small = op.Div(a, op.Pow(op.number(2.0), most))
    eye = eye_node(op, a)
    y = op.Expand(eye, op.Shape(a))
    for term in range(TERMS, 0, -1):
        y = op.Add(eye, op.Div(op.MatMul(small, y), op.number(term)))

    def step(inner: Body, _: ir.Value, state: State) -> Step:
        (root,) = state
        return inner.constant(np.array(True)), [inner.MatMul(root, root)], []

    (y,), _ = loop(op, op.cast(most, ir.DataType.INT64), [y], [ir.DataType.DOUBLE], step)
    return matrices.answer(y, scaled=False)
