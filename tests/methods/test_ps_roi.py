"""Position-sensitive RoI pooling: its channels, and the bins of both of its rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from conformance.lab import specimen
from ops.test_operators import run_onnx
from poolexport.methods.ps_roi import METHOD
from poolexport.nn import PSRoIPool2d


def graph(x: torch.Tensor, rois: torch.Tensor, layer: PSRoIPool2d) -> np.ndarray:
    return run_onnx("PositionSensitiveRoiPool", {**layer.options(), "rule": layer.rule}, x, rois)[0]


def edges(low: float, high: float, bins: int, scale: float, length: int, rule: str) -> list[tuple[int, int]]:
    """The definitions, line by line, with every product in float32."""
    one = np.float32
    low, high, scale = one(low), one(high), one(scale)
    cut = []
    for i in range(bins):
        if rule == "torchvision":
            start, end = away(low * scale), away(high * scale)
            size = one(max(end - start, 1)) / one(bins)
            first, after = math.floor(one(i) * size) + start, math.ceil(one(i + 1) * size) + start
            limit = length - 1
        else:
            begin, end = one(away(low)) * scale, (one(away(high)) + one(1)) * scale
            size = max(end - begin, one(0.1)) / one(bins)
            first, after = math.floor(one(i) * size + begin), math.ceil(one(i + 1) * size + begin)
            limit = length
        cut.append((min(max(first, 0), limit), min(max(after, 0), limit)))
    return cut


def away(value: np.float32) -> int:
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value))


@pytest.mark.parametrize("rule", ["torchvision", "r-fcn"])
def test_random_boxes_of_every_kind_agree(rule):
    rng = np.random.default_rng(0)
    for bins in (1, 2, 3, 7):
        x = rng.standard_normal((2, 2 * bins * bins, 11, 8)).astype(np.float32)
        for scale in (1.0, 0.5, 1 / 16, 1 / 3, 0.1):
            ends = rng.uniform(-4, 15, (20, 4)) / scale
            ends[::2] = np.floor(ends[::2]) + 0.5
            rois = np.concatenate([rng.integers(0, 2, (20, 1)), ends], axis=1).astype(np.float32)
            expected = np.zeros((20, 2, bins, bins))
            for r, (number, x1, y1, x2, y2) in enumerate(rois):
                planes = x[int(number)].reshape(2, bins, bins, 11, 8).astype(np.float64)
                for i, (top, bottom) in enumerate(edges(y1, y2, bins, scale, 11, rule)):
                    for j, (left, right) in enumerate(edges(x1, x2, bins, scale, 8, rule)):
                        if top < bottom and left < right:
                            expected[r, :, i, j] = planes[:, i, j, top:bottom, left:right].mean((1, 2))
            layer, tensors = PSRoIPool2d(bins, scale, rule), (torch.from_numpy(x), torch.from_numpy(rois))
            np.testing.assert_allclose(layer(*tensors).numpy(), expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(graph(*tensors, layer), expected, rtol=1e-6, atol=1e-7)


def test_every_bin_of_every_class_has_a_channel_of_its_own():
    x = torch.arange(12.0).reshape(1, 12, 1, 1).expand(1, 12, 5, 5).contiguous()
    for rule in ("torchvision", "r-fcn"):
        answer = PSRoIPool2d((2, 3), rule=rule)(x, torch.tensor([[0.0, 0, 0, 3, 3]]))
        assert answer.flatten().tolist() == list(range(12))


def test_the_rules_disagree_on_ends_and_on_the_last_row():
    x = torch.arange(6.0).reshape(1, 1, 1, 6).expand(1, 1, 6, 6).contiguous()
    rois = torch.tensor([[0.0, 1, 0, 3, 2], [0, 4, 0, 9, 5], [0, 5, 0, 5, 1], [0, 4.5, 0, 4.5, 1]])
    # torchvision: cells 1 and 2; 4, not 5; none; none.
    # R-FCN: cells 1 to 3; 4 and 5; 5; 5.
    for rule, expected in {"torchvision": [1.5, 4, 0, 0], "r-fcn": [2, 4.5, 5, 5]}.items():
        layer = PSRoIPool2d(1, rule=rule)
        assert layer(x, rois).flatten().tolist() == expected
        assert graph(x, rois, layer).ravel().tolist() == expected


def test_r_fcn_rounds_before_it_scales():
    """From 7.5 at 1/16: rounded first it is 8 / 16, scaled first 0.47, of which nothing is left."""
    x = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4).contiguous()
    rois = torch.tensor([[0.0, 23.5, 0, 31.5, 16]])
    # R-FCN: 24 / 16 = 1.5 to 33 / 16 = 2.06, cells 1 and 2; torchvision: 1 to 2, cell 1.
    assert PSRoIPool2d(1, 1 / 16, "r-fcn")(x, rois).item() == 1.5
    assert PSRoIPool2d(1, 1 / 16)(x, rois).item() == 1


def test_what_is_outside_of_a_bin_does_not_spoil_it():
    x = torch.ones(1, 1, 4, 4)
    x[0, 0, 0, 3], x[0, 0, 1, 2] = math.nan, math.inf
    rois = torch.tensor([[0.0, 0, 0, 2, 2], [0, 1, 1, 3, 3], [0, 2, 0, 3, 1]])
    layer = PSRoIPool2d(1, rule="r-fcn")
    expected = [math.inf, math.inf, math.nan]
    np.testing.assert_array_equal(layer(x, rois).flatten().numpy(), expected)
    np.testing.assert_array_equal(graph(x, rois, layer).ravel(), expected)
    assert layer(x, torch.tensor([[0.0, 0, 0, 1, 3]])).item() == 1


def test_no_box_gives_an_empty_answer():
    first = specimen(METHOD, METHOD.cases[0], "float32")
    for batch in (0, 2):
        x, rois = np.ones((batch, 4, 6, 7), np.float32), np.zeros((0, 5), np.float32)
        [answer] = first.session("function").run(None, {"x0": x, "x1": rois})
        assert answer.shape == first.layer(torch.from_numpy(x), torch.from_numpy(rois)).shape == (0, 1, 2, 2)


def test_boxes_on_no_map_are_refused():
    x, rois = torch.zeros(2, 4, 6, 7), torch.tensor([[2.0, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match="box 0 is on map 2, but there are 2 maps"):
        PSRoIPool2d(2)(x, rois)
    first = specimen(METHOD, METHOD.cases[0], "float32")
    with pytest.raises(Exception, match="out of data bounds"):
        first.session("function").run(None, {"x0": x.numpy(), "x1": rois.numpy()})
