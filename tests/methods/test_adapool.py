"""What the conformance suite cannot see of AdaPool: the authors' windows, scale, zeros, and one beta per location."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from poolexport.nn import AdaPool1d, AdaPool2d, SoftPool2d


def official_edscw(row: Tensor, kernel: int, stride: int) -> list[float]:
    """One row as the authors' 1-d kernel walks it."""
    answers = []
    for i in range((len(row) - kernel) // stride + 1):
        places = [i * stride - kernel // 2 + j for j in range(kernel)]
        cells = [row[p].item() for p in places if 0 <= p < len(row)]
        m = sum(cells) / len(cells)
        weights = [math.exp(2 * x * m / (x * x + m * m)) for x in cells]
        answers.append(sum(w * x for w, x in zip(weights, cells)) / sum(weights))
    return answers


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 3), (4, 2), (5, 1)])
def test_official_windows_begin_half_a_kernel_early(kernel, stride):
    x = torch.randn(1, 1, 13, dtype=torch.float64)
    layer = AdaPool1d(kernel, stride, weights="edscw", similarity="signed_dice", align="official").double()
    assert layer(x).flatten().tolist() == pytest.approx(official_edscw(x.flatten(), kernel, stride))


def test_em_is_softpool():
    x = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    assert torch.equal(AdaPool2d(3, 2, 1, weights="em")(x), SoftPool2d(3, 2, 1)(x))


@pytest.mark.parametrize("weights", ["edscw", "idw"])
@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e37])
def test_weights_do_not_depend_on_scale(weights, scale):
    x = torch.randn(2, 3, 8, 8)
    layer = AdaPool2d(weights=weights)
    torch.testing.assert_close(layer(x * scale) / scale, layer(x))
    scaled = (x * scale).requires_grad_()
    layer(scaled).sum().backward()
    assert scaled.grad.isfinite().all()


@pytest.mark.parametrize("weights", ["edscw", "idw"])
@pytest.mark.parametrize("window", [(0.0, 0.0, 0.0, 0.0), (3.0, -1.0, -2.0, 0.0), (1.0, -1.0, 1.0, -1.0)])
def test_a_window_whose_mean_is_0_gives_0(weights, window):
    assert AdaPool1d(4, weights=weights)(torch.tensor([[window]])).item() == 0.0


def test_checkpoints_with_one_beta_per_location_load_and_run_at_other_sizes():
    layer = AdaPool2d(2, output_size=(2, 3))
    layer.load_state_dict({"beta": torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.5, 0.0]])})
    x = torch.randn(1, 2, 4, 6)
    close, large = AdaPool2d(weights="edscw")(x), AdaPool2d(weights="em")(x)
    torch.testing.assert_close(layer(x), layer.beta * close + (1 - layer.beta) * large)
    x = torch.randn(1, 2, 8, 12)
    close, large = AdaPool2d(weights="edscw")(x), AdaPool2d(weights="em")(x)
    beta = layer.beta.repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(layer(x), beta * close + (1 - beta) * large)
