"""RoIAlign samples where its definition says, and interpolates there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conformance.lab import specimen
from ops.test_operators import run_onnx
from poolexport.methods.roi_align import METHOD, reference
from poolexport.nn import RoIAlign2d


def graph(x: torch.Tensor, rois: torch.Tensor, layer: RoIAlign2d) -> np.ndarray:
    call = {**layer.options(), "sampling_ratio": max(0, layer.sampling_ratio), "aligned": int(layer.aligned)}
    return run_onnx("RoiAlignPool", call, x, rois)[0]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [-1, 1, 3])
def test_random_boxes_inside_are_a_grid_sample(ratio, aligned):
    """Another interpolation, at positions in float64: only boxes whose samples are well inside."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((2, 4, 13, 17)))
    for bins in ((1, 1), (3, 2), (7, 7)):
        rois, expected = [], []
        for number in range(12):
            (x1, x2), (y1, y2) = (np.sort(rng.uniform(4, 4 * (n - 2), 2)) for n in (17, 13))
            axes = []
            for low, high, count in ((y1, y2, bins[0]), (x1, x2, bins[1])):
                start, length = low / 4 - 0.5 * aligned, (high - low) / 4
                length = length if aligned else max(length, 1.0)
                samples = ratio if ratio > 0 else math.ceil(length / count)
                axes.append(start + length * (np.arange(count * samples) + 0.5) / (count * samples))
            if axes[0][-1] > 12 or axes[1][-1] > 16:
                continue
            rows, columns = np.meshgrid(axes[0] / 6 - 1, axes[1] / 8 - 1, indexing="ij")
            points = torch.from_numpy(np.stack([columns, rows], axis=-1)).unsqueeze(0)
            samples = F.grid_sample(x[number % 2 : number % 2 + 1], points, align_corners=True)
            rois.append([number % 2, x1, y1, x2, y2])
            expected.append(F.avg_pool2d(samples, (len(axes[0]) // bins[0], len(axes[1]) // bins[1])))
        assert len(rois) > 6
        layer, boxes = RoIAlign2d(bins, 0.25, ratio, aligned), torch.tensor(rois, dtype=torch.float64)
        torch.testing.assert_close(layer(x, boxes), torch.cat(expected), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(graph(x, boxes, layer), torch.cat(expected).numpy(), rtol=1e-10, atol=1e-10)


def test_boxes_of_every_kind_follow_the_reference():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2, 6, 7)).astype(np.float32)
    rois = np.concatenate([rng.integers(0, 2, (40, 1)), rng.uniform(-8, 20, (40, 4))], axis=1).astype(np.float32)
    tensors = torch.from_numpy(x), torch.from_numpy(rois)
    for scale in (1 / 3, 0.5):
        for ratio, aligned in ((-1, False), (-1, True), (2, False), (1, True)):
            layer = RoIAlign2d((2, 3), scale, ratio, aligned)
            expected = reference(x, rois, (2, 3), scale, ratio, aligned)
            np.testing.assert_allclose(layer(*tensors).numpy(), expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(graph(*tensors, layer), expected, rtol=1e-6, atol=1e-6)


def test_a_plane_answers_the_centres_of_bins():
    """A bin's mean of a linear map is its value at the centre of the bin; aligned boxes lie half a cell lower."""
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    x = (10 * rows + columns).reshape(1, 1, 9, 11)
    rois = torch.tensor([[0.0, 4, 2, 12, 14]])
    expected = torch.tensor([[[[10 * 2.5 + 3, 10 * 2.5 + 5], [10 * 5.5 + 3, 10 * 5.5 + 5]]]])
    for ratio in (-1, 1, 4):
        torch.testing.assert_close(RoIAlign2d(2, 0.5, ratio)(x, rois), expected)
        torch.testing.assert_close(RoIAlign2d(2, 0.5, ratio, aligned=True)(x, rois), expected - 5.5)


def test_samples_outside_are_zero_or_the_nearest_cell():
    x = torch.tensor([[[[3.0, 5.0]]]])
    ends = [(-1.5, -0.5), (-1.6, -0.6), (1.5, 2.5), (1.6, 2.6)]  # centres at -1, -1.1, 2 and 2.1
    rois = torch.tensor([[0.0, a, 0, b, 0] for a, b in ends])
    layer = RoIAlign2d(1, sampling_ratio=1)
    assert layer(x, rois).flatten().tolist() == [3, 0, 5, 0]
    assert graph(x, rois, layer).ravel().tolist() == [3, 0, 5, 0]


def test_a_reversed_box_is_a_cell_or_nothing_or_walked_backwards():
    x = torch.arange(10.0).reshape(1, 1, 1, 10)
    rois = torch.tensor([[0.0, 8, -0.5, 4, 0.5]])
    answers = {}
    for ratio, aligned in ((-1, False), (-1, True), (1, True)):
        layer = RoIAlign2d((1, 2), 1.0, ratio, aligned)
        answers[ratio, aligned] = layer(x, rois).flatten().tolist()
        assert graph(x, rois, layer).ravel().tolist() == answers[ratio, aligned]
    assert answers == {(-1, False): [8.25, 8.75], (-1, True): [0, 0], (1, True): [6.5, 4.5]}


def test_a_neighbour_of_weight_0_adds_nothing():
    x = torch.tensor([[[[1.0, 2.0, math.nan, math.inf, 7.0]]]])
    rois = torch.tensor([[0.0, a, 0, a + 1, 0] for a in (0.5, 0.75, 1.5, 2.5, 3.0, 3.5)])  # centres at a + 1/2
    layer = RoIAlign2d(1, sampling_ratio=1)
    expected = [2, math.nan, math.nan, math.inf, math.inf, 7]
    np.testing.assert_array_equal(layer(x, rois).flatten().numpy(), expected)
    np.testing.assert_array_equal(graph(x, rois, layer).ravel(), expected)


def test_no_box_gives_an_empty_answer():
    first = specimen(METHOD, METHOD.cases[0], "float32")
    for batch in (0, 2):
        x, rois = np.ones((batch, 2, 6, 7), np.float32), np.zeros((0, 5), np.float32)
        [answer] = first.session("function").run(None, {"x0": x, "x1": rois})
        assert answer.shape == first.layer(torch.from_numpy(x), torch.from_numpy(rois)).shape == (0, 2, 2, 2)


def test_boxes_on_no_map_are_refused():
    x, rois = torch.zeros(2, 2, 6, 7), torch.tensor([[2.0, 0, 0, 1, 1]])
    with pytest.raises(ValueError, match="box 0 is on map 2, but there are 2 maps"):
        RoIAlign2d(2)(x, rois)
    first = specimen(METHOD, METHOD.cases[0], "float32")
    with pytest.raises(Exception, match="out of data bounds"):
        first.session("function").run(None, {"x0": x.numpy(), "x1": rois.numpy()})
