"""DynOPool is max pooling at one half, samples as torch does elsewhere, and learns its size and its offset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poolexport
from poolexport.nn import DynOPool2d
from poolexport_ops.query_pool import query_pool


def test_one_half_of_even_sizes_is_max_pooling():
    x = torch.randn(2, 3, 8, 10)
    x[0, 0, 3, 3], x[1, 2, 0, 0] = float("inf"), float("nan")
    torch.testing.assert_close(DynOPool2d(0.5)(x), F.max_pool2d(x, 2), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("ratio", "offset"), [(0.7, None), ((1.5, 0.4), None), (0.6, (0.3, 1.7))])
def test_points_are_those_of_grid_sample(ratio, offset):
    x = torch.randn(2, 3, 11, 14, dtype=torch.float64)
    layer = DynOPool2d(ratio, learned=False, offset=offset)
    answer = layer(x)
    positions = []
    for n, s, d in zip(x.shape[2:], answer.shape[2:], layer.offset or (None, None)):
        centre = (torch.arange(s, dtype=torch.float64) + 0.5) * n / s - 0.5
        distance = n / (4 * s) if d is None else d
        positions.append([(2 * (centre + sign * distance) + 1) / n - 1 for sign in (-1, 1)])
    samples = []
    for rows in positions[0]:
        for columns in positions[1]:
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).expand(2, -1, -1, -1)
            samples.append(F.grid_sample(x, grid, padding_mode="border", align_corners=False))
    torch.testing.assert_close(answer, torch.stack(samples).amax(0))


@pytest.mark.parametrize(("n", "ratio", "size"), [(9, 0.5, 4), (11, 0.5, 6), (45, 0.7, 31), (7, 0.01, 1)])
def test_sizes_are_rounded_to_even_in_float64(n, ratio, size):
    assert DynOPool2d(ratio, learned=False)(torch.zeros(1, 1, n, 4)).shape[2] == size


def test_every_input_of_the_operator_gets_the_right_gradient():
    x = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    offset = torch.tensor([0.21, 0.34], dtype=torch.float64, requires_grad=True)
    for relative in (0, 1):
        for reduce in ("max", "average"):

            def pooled(offset, relative=relative, reduce=reduce):
                size = torch.tensor([3.0, 4.0], dtype=torch.float64)
                return query_pool(x, size, offset, relative=relative, reduce=reduce)

            assert torch.autograd.gradcheck(pooled, offset)


def test_the_gradient_passes_the_rounding():
    torch.manual_seed(0)
    # On seven rows no point lies on a pixel, where the interpolation has a kink.
    x = torch.randn(1, 1, 7, 9, dtype=torch.float64)
    layer = DynOPool2d((0.45, 0.6)).double()
    layer(x).sum().backward()
    sizes = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)
    quarter = torch.tensor([0.25, 0.25], dtype=torch.float64)
    query_pool(x, sizes, quarter, relative=1, reduce="max").sum().backward()
    torch.testing.assert_close(layer.r.grad, sizes.grad * torch.tensor([7.0, 9.0], dtype=torch.float64))
    step = torch.tensor([1e-6, 0.0], dtype=torch.float64)
    moved = [_stretched(x, sizes.detach() + sign * step) for sign in (-1, 1)]
    torch.testing.assert_close((moved[1] - moved[0]) / 2e-6, sizes.grad[0], rtol=1e-5, atol=1e-6)


def _stretched(x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The sum of the answers of 3 times 5 cells that are as large as those of a grid of ``sizes``."""
    with torch.no_grad():
        cells = [n / s for n, s in zip(x.shape[2:], sizes)]
        points = []
        for sign_h in (-1, 1):
            for sign_w in (-1, 1):
                lines = []
                for cell, count, sign, n in zip(cells, (3, 5), (sign_h, sign_w), x.shape[2:]):
                    line = (torch.arange(count, dtype=torch.float64) + 0.5 + 0.25 * sign) * cell - 0.5
                    lines.append((2 * line.clamp(0, n - 1) + 1) / n - 1)
                grid = torch.stack(torch.meshgrid(lines[1], lines[0], indexing="xy"), -1)[None]
                points.append(F.grid_sample(x, grid, padding_mode="border", align_corners=False))
        return torch.stack(points).amax(0).sum()


def test_a_file_follows_the_size_inside_a_network(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), DynOPool2d((0.7, 0.45)), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), DynOPool2d(1.5)
    ).eval()
    bundle = poolexport.export(
        net, torch.randn(2, 3, 15, 17), tmp_path / "net", dynamic_shapes={0: "N", 2: "H", 3: "W"}
    )
    runtime = poolexport.session(bundle.path)
    for h in range(7, 24):
        x = torch.randn(1, 3, h, 30 - h)
        [answer] = runtime.run(None, {"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(answer, net(x).numpy(), rtol=1e-4, atol=1e-5)
