"""Multimodal low-rank bilinear pooling is a bilinear form, entry by entry, and drops in training only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poolexport.nn import MLB0d, MLB2d

torch.manual_seed(0)
X, Y = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
MAP = torch.randn(2, 6, 5, 3, dtype=torch.float64)


def test_without_activation_every_entry_is_a_bilinear_form():
    layer = MLB0d(6, 4, joint_dim=3, activation="identity").double().eval()
    nn.init.zeros_(layer.project_x.bias)
    nn.init.zeros_(layer.project_y.bias)
    answer = layer(X, Y)
    for i in range(3):
        form = torch.outer(layer.project_x.weight[i], layer.project_y.weight[i])
        torch.testing.assert_close(answer[:, i], torch.einsum("nc,cd,nd->n", X, form, Y))


@pytest.mark.parametrize("output_dim", [None, 7])
def test_it_is_the_published_network(output_dim):
    layer = MLB0d(6, 4, joint_dim=8, output_dim=output_dim).double().eval()
    joint = torch.tanh(layer.project_x(X)) * torch.tanh(layer.project_y(Y))
    torch.testing.assert_close(layer(X, Y), joint if output_dim is None else layer.project_output(joint))


@pytest.mark.parametrize("output_dim", [None, 2])
def test_maps_are_vectors_place_by_place(output_dim):
    layer = MLB2d(6, 4, joint_dim=8, output_dim=output_dim).double().eval()
    single = MLB0d(6, 4, joint_dim=8, output_dim=output_dim).double().eval()
    single.load_state_dict(layer.state_dict())
    answer = layer(MAP, Y)
    others = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    both = layer(MAP, others)
    for i in range(5):
        for j in range(3):
            torch.testing.assert_close(answer[:, :, i, j], single(MAP[:, :, i, j], Y))
            torch.testing.assert_close(both[:, :, i, j], single(MAP[:, :, i, j], others[:, :, i, j]))


def test_state_names():
    assert set(MLB0d(2, 3, 4, output_dim=5).state_dict()) == {
        f"project_{part}.{kind}" for part in ("x", "y", "output") for kind in ("weight", "bias")
    }
    assert {name.partition(".")[0] for name in MLB0d(2, 3, 4).state_dict()} == {"project_x", "project_y"}


def test_only_training_drops_and_a_seed_repeats_it():
    layer = MLB0d(6, 4, joint_dim=16).double()
    assert not torch.equal(layer(X, Y), layer(X, Y))
    torch.manual_seed(3)
    first = layer(X, Y)
    torch.manual_seed(3)
    assert torch.equal(first, layer(X, Y))
    layer.eval()
    assert torch.equal(layer(X, Y), layer(X, Y))
    assert torch.equal(layer(X, Y), MLB2d.forward(_as_map(layer), X[..., None, None], Y)[..., 0, 0])


def _as_map(layer):
    copy = MLB2d(6, 4, joint_dim=16).double().eval()
    copy.load_state_dict(layer.state_dict())
    return copy


def test_inputs_and_products_are_dropped_and_scaled():
    """Ones through projections that are identities: what is left of both inputs and their product, times 2 each."""
    layer = MLB0d(400, 400, joint_dim=400, output_dim=400, activation="identity")
    with torch.no_grad():
        for linear in (layer.project_x, layer.project_y, layer.project_output):
            linear.weight.copy_(torch.eye(400))
            linear.bias.zero_()
    answer = layer(torch.ones(5, 400), torch.ones(5, 400))
    assert set(answer.unique().tolist()) == {0.0, 8.0}
    assert answer.eq(8).float().mean().item() == pytest.approx(1 / 8, abs=0.03)


def test_without_dropout_training_is_inference():
    layer = MLB0d(6, 4, joint_dim=3, dropout=0.0).double()
    assert torch.equal(layer.train()(X, Y), layer.eval()(X, Y))


def test_pairs_that_do_not_fit_are_refused():
    layer = MLB2d(2, 3, 4).eval()
    x = torch.ones(2, 2, 3, 3)
    with pytest.raises(ValueError, match="one batch, size and type"):
        layer(x, torch.ones(1, 3))
    with pytest.raises(ValueError, match="one batch, size and type"):
        layer(x, torch.ones(2, 3, 3, 2))
    with pytest.raises(ValueError, match="takes 2 and 3 channels"):
        layer(x, torch.ones(2, 2))
