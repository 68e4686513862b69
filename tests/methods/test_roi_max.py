"""RoI pooling takes the cells that the definition's float32 products say, in the layer and in a file, on any box."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from conformance.lab import specimen as first_case
from ops.test_operators import run_onnx
from poolexport.methods.roi_max import METHOD
from poolexport.nn import RoIMaxPool2d
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport.runtime import session

SCALES = (1.0, 1 / 2, 1 / 4, 1 / 16, 1 / 3, 1 / 10)
BINS = range(1, 9)
CHANNELS = 8


class Everything(nn.Module):
    """Every number of bins at every scale; each scale has boxes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([RoIMaxPool2d(bins, scale) for scale in SCALES for bins in BINS])

    def forward(self, x: Tensor, *rois: Tensor) -> list[Tensor]:
        return [layer(x, rois[i // len(BINS)]) for i, layer in enumerate(self.layers)]


def random_boxes(rng: np.random.Generator, count: int, maps: int, lengths: tuple[int, int], scale: float) -> np.ndarray:
    """Boxes of all kinds in equal parts: inside, reaching outside, reversed, on halves of cells, and points."""
    kinds = []
    for kind in range(5):
        ends = [rng.uniform(0, n, (count // 5, 2)) for n in lengths[::-1]]
        if kind != 2:
            ends = [np.sort(pair, axis=1) for pair in ends]
        if kind == 1:
            ends = [pair + rng.uniform(-1.2, 1.2, (count // 5, 1)) * n for pair, n in zip(ends, lengths[::-1])]
        if kind == 3:
            ends = [np.floor(pair) + 0.5 for pair in ends]
        if kind == 4:
            ends = [pair[:, [0, 0]] for pair in ends]
        (x1, x2), (y1, y2) = (pair.T for pair in ends)
        kinds.append(np.stack([x1, y1, x2, y2], axis=1) / scale)
    boxes = np.concatenate(kinds)
    return np.concatenate([rng.integers(0, maps, (len(boxes), 1)), boxes], axis=1).astype(np.float32)


def truth(x: np.ndarray, rois: np.ndarray, bins: int, scale: float) -> np.ndarray:
    """The definition, line by line, with every product in float32."""
    height, width = x.shape[2:]
    y = np.zeros((len(rois), x.shape[1], bins, bins), x.dtype)
    for r, roi in enumerate(rois):
        rows = edges(roi[2], roi[4], bins, scale, height)
        columns = edges(roi[1], roi[3], bins, scale, width)
        for i, (top, bottom) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                if top < bottom and left < right:
                    y[r, :, i, j] = x[int(roi[0]), :, top:bottom, left:right].max((1, 2))
    return y


def edges(low: np.float32, high: np.float32, bins: int, scale: float, length: int) -> list[tuple[int, int]]:
    start, end = (away(np.float32(value) * np.float32(scale)) for value in (low, high))
    size = np.float32(max(end - start + 1, 1)) / np.float32(bins)
    whole = [(math.floor(np.float32(i) * size), math.ceil(np.float32(i + 1) * size)) for i in range(bins)]
    return [(min(max(a + start, 0), length), min(max(b + start, 0), length)) for a, b in whole]


def away(value: np.float32) -> int:
    assert isinstance(value, np.float32)
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value))


def file_of(model: nn.Module, examples: tuple[Tensor, ...]):
    names = [f"x{i}" for i in range(len(examples))]
    axes = [{0: "N", 2: "H", 3: "W"}, *({0: f"R{i}"} for i in range(1, len(examples)))]
    prepared = prepare(model, examples, dynamic_shapes=axes, input_names=names)
    return session(ir.to_proto(optimise(lower(export(prepared)))).SerializeToString(), threads=1)


def test_no_output_of_a_layer_or_a_file_differs():
    """Over 500,000 of each, bit by bit."""
    rng = np.random.default_rng(0)
    model, file, tried = Everything().eval(), None, 0
    for lengths in ((13, 17), (31, 9), (2, 40)):
        x = rng.standard_normal((2, CHANNELS, *lengths)).astype(np.float32)
        boxes = [random_boxes(rng, 20, 2, lengths, scale) for scale in SCALES]
        tensors = (torch.from_numpy(x), *map(torch.from_numpy, boxes))
        file = file or file_of(model, tensors)
        answers = file.run(None, {f"x{i}": t.numpy() for i, t in enumerate(tensors)})
        with torch.no_grad():
            layers = [y.numpy() for y in model(*tensors)]
        for number, (layer, answer) in enumerate(zip(layers, answers, strict=True)):
            scale, bins = SCALES[number // len(BINS)], BINS[number % len(BINS)]
            expected = truth(x, boxes[number // len(BINS)], bins, scale)
            assert np.count_nonzero(layer != expected) == 0, f"{bins} bins, scale {scale}, {lengths}"
            assert np.count_nonzero(answer != expected) == 0, f"{bins} bins, scale {scale}, {lengths}"
            tried += expected.size
    assert tried > 500_000


def both(rois: list[list[float]], bins: int, scale: float = 1.0, dtype=np.float32, length: int = 240) -> np.ndarray:
    """What the layer answers on a ramp along a single row, after the graph was found to say the same."""
    x = torch.arange(float(length)).reshape(1, 1, 1, -1)
    boxes = torch.from_numpy(np.array(rois, dtype))
    answer = RoIMaxPool2d((1, bins), scale)(x, boxes).numpy()
    [other] = run_onnx("RoiMaxPool", {"output_size": [1, bins], "spatial_scale": repr(scale)}, x, boxes)
    np.testing.assert_array_equal(answer, other)
    return answer[:, 0, 0]


def test_a_last_bin_may_reach_a_cell_beyond_its_box():
    """7 (length / 7) is a little more than the length in float32, but not in float64."""
    lengths = (57, 114, 121, 228)
    boxes = [[0, 0, 0, n - 1, 0] for n in lengths]
    assert both(boxes, 7)[:, -1].tolist() == list(lengths)
    assert both(boxes, 7, dtype=np.float64)[:, -1].tolist() == [n - 1 for n in lengths]
    assert both([[0, 0, 0, 28, 0]], 11)[0, -1] == 29


def test_halves_go_away_from_zero_and_what_is_below_a_half_does_not():
    ends = [2.5, 1.5, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 3.4999998]
    assert both([[0, 0, 0, end, 0] for end in ends], 1)[:, 0].tolist() == [3, 2, 1, 0, 3]
    # A start at -2.5 is at -3: two of its five cells, and not one of four, are on the map.
    assert both([[0, -2.5, 0, 1, 0]], 5)[0].tolist() == [0, 0, 0, 0, 1]
    assert both([[0, 5.5, 0, 9, 0]], 4, scale=1.0)[0].tolist() == [6, 7, 8, 9]


def test_the_scaled_end_is_rounded_in_the_type_of_the_boxes():
    ends = np.arange(5, 2400, 10, dtype=np.float32)
    single = [away(end * np.float32(0.1)) for end in ends]
    answer = both([[0, 0, 0, float(end), 0] for end in ends], 1, 0.1, length=300)
    assert answer[:, 0].tolist() == single
    double = both([[0, 0, 0, float(end), 0] for end in ends], 1, 0.1, dtype=np.float64, length=300)
    assert double[:, 0].tolist() == [math.floor(float(end) * 0.1 + 0.5) for end in ends]


def test_no_box_gives_an_empty_answer():
    specimen = first_case(METHOD, METHOD.cases[0], "float32")
    for batch in (0, 2):
        x, rois = np.ones((batch, 3, 7, 9), np.float32), np.zeros((0, 5), np.float32)
        [answer] = specimen.session("function").run(None, {"x0": x, "x1": rois})
        layer = specimen.layer(torch.from_numpy(x), torch.from_numpy(rois))
        assert answer.shape == layer.shape == (0, 3, 3, 3)
    assert RoIMaxPool2d(3)(torch.ones(0, 3, 7, 9), []).shape == (0, 3, 3, 3)


def test_boxes_of_every_map_may_come_in_a_list():
    x = torch.randn(2, 3, 8, 9)
    lists = [torch.tensor([[0.0, 1.0, 5.0, 6.0]]), torch.tensor([[2.0, 2.0, 3.0, 7.0], [0.0, 0.0, 8.0, 8.0]])]
    numbered = torch.tensor([[0.0, 0, 1, 5, 6], [1, 2, 2, 3, 7], [1, 0, 0, 8, 8]])
    assert torch.equal(RoIMaxPool2d(2)(x, lists), RoIMaxPool2d(2)(x, numbered))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_worked_out_in_float32(dtype):
    """In float16 the box's end at 2049 would be at 2048."""
    x = torch.arange(3000.0).reshape(1, 1, 1, -1) % 7
    rois = torch.tensor([[0.0, 0, 0, 2049, 0]])
    answer = RoIMaxPool2d((1, 1000))(x.to(dtype), rois)
    assert torch.equal(answer, RoIMaxPool2d((1, 1000))(x, rois).to(dtype))
    assert torch.equal(RoIMaxPool2d(3, 1 / 16)(x, rois.to(dtype)), RoIMaxPool2d(3, 1 / 16)(x, rois.to(dtype).float()))


def test_nan_spoils_its_bins_and_infinities_are_kept():
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 0, 1], x[0, 0, 2:, :2], x[0, 0, 3, 3] = np.nan, -np.inf, np.inf
    rois = np.array([[0, 0, 0, 3, 3], [0, 2, 0, 3, 1]], np.float32)
    expected = [[[[np.nan, 0], [-np.inf, np.inf]]], [[[0, 0], [0, 0]]]]
    np.testing.assert_array_equal(RoIMaxPool2d(2)(torch.from_numpy(x), torch.from_numpy(rois)).numpy(), expected)
    call = {"output_size": [2, 2], "spatial_scale": "1.0"}
    [answer] = run_onnx("RoiMaxPool", call, torch.from_numpy(x), torch.from_numpy(rois))
    np.testing.assert_array_equal(answer, expected)


def test_the_gradient_goes_to_the_first_of_equal_cells():
    x = torch.zeros(1, 1, 3, 3, requires_grad=True)
    RoIMaxPool2d(1)(x, torch.tensor([[0.0, 0, 1, 2, 2], [0.0, 1, 0, 2, 2], [0, 7, 7, 9, 9]])).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("rois", "message"),
    [
        (torch.tensor([[2.0, 0, 0, 1, 1]]), "box 0 is on map 2, but there are 2 maps"),
        (torch.tensor([[0.0, 0, 0, 1, 1], [-1, 0, 0, 1, 1]]), "box 1 is on map -1"),
        (torch.tensor([[math.nan, 0, 0, 1, 1]]), "box 0 is on map nan"),
        (torch.tensor([[0.0, 0, math.nan, 1, 1]]), "box 0 is not finite"),
        (torch.tensor([[0.0, 0, 0, 1e12, 1]]), "too far away"),
        (torch.tensor([[0, 0, 0, 1, 1]]), "floating numbers"),
        (torch.zeros(3, 4), "must be (R, 5)"),
        ([torch.zeros(1, 4)], "for each of the 2 maps"),
        ([torch.zeros(1, 4), torch.zeros(1, 5)], "must hold (L, 4)"),
    ],
)
def test_boxes_that_are_none_are_refused(rois, message):
    with pytest.raises(ValueError) as caught:
        RoIMaxPool2d(2)(torch.zeros(2, 3, 5, 5), rois)
    assert message in str(caught.value)


def test_a_file_refuses_a_map_beyond_the_batch_and_takes_the_last_for_minus_one():
    specimen = first_case(METHOD, METHOD.cases[0], "float32")
    x, file = specimen.draw("normal"), specimen.session("function")
    box = [0.0, 0.0, 12.0, 12.0]
    with pytest.raises(Exception, match="out of data bounds"):
        file.run(None, {"x0": x, "x1": np.array([[2.0, *box]], np.float32)})
    last, minus = (file.run(None, {"x0": x, "x1": np.array([[n, *box]], np.float32)})[0] for n in (1.0, -1.0))
    np.testing.assert_array_equal(last, minus)
