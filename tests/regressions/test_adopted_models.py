"""What only the model as a whole shows of a replaced layer, and where a replaced layer is still held."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import InputError

X = torch.randn(2, 3, 8, 10)


class AsksForTheClass(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x) * 2 if isinstance(layer, nn.MaxPool2d) else layer(x)
        return x


def test_a_model_that_asks_for_the_class_of_a_layer_is_found_out():
    with pytest.raises(InputError, match=r"as a whole does not: .*'layers\.1': 'keep'"):
        poolexport.adopt(AsksForTheClass().eval(), args=X)
    adopted = poolexport.adopt(AsksForTheClass().eval(), {"layers.1": "keep"}, args=X)
    assert adopted.replacements == []


def test_the_whole_model_is_compared():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)).eval()
    state = torch.get_rng_state()
    assert poolexport.adopt(model, args=X).proof.startswith("same answers as a whole")
    assert poolexport.adopt(model).proof == ""
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_that_draws_is_not_compared_as_a_whole():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            return self.pool(x) + torch.rand(1)

    assert "differently" in poolexport.adopt(Draws().eval(), args=(X,)).proof


def test_a_model_that_answers_no_number_proves_nothing():
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            return self.pool(x) * torch.nan

    adopted = poolexport.adopt(Spoilt().eval(), args=X)
    assert adopted.replacements
    assert adopted.proof == "the model answers nothing but NaN and infinities"


HOLDERS = {
    "nested": lambda pool: {"x": [{"p": pool}]},
    "object": lambda pool: SimpleNamespace(p=pool),
    "method": lambda pool: pool.forward,
    "partial": lambda pool: partial(pool),
    "tuple": lambda pool: (1, (pool,)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_else_holds_a_replaced_layer_is_found(holder):
    model = nn.Sequential(nn.MaxPool2d(2)).eval()
    model.held = HOLDERS[holder](model[0])
    with pytest.raises(InputError, match="also held by the plain attribute held"):
        poolexport.adopt(model)
    with pytest.raises(InputError, match="also held by the plain attribute held"):
        poolexport.swap(model, {"0": nn.Identity()})


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_compute_are_copied():
    convolution = nn.utils.weight_norm(nn.Conv2d(3, 3, 3))
    model = nn.Sequential(convolution, nn.MaxPool2d(2)).eval()
    model(X)
    assert len(poolexport.adopt(model, args=X).replacements) == 1
