"""Every operator: its ONNX form computes its torch form, whatever the window, dtype and rank."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from ops.samples import PATTERNS, SAMPLES, samples
from opsets import opsets
from poolexport import stress
from poolexport.runtime import session
from poolexport.tolerance import judge
from poolexport_ops import DOMAIN, Window, operators

NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}
SIZES = {1: (9,), 2: (7, 8), 3: (4, 5, 6)}


def run_onnx(
    name: str, attributes: dict[str, Any], *tensors: torch.Tensor, opset: int = 20, kernels: bool = False
) -> list[np.ndarray]:
    """What onnxruntime answers for a graph of one operator."""
    kinds = tuple((t.dtype, t.dim()) for t in tensors)
    opened = opened_once(pickle.dumps((name, attributes)), kinds, opset, kernels)
    return opened.run(None, {f"x{i}": t.numpy() for i, t in enumerate(tensors)})


@lru_cache(maxsize=64)
def opened_once(
    call: bytes, kinds: tuple[tuple[torch.dtype, int], ...], opset: int, kernels: bool
) -> onnxruntime.InferenceSession:
    """A session for many inputs: writing and opening a graph takes far longer than running it."""
    return session(written_once(call, kinds, opset), threads=1, kernels=kernels)


@lru_cache(maxsize=1)
def written_once(call: bytes, kinds: tuple[tuple[torch.dtype, int], ...], opset: int) -> bytes:
    name, attributes = pickle.loads(call)
    return one_operator(
        name, attributes, *(torch.empty((1,) * rank, dtype=dtype) for dtype, rank in kinds), opset=opset
    )


def one_operator(name: str, attributes: dict[str, Any], *tensors: torch.Tensor, opset: int = 20) -> bytes:
    """A model of one operator that takes such tensors, of any lengths."""
    operator = operators()[name]
    inputs = [
        ir.Value(
            name=f"x{i}",
            type=ir.TensorType(ir.DataType.from_numpy(t.numpy().dtype)),
            shape=ir.Shape([None] * t.dim()),
        )
        for i, t in enumerate(tensors)
    ]
    node = ir.Node(
        DOMAIN,
        name,
        inputs,
        [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()],
        num_outputs=len(operator.outputs),
    )
    for i, (output, dtype) in enumerate(zip(node.outputs, operator.outputs)):
        output.name = f"y{i}"
        output.type = inputs[0].type if dtype is None else ir.TensorType(ir.DataType.INT64)
    function = operator.function(inputs, node.attributes, opset=opset)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": opset, DOMAIN: 1}, name="one")
    model = ir.Model(graph, ir_version=10, functions=[function])
    return ir.to_proto(model).SerializeToString()


def compare(name: str, attributes: dict[str, Any], *tensors: torch.Tensor, opset: int = 20) -> None:
    """The ONNX form and the native kernel are as close to the float64 answer as the torch form is."""
    forms = {
        form: run_onnx(name, attributes, *tensors, opset=opset, kernels=kernels)
        for form, kernels in (("function", False), ("kernel", True))
    }
    require_right(forms, name, attributes, *tensors)


def require_right(
    forms: dict[str, list[np.ndarray]], name: str, attributes: dict[str, Any], *tensors: torch.Tensor
) -> None:
    """What every form answers is as close to the float64 answer as the torch form is."""
    operator = operators()[name]
    peers = as_tuple(operator(*tensors, **attributes))
    truths = as_tuple(operator(*(t.double() for t in tensors), **attributes))
    for form, results in forms.items():
        for result, peer, truth in zip(results, peers, truths, strict=True):
            judgement = judge(result, peer.numpy(), truth.numpy(), factor=2.0)
            assert judgement.passed, f"{form} {name} {attributes} {tensors[0].dtype}: {judgement.reason}"


def as_tuple(answer: Any) -> tuple[torch.Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def windows(rank: int, *, padding: bool = True) -> Iterator[Window]:
    """Windows of many kinds, ceil mode and asymmetric kernels among them."""
    kernels = (1, 2, 3, (3, 2, 2)[:rank])
    for k, s, p, d, ceil in itertools.product(kernels, (1, 2, 3), (0, 1), (1, 2), (False, True)):
        if padding or p == 0:
            try:
                yield Window.from_torch(rank, k, s, p, d, ceil)
            except ValueError:
                continue


def inputs(rank: int, dtype: torch.dtype, pattern: str) -> torch.Tensor:
    return torch.from_numpy(stress.draw(pattern, (2, 3, *SIZES[rank]), NUMPY[dtype]))


def fits(window: Window) -> bool:
    try:
        window.require_fit(SIZES[window.rank])
    except ValueError:
        return False
    return True


def cases(rank: int) -> Iterator[Window]:
    found = [window for window in windows(rank) if fits(window)]
    assert len(found) > 30
    yield from found if rank == 2 else found[:: 4 if rank == 1 else 7]


#: Operators with a test of their own below, on more windows.
TRIED_ABOVE = {
    "AveragePool",
    "GlobalAveragePool",
    "MaxPool",
    "MaxPoolWithIndices",
    "PowerAveragePool",
    "SoftmaxPool",
    "WeightedAveragePool",
}
DTYPES = pytest.mark.parametrize("dtype", NUMPY, ids=lambda dtype: str(dtype)[6:])
RANKS = pytest.mark.parametrize("rank", SIZES)


@RANKS
@DTYPES
def test_max_pool(rank, dtype):
    for window, pattern in zip(cases(rank), itertools.cycle(("normal", "ties", "nan", "-inf"))):
        x = inputs(rank, dtype, pattern)
        compare("MaxPool", window.onnx(), x)
        compare("MaxPoolWithIndices", window.onnx(), x)


@pytest.mark.parametrize("pattern", ["normal", "ties", "nan", "-inf"])
def test_max_pool_indices_are_torchs(pattern):
    x = inputs(2, torch.float32, pattern)
    for k, s, p, d, ceil in itertools.product((2, 3, (3, 2)), (1, 2, 3), (0, 1), (1, 2), (False, True)):
        attributes = Window.from_torch(2, k, s, p, d, ceil).onnx()
        values, indices = operators()["MaxPoolWithIndices"](x, **attributes)
        expected, expected_indices = F.max_pool2d(x, k, s, p, d, ceil, return_indices=True)
        assert torch.equal(values.nan_to_num(9.0), expected.nan_to_num(9.0))
        assert torch.equal(indices, expected_indices), attributes


@RANKS
@DTYPES
def test_average_pool(rank, dtype):
    ways = itertools.product(("normal", "nan", "-inf"), (0, 0, 3))
    for window, (pattern, divisor) in zip(cases(rank), itertools.cycle(ways)):
        x = inputs(rank, dtype, pattern)
        for counted in (window.begin * 2, (0,) * 2 * rank):
            compare("AveragePool", {**window.onnx(), "counted_pads": list(counted), "divisor_override": divisor}, x)


@RANKS
@DTYPES
@pytest.mark.parametrize("counted", [0, 1, 2])
def test_average_pool_of_windows_that_lie_on_pads_alone(rank, dtype, counted):
    window = Window((2,) * rank, (1,) * rank, (2,) * 2 * rank, (1,) * rank)
    attributes = {**window.onnx(), "counted_pads": [counted] * 2 * rank, "divisor_override": 0}
    compare("AveragePool", attributes, inputs(rank, dtype, "normal"))


@pytest.mark.parametrize("include", [True, False])
def test_average_pool_divides_as_torch_does(include):
    x = inputs(2, torch.float64, "normal")
    for k, s, p, ceil, divisor in itertools.product((2, 3, (3, 2)), (1, 2, 3), (0, 1), (False, True), (None, 1, 5)):
        window = Window.from_torch(2, k, s, p, 1, ceil)
        counted = list(window.begin * 2 if include else (0,) * 4)
        answer = operators()["AveragePool"](x, **window.onnx(), counted_pads=counted, divisor_override=divisor or 0)
        torch.testing.assert_close(answer, F.avg_pool2d(x, k, s, p, ceil, include, divisor))


@DTYPES
@pytest.mark.parametrize("shape", [(2, 3, 40_000), (1, 2, 256, 300), (1, 2, 17, 19, 23)])
def test_global_average_pool_keeps_its_digits_on_large_planes(dtype, shape):
    x = (torch.randn(shape) + (1000 if dtype != torch.float16 else 10)).to(dtype)
    for keepdims in (0, 1):
        compare("GlobalAveragePool", {"axes": list(range(2, len(shape))), "keepdims": keepdims}, x)


@RANKS
@DTYPES
def test_softmax_pool(rank, dtype):
    for window, pattern in zip(cases(rank), itertools.cycle(("normal", "cliff", "large", "nan", "-inf"))):
        x = inputs(rank, dtype, pattern)
        compare("SoftmaxPool", window.onnx(), x, x)
        compare("SoftmaxPool", window.onnx(), inputs(rank, dtype, "normal"), x[:, :1])


@RANKS
@DTYPES
def test_weighted_average_pool(rank, dtype):
    for window, pattern in zip(cases(rank), itertools.cycle(("sparse", "huge", "tiny", "zeros", "nan"))):
        x = inputs(rank, dtype, pattern)
        compare("WeightedAveragePool", window.onnx(), x, x.relu())


@pytest.mark.parametrize("shape", [(1, 2, 40, 112), (1, 1, 5, 2100)])
@pytest.mark.parametrize("spread", [30.0, 60.0, 90.0, 350.0, 800.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_pool_is_right_whatever_the_logits_and_cells_span(dtype, spread, shape):
    """Kernels share exponentials among windows as long as neither they nor their products leave the range."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.uniform(-spread, spread, shape)).to(dtype)
    cells = torch.from_numpy(rng.standard_normal(shape))
    window = Window.from_torch(2, 3, 2, 1).onnx()
    compare("SoftmaxPool", window, logits, logits)
    for magnitude in (1.0, 1e-25, 1e36):
        compare("SoftmaxPool", window, (cells * magnitude).to(dtype), logits)


@RANKS
@DTYPES
@pytest.mark.parametrize("order", [1, 2, 3, 0.5, 1 / 3, 1.5, -1, -2.5, 5, 16, math.inf, -math.inf])
def test_power_average_pool(rank, dtype, order):
    p = repr(float(order))
    patterns = itertools.cycle(("normal", "huge", "tiny", "zeros", "nan"))
    for window, pattern in itertools.islice(zip(cases(rank), patterns), 0, None, 3):
        x = inputs(rank, dtype, pattern)
        compare("PowerAveragePool", {**window.onnx(), "p": p, "signed": False}, x)
        # Positive input: a signed sum that cancels has no accurate answer.
        compare("PowerAveragePool", {**window.onnx(), "p": p, "signed": True}, x.abs())


@RANKS
@DTYPES
@pytest.mark.parametrize("name", sorted(set(SAMPLES) - TRIED_ABOVE))
def test_forms_agree(name, rank, dtype):
    for count, (window, pattern) in enumerate(zip(cases(rank), itertools.cycle(PATTERNS))):
        if count % 5 == 0:
            for attributes, tensors in samples(name, window, inputs(rank, dtype, pattern)):
                compare(name, attributes, *tensors)


@DTYPES
@pytest.mark.parametrize("length", [3, 10, 49])
def test_equal_numbers_have_no_variance(length, dtype):
    x = torch.tensor([0.7, -1e4, 0.1], dtype=dtype)[None, :, None].repeat(1, 1, length)
    attributes = {"centered": 1, "divisor": "count"}
    for kernels in (False, True):
        assert not run_onnx("SecondMoment", attributes, x, kernels=kernels)[0].any()


def test_logarithm_without_an_epsilon_is_guarded_by_the_precision():
    guard = 2.0**-23 * 24
    expected = np.log((24 + guard) / guard) / 3 + np.log(guard) * np.eye(3)
    # The body has two digits here: it computes in float32, and the guard is as small as the rounding of the trace.
    for kernels, rtol in ((False, 2e-2), (True, 1e-6)):
        answer = run_onnx("MatrixLog", {}, torch.full((1, 3, 3), 8.0), torch.zeros(1), kernels=kernels)[0]
        np.testing.assert_allclose(answer[0], expected, rtol=rtol)


def test_the_first_of_nearly_equal_entries_has_the_sign():
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (20, 7, 1), generator=generator) * 2.0 - 1
    x = signs * torch.randn(20, 1, 9, generator=generator)
    for kernels in (False, True):
        answer = run_onnx("SubspaceBasis", {"k": 1}, x, kernels=kernels)[0]
        np.testing.assert_allclose(answer, signs * signs[:, :1] / 7**0.5, rtol=1e-6)


@pytest.mark.parametrize("pattern", ["huge", "tiny"])
def test_similarities_of_extreme_values(pattern):
    window = Window.from_torch(2, 3, 2, 1, ceil_mode=True)
    for attributes, tensors in samples("MeanSimilarityPool", window, inputs(2, torch.float32, pattern)):
        compare("MeanSimilarityPool", attributes, *tensors)


def test_every_operator_is_tried():
    assert set(SAMPLES) == set(operators())


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_empty_batch_gives_an_empty_answer(name):
    window = Window.from_torch(2, 3, 2, 1, ceil_mode=True)
    for attributes, tensors in samples(name, window, inputs(2, torch.float32, "normal")):
        x, *others = tensors
        expected = as_tuple(operators()[name](*tensors, **attributes))
        empty = [t[:0] if t.shape[:1] == x.shape[:1] and t.dim() > 1 else t for t in others]
        for answer, whole in zip(run_onnx(name, attributes, x[:0], *empty), expected, strict=True):
            assert answer.shape == (0, *whole.shape[1:])


@pytest.mark.parametrize("opset", opsets(*range(18, 24)))
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_bodies_are_valid_in_every_opset(name, opset):
    window = Window.from_torch(2, 3, 2, 1, ceil_mode=True)
    for attributes, tensors in samples(name, window, inputs(2, torch.float32, "normal")):
        compare(name, attributes, *tensors, opset=opset)
