"""The bins of a pyramid are whole numbers' own, on every size; the other rules are those of their sources."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.test_operators import run_onnx
from poolexport.nn import AdaptiveMaxPool2d, SpatialPyramidPool2d
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport.runtime import session

LEVELS = (1, 2, 3, 4, 5, 6)
SIZES = range(1, 65)


class Pyramids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.largest = SpatialPyramidPool2d(LEVELS)
        self.mean = SpatialPyramidPool2d(LEVELS, mode="avg")
        self.adaptive = nn.ModuleList(map(AdaptiveMaxPool2d, LEVELS))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.largest(x), self.mean(x), torch.cat([pool(x).flatten(1) for pool in self.adaptive], 1)]


def edges(n: int, a: int) -> list[tuple[int, int]]:
    return [(i * a // n, -((-(i + 1) * a) // n)) for i in range(n)]


def cut(x: np.ndarray, rows: list[tuple[int, int]], columns: list[tuple[int, int]], reduce) -> np.ndarray:
    """Every bin reduced, (N, C, bins)."""
    return np.stack([reduce(x[:, :, a:b, c:d], axis=(2, 3)) for a, b in rows for c, d in columns], axis=-1)


def pyramid(x: np.ndarray, reduce) -> np.ndarray:
    levels = [cut(x, edges(n, x.shape[2]), edges(n, x.shape[3]), reduce).reshape(len(x), -1) for n in LEVELS]
    return np.concatenate(levels, axis=1)


def test_every_size_has_the_bins_of_whole_numbers_in_layers_and_in_a_file():
    """Heights and widths 1 to 64, levels 1 to 6: no maximum differs, and means by a rounding."""
    model = Pyramids().eval()
    example = torch.randn(2, 2, 9, 7)
    prepared = prepare(model, [example], dynamic_shapes=[{0: "N", 1: "C", 2: "H", 3: "W"}], input_names=["x"])
    file = session(ir.to_proto(optimise(lower(export(prepared)))).SerializeToString(), threads=1)
    rng = np.random.default_rng(0)
    for height in SIZES:
        x = rng.standard_normal((1, 2, height, 65 - height)).astype(np.float32)
        layers = [y.numpy() for y in model(torch.from_numpy(x))]
        largest, mean = pyramid(x, np.max), pyramid(x.astype(np.float64), np.mean)
        for answers in (layers, file.run(None, {"x": x})):
            assert np.count_nonzero(answers[0] != largest) == 0
            assert np.count_nonzero(answers[2] != largest) == 0
            np.testing.assert_allclose(answers[1], mean, rtol=1e-6, atol=1e-7)


def test_levels_then_channels_then_rows_then_columns():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    expected = [15, 31, 5, 7, 13, 15, 21, 23, 29, 31]
    assert SpatialPyramidPool2d((1, 2))(x)[0].tolist() == expected
    assert SpatialPyramidPool2d((2, 1))(x)[0].tolist() == expected[2:] + expected[:2]


@pytest.mark.parametrize(("n", "possible", "adaptive"), [(3, 61, 42), (4, 58, 31), (6, 49, 20)])
def test_windows_and_strides_make_n_bins_on_some_sizes_and_adaptive_ones_on_fewer(n, possible, adaptive):
    """Counted for lengths up to 64; where they make n bins they are a pooling with that window and stride."""
    made = same = 0
    layer = SpatialPyramidPool2d((n,), bins="window_stride")
    for a in SIZES:
        x = torch.randn(1, 1, a, a)
        window, stride = -(-a // n), a // n
        pooled = F.max_pool2d(x, window, stride) if stride else x.new_zeros(1, 1, 0, 0)
        if pooled.shape[2] != n:
            with pytest.raises(ValueError, match=f"bins, not {n}"):
                layer(x)
            with pytest.raises(Exception, match="out of data bounds"):
                run_onnx("PyramidLevelPool", {"bins": n, "rule": "window_stride", "reduce": "max"}, x)
            continue
        made += 1
        assert torch.equal(layer(x), pooled.flatten(1))
        same += [(i * stride, i * stride + window) for i in range(n)] == edges(n, a)
    assert (made, same) == (possible, adaptive)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_caffes_bins_are_a_padded_pooling_whose_stride_is_its_window(n):
    refused = []
    for a in SIZES:
        x = torch.randn(1, 2, a, a)
        window = -(-a // n)
        pad = (n * window - a + 1) // 2
        layers = {mode: SpatialPyramidPool2d((n,), mode, "caffe") for mode in ("max", "avg")}
        if pad >= window:
            refused.append(a)
            for layer in layers.values():
                with pytest.raises(ValueError, match="as long as a window"):
                    layer(x)
            continue
        largest = F.max_pool2d(F.pad(x, (pad,) * 4, value=-torch.inf), window)[:, :, :n, :n]
        mean = F.avg_pool2d(F.pad(x.double(), (pad,) * 4), window)[:, :, :n, :n]
        assert torch.equal(layers["max"](x), largest.flatten(1))
        torch.testing.assert_close(layers["avg"](x), mean.flatten(1).float())
    assert set(range(1, n)) <= set(refused)
    assert max(refused, default=0) < n * n


def test_the_detection_codes_bins_are_in_float32_and_its_maximum_begins_at_0():
    ramp = torch.arange(25.0).reshape(1, 1, 25, 1)
    last = [SpatialPyramidPool2d((5,), bins=bins)(ramp).reshape(5, 5)[:, 0].tolist() for bins in ("sppnet", "adaptive")]
    assert last == [[4, 9, 15, 19, 24], [4, 9, 14, 19, 24]]
    assert SpatialPyramidPool2d((2,), bins="sppnet")(-ramp - 1).tolist() == [[0.0] * 4]
    for n, a in itertools.product((1, 3, 5, 7, 9, 12, 15), SIZES):
        x = torch.randn(1, 1, a, 3)
        call = {"bins": n, "rule": "sppnet", "reduce": "max"}
        if a % 7 == 0:
            [answer] = run_onnx("PyramidLevelPool", call, x)
            assert np.array_equal(answer.reshape(1, -1), SpatialPyramidPool2d((n,), bins="sppnet")(x).numpy())
        shares = [(np.float32(i) / np.float32(n), np.float32(i + 1) / np.float32(n)) for i in range(n)]
        rows, columns = (
            [(int(np.floor(b * np.float32(m))), int(np.ceil(e * np.float32(m)))) for b, e in shares] for m in (a, 3)
        )
        expected = np.maximum(cut(x.numpy(), rows, columns, np.max), 0).reshape(1, -1)
        assert np.array_equal(SpatialPyramidPool2d((n,), bins="sppnet")(x).numpy(), expected)


@pytest.mark.parametrize("rule", ["adaptive", "window_stride", "caffe", "sppnet"])
def test_a_nan_spoils_the_bins_it_lies_in(rule):
    x = torch.ones(1, 1, 4, 4)
    x[0, 0, 0, 3] = torch.nan
    assert SpatialPyramidPool2d((2, 1), bins=rule)(x).isnan().tolist() == [[False, True, False, False, True]]


def test_means_and_minus_infinity_by_hand():
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    means = {
        bins: SpatialPyramidPool2d((2,), "avg", bins)(x)[0].tolist() for bins in ("adaptive", "window_stride", "caffe")
    }
    assert means["adaptive"] == means["window_stride"] == [3.0, 4.0, 6.0, 7.0]
    # One pad before: the first window holds one cell of its four.
    assert means["caffe"] == [0.25, 1.25, 2.75, 7.0]
    x[...] = -torch.inf
    assert SpatialPyramidPool2d((2, 1))(x).tolist() == [[-torch.inf] * 5]
