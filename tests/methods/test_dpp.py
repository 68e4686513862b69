"""Detail-preserving pooling: the published graphs as they are written, their parameters, and the stochastic draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poolexport.methods.dpp import OFFICIAL_NAMES
from poolexport.nn import DPP2d, S3DPP2d


def torch7_graph(
    x: Tensor, log_lambda: Tensor, log_alpha: Tensor, filters: Tensor | None = None, *, asym: bool = False
):
    """The authors' graph, node by node: averages, nearest up-sampling, quotients."""
    up = torch.nn.Upsample(scale_factor=2, mode="nearest")
    channels = x.shape[1]
    centre = F.avg_pool2d(x, 2) if filters is None else F.conv2d(x, filters, stride=2, padding=1, groups=channels)
    d = x - up(centre)
    v = (d.relu() if asym else d) ** 2 + 1e-3
    w = (v / up(F.avg_pool2d(v, 2))) ** (log_lambda.exp() / 2).reshape(1, -1, 1, 1)
    w = w + log_alpha.clamp(max=10).exp().reshape(1, -1, 1, 1)
    return F.avg_pool2d(x * w, 2) / F.avg_pool2d(w, 2)


def black_box(x: Tensor, log_lambda: float, log_alpha: float) -> Tensor:
    """The authors' CUDA layer: squares over their sum."""
    cells = F.unfold(x, 2, stride=2).reshape(x.shape[0], x.shape[1], 4, x.shape[2] // 2, x.shape[3] // 2)
    v = (cells - cells.mean(2, keepdim=True)) ** 2 + 1e-3
    w = (v / v.sum(2, keepdim=True)) ** (math.exp(log_lambda) / 2) + math.exp(log_alpha)
    return (w * cells).sum(2) / w.sum(2)


def drawn(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


@pytest.mark.parametrize("asym", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_defaults_are_the_authors_graph(asym, full):
    layer = DPP2d(3, "asym" if asym else "sym", full=full).double()
    filters = drawn(3, 1, 3, 3) if full else None
    official = {"CWeightCalc.weight": drawn(3), "PositiveBias.weight": 6 * drawn(3)}
    state = {OFFICIAL_NAMES[name]: value for name, value in official.items()}
    layer.load_state_dict({**state, "filter_weight": filters} if full else state)
    x = drawn(2, 3, 8, 10)
    expected = torch7_graph(x, *official.values(), filters, asym=asym)
    torch.testing.assert_close(layer(x), expected)


def test_the_other_three_functions():
    x = drawn(2, 1, 8, 10)
    state = {"log_lambda": torch.tensor([0.3]), "log_alpha": torch.tensor([-0.4])}

    def answer(**options):
        layer = DPP2d(**options).double()
        layer.load_state_dict({name: value.double() for name, value in state.items()})
        return layer(x)

    graph = torch7_graph(x, torch.tensor([0.3]).double(), torch.tensor([-0.4]).double())
    torch.testing.assert_close(answer(normalize="sum"), black_box(x, *(v.double().item() for v in state.values())))
    doubled = torch7_graph(x, (state["log_lambda"] + math.log(2)).double(), state["log_alpha"].double())
    torch.testing.assert_close(answer(exponent_scale=1.0), doubled, rtol=1e-6, atol=1e-6)
    answers = [answer(), answer(normalize="sum"), answer(exponent_scale=1.0), answer(normalize=None)]
    torch.testing.assert_close(answers[0], graph)
    for i, one in enumerate(answers):
        assert all((one - other).abs().max() > 0.01 for other in answers[:i]), "four functions, not one"


def test_a_full_layer_starts_as_a_lite_one():
    x = drawn(1, 3, 9, 11)
    torch.testing.assert_close(DPP2d(3, full=True).double()(x), DPP2d(3).double()(x))
    torch.testing.assert_close(S3DPP2d(3, full=True).double().eval()(x), S3DPP2d(3).double().eval()(x))


@pytest.mark.parametrize("normalize", ["mean", "sum", None])
@pytest.mark.parametrize("log_lambda", [-8.0, 0.0, 8.0])
def test_nothing_overflows(normalize, log_lambda):
    layer = DPP2d(normalize=normalize)
    layer.load_state_dict({"log_lambda": torch.tensor([log_lambda]), "log_alpha": torch.tensor([9.0])})
    for scale in (1e-30, 1.0, 1e4, 1e18, 1e30):
        x = (scale * drawn(1, 2, 8, 8)).float().requires_grad_()
        y = layer(x)
        assert (y <= F.max_pool2d(x, 2) * (1 + 1e-6 * F.max_pool2d(x, 2).sign())).all()
        assert (y >= -F.max_pool2d(-x, 2) * (1 + 1e-6 * F.max_pool2d(-x, 2).sign())).all()
        y.sum().backward()
        assert x.grad.isfinite().all()
    assert layer.log_lambda.grad.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (12, 8), (10, 7), (4, 6)])
def test_training_keeps_half_of_the_lines_of_each_half(height, width):
    torch.manual_seed(0)
    layer = S3DPP2d().train()
    # On a slope every window answers its middle, which tells where it lies.
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    x = torch.stack([rows, columns, 100 * rows + columns]).repeat(2, 1, 1, 1)
    lengths = height // 2 * 2, width // 2 * 2
    counts = [np.zeros(length) for length in lengths]
    for _ in range(400):
        y = layer(x)
        assert y.shape[2:] == (height // 2, width // 2)
        assert torch.equal(y[0], y[1]), "one draw serves the whole batch"
        torch.testing.assert_close(y[:, 2], 100 * y[:, 0] + y[:, 1])  # ... and all channels
        drawn_lines = y[0, 0, :, 0].floor().long(), y[0, 1, 0].floor().long()
        for lines, length, count in zip(drawn_lines, lengths, counts, strict=True):
            assert (lines.diff() > 0).all(), "lines stay in order"
            assert (lines < length // 4 * 2).sum() == length // 4
            count[lines] += 1
    for count in counts:
        share = count / 400
        assert abs(share - 0.5).max() < 0.13
        assert abs(share - 0.5).max() > 0.0, "a draw, not a rule"


def test_a_draw_over_the_whole_axis_would_be_seen():
    torch.manual_seed(0)
    uneven = sum(int((torch.randperm(8)[:4] < 4).sum() != 2) for _ in range(400))
    assert uneven > 130


def test_eval_is_the_mean_of_four_shifted_layers():
    x = drawn(2, 3, 8, 10)
    options = {"channels": 3, "variant": "asym", "full": True}
    layer = S3DPP2d(**options).double().eval()
    state = {"log_lambda": drawn(3), "log_alpha": drawn(3), "filter_weight": drawn(4, 3, 1, 3, 3)}
    layer.load_state_dict(state)
    answers = []
    for i, (up, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        peer = DPP2d(**options).double()
        peer.load_state_dict({**state, "filter_weight": state["filter_weight"][i]})
        answers.append(peer(F.pad(x, (-left, left, -up, up), mode="replicate")))
    torch.testing.assert_close(layer(x), sum(answers) / 4)
