"""What each onnxruntime loads, lacks and gets wrong, as data; ``make test-runtimes`` measures every row anew.

No torch in here. A row that a finished graph can meet has a ``sign``; ``for_ort`` refuses such graphs, and all other
rows are avoided by the way graphs are written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from poolexport.errors import InputError

Release = tuple[int, int]

#: Newest opset and IR version that a release loads.
LOADS: dict[Release, tuple[int, int]] = {
    (1, 20): (21, 10),
    (1, 21): (22, 10),
    (1, 22): (22, 10),
    (1, 23): (23, 11),
    (1, 24): (25, 13),
    (1, 25): (26, 13),
    (1, 26): (26, 13),
    (1, 27): (26, 13),
    (1, 28): (26, 13),
    (1, 29): (26, 13),
    (1, 30): (26, 13),
    (1, 31): (26, 13),
    (1, 32): (28, 14),
}
OLDEST, NEWEST = min(LOADS), max(LOADS)


@dataclass(frozen=True)
class Trap:
    """A fault of onnxruntime on the CPU that graphs of ours would meet.

    Args:
        name: of the row, and of the graphs that show the fault.
        operators: that are computed wrongly.
        releases: affected, as ranges that include both ends.
        wrong: what happens.
        avoided: what the exporter does about it.
        test: that established the row, or that the exporter does so.
        opsets: affected, first and last.
        sign: by what a finished graph is told to meet the fault, as ``poolexport.pipeline.target`` reads it; empty
            where no graph is written so.
        advice: what a user can do about a refused graph.
    """

    name: str
    operators: tuple[str, ...]
    releases: tuple[tuple[Release, Release], ...]
    wrong: str
    avoided: str
    test: str
    opsets: tuple[int, int] = (17, 28)
    sign: str = ""
    advice: str = ""

    def concerns(self, release: Release) -> bool:
        return any(first <= release <= last for first, last in self.releases)


@dataclass(frozen=True)
class Missing:
    """Operators without a kernel for a type: ONNX's name of it, or "any"; opsets and releases are both included."""

    dtype: str
    operators: tuple[str, ...]
    opsets: tuple[int, ...]
    first: Release = OLDEST
    last: Release = NEWEST


ALL_OPSETS = tuple(range(17, 29))

MISSING = (
    Missing(
        "DOUBLE",
        (
            *("Conv", "ConvTranspose", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
            *("InstanceNormalization", "LRN", "Resize", "MaxRoiPool", "Mean", "Erf", "Asin", "Acos", "Atan", "Tan"),
            *("Sinh", "Cosh"),
        ),
        ALL_OPSETS,
    ),
    Missing("DOUBLE", ("Cos",), ALL_OPSETS, last=(1, 28)),
    Missing(
        "DOUBLE",
        ("Elu", "Selu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Softplus", "Softsign"),
        (17, *range(19, 29)),
    ),
    Missing("DOUBLE", ("PRelu", "LeakyRelu", "Mish"), tuple(range(19, 29))),
    Missing("DOUBLE", ("Gelu",), tuple(range(20, 29))),
    Missing("DOUBLE", ("GridSample",), (17, 18, 19)),
    Missing("DOUBLE", ("Celu",), tuple(range(17, 28))),
    Missing("FLOAT16", ("Celu",), tuple(range(17, 28))),
    Missing("FLOAT16", ("IsInf",), (17, 18, 19)),
    Missing("any", ("GlobalLpPool", "MaxRoiPool", "RoiAlign"), tuple(range(22, 29))),
)

TRAPS = (
    Trap(
        "overload names",
        ("functions",),
        (((1, 20), (1, 26)),),
        "the overload name of a function is ignored, and a wrong body runs",
        "bodies of one operator have names of their own",
        "tests/pipeline/test_export.py::test_every_opset_and_form_gives_the_models_answers",
    ),
    Trap(
        "AveragePool: ceil_mode, last window",
        ("AveragePool",),
        (((1, 20), (1, 20)),),
        "a last window that starts beyond the input is kept",
        "layers of ours write a constant end pad",
        "tests/pipeline/test_for_ort.py::test_what_a_runtime_gets_wrong_is_refused",
        sign="ceil_mode",
        advice="use the layer of poolexport.nn, or ceil_mode=False",
    ),
    Trap(
        "AveragePool: ceil_mode below opset 19",
        ("AveragePool",),
        (((1, 20), (1, 28)),),
        "windows over the end of the input are divided by the wrong number of cells",
        "layers of ours write a constant end pad",
        "tests/pipeline/test_for_ort.py::test_what_a_runtime_gets_wrong_is_refused",
        opsets=(17, 18),
        sign="ceil_mode",
        advice="use the layer of poolexport.nn, or ceil_mode=False",
    ),
    Trap(
        "AveragePool: ceil_mode from opset 19 on",
        ("AveragePool",),
        (((1, 20), (1, 20)), ((1, 25), (1, 28))),
        "with optimisation on, windows over the end of the input are divided by the wrong number of cells",
        "layers of ours write a constant end pad",
        "tests/pipeline/test_for_ort.py::test_what_a_runtime_gets_wrong_is_refused",
        opsets=(19, 28),
        sign="ceil_mode",
        advice="use the layer of poolexport.nn, or ceil_mode=False",
    ),
    Trap(
        "AveragePool: uneven pads",
        ("AveragePool",),
        (((1, 21), (1, 24)),),
        "windows over pads at the end only are divided by the wrong number of cells",
        "layers of ours write AveragePool only where all pads are equal",
        "tests/pipeline/test_for_ort.py::test_what_a_runtime_gets_wrong_is_refused",
        opsets=(19, 28),
        sign="uneven pads",
        advice="use the layer of poolexport.nn",
    ),
    Trap(
        "Pad then AveragePool",
        ("AveragePool",),
        (((1, 20), (1, 24)),),
        "with optimisation on, a border of zeros is made part of the pooling, which does not count its cells",
        "Pad names its axes, which keeps it apart",
        "tests/regressions/test_pad_before_pool.py",
        opsets=(17, 20),
    ),
    Trap(
        "Pad then MaxPool: opsets up to 20",
        ("MaxPool",),
        (((1, 20), (1, 31)),),
        "with optimisation on, a border of zeros is made part of the pooling, where it counts as -inf",
        "Pad names its axes, which keeps it apart",
        "tests/regressions/test_pad_before_pool.py",
        opsets=(17, 20),
    ),
    Trap(
        "Pad then MaxPool: opsets from 21 on",
        ("MaxPool",),
        (((1, 25), (1, 31)),),
        "with optimisation on, a border of zeros is made part of the pooling, where it counts as -inf",
        "Pad names its axes, which keeps it apart",
        "tests/regressions/test_pad_before_pool.py",
        opsets=(21, 28),
    ),
    Trap(
        "MaxPool: NaN",
        ("MaxPool",),
        ((OLDEST, NEWEST),),
        "a NaN is lost in most places of a window",
        "layers of ours write strided slices under Max; torch's own layers write MaxPool",
        "tests/conformance/checks.py::survives_extremes",
    ),
    Trap(
        "ReduceMax: NaN",
        ("ReduceMax",),
        ((OLDEST, NEWEST),),
        "a NaN is lost in most places of a row",
        "layers of ours carry NaN beside the maximum",
        "tests/conformance/checks.py::survives_extremes",
    ),
    Trap(
        "GlobalMaxPool: -inf",
        ("GlobalMaxPool",),
        ((OLDEST, NEWEST),),
        "a plane of -inf has the lowest finite number for its maximum",
        "layers of ours write ReduceMax",
        "tests/conformance/checks.py::survives_extremes",
    ),
    Trap(
        "MatMul: scalar factor",
        ("MatMul",),
        (((1, 26), (1, 31)),),
        "with optimisation on, a scalar beside a float64 product is folded into it in float32",
        "bodies of ours hold factors of products in vectors",
        "tests/conformance/checks.py::inlined_follows_torch",
    ),
    Trap(
        "MatMul: Transpose",
        ("MatMul",),
        (((1, 20), (1, 25)),),
        "with optimisation on, a transpose beside a float64 product becomes an operator without a kernel",
        "layers of ours stack instead of transposing",
        "tests/conformance/checks.py::inlined_follows_torch",
        sign="transposed float64 product",
        advice="export in float32",
    ),
    Trap(
        "layer norm in parts",
        ("LayerNormalization",),
        ((OLDEST, (1, 31)),),
        "with optimisation on, a spelled-out float64 layer norm becomes one that is computed in float32",
        "bodies of ours are no layer norms",
        "tests/conformance/checks.py::onnx_follows_torch",
    ),
    Trap(
        "Einsum: empty batch",
        ("Einsum",),
        (((1, 20), (1, 24)),),
        "the process ends",
        "bodies of ours have no Einsum",
        "tests/pipeline/test_for_ort.py::test_no_body_has_an_operator_that_ends_the_process",
    ),
    Trap(
        "MatMul: empty batch",
        ("MatMul",),
        ((OLDEST, (1, 31)),),
        "a product of batches of 1 and of 0 is an error",
        "bodies of ours multiply batches of one length",
        "tests/conformance/checks.py::onnx_follows_torch",
    ),
    Trap(
        "reductions: empty batch",
        ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum"),
        ((OLDEST, (1, 31)),),
        "axis -1 of an empty batch is not reduced",
        "bodies of ours count axes from the front",
        "tests/conformance/checks.py::onnx_follows_torch",
    ),
    Trap(
        "TopK: empty batch",
        ("TopK",),
        ((OLDEST, (1, 30)),),
        "the process ends with a division by 0",
        "bodies of ours add one sequence of zeros",
        "tests/conformance/checks.py::onnx_follows_torch",
    ),
    Trap(
        "Exp: -inf",
        ("Exp",),
        (((1, 20), (1, 20)),),
        "exp(-inf) in float64 is not exactly 0",
        "bodies of ours tell it by the exponent",
        "tests/conformance/checks.py::survives_extremes",
    ),
    Trap(
        "Sqrt: inf",
        ("Sqrt",),
        (((1, 20), (1, 20)),),
        "the root of infinity is NaN",
        "bodies of ours tell it by the operand",
        "tests/conformance/checks.py::survives_extremes",
    ),
    Trap(
        "long sums",
        ("GlobalAveragePool",),
        ((OLDEST, NEWEST),),
        "a float32 row is added up one cell after the other, and a mean of ordinary size loses a digit",
        "sums are made in float64",
        "tests/regressions/test_long_sums.py",
    ),
)


def release(text: str) -> Release:
    """The release that a version belongs to.

    Raises:
        InputError: the text is no version, or one that nothing is known about.

    >>> release("1.22.1")
    (1, 22)
    """
    found = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", text) if isinstance(text, str) else None
    if found is None:
        raise InputError(f"for_ort must be a version of onnxruntime, as in '1.22', got {text!r}")
    version = int(found[1]), int(found[2])
    if version not in LOADS:
        known = f"{spell(OLDEST)} to {spell(NEWEST)}"
        raise InputError(f"onnxruntime {text} was never tried; what is known is about {known}")
    return version


def spell(version: Release) -> str:
    return f"{version[0]}.{version[1]}"


def missing(version: Release, opset: int, operator: str, dtype: str) -> bool:
    """Whether a release has no kernel for an operator in a type."""
    return any(
        operator in row.operators and row.dtype in (dtype, "any") and opset in row.opsets
        for row in MISSING
        if row.first <= version <= row.last
    )
