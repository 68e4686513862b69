"""Attention pooling of timm and of SimPool's authors becomes ours, with its weights, or stays with a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poolexport
from pipeline import foreign
from pipeline.test_adopt import adopted, drawn, seeded
from poolexport.adoption import attention
from poolexport.errors import InputError

LATENT = {
    "timm": lambda: foreign.AttentionPoolLatent(8, 2),
    "average": lambda: foreign.AttentionPoolLatent(8, 4, 3.1, pool_type="avg"),
    "tanh": lambda: foreign.AttentionPoolLatent(8, 1, act=nn.GELU("tanh"), drop=0.2),
}
SIMPOOL = {
    "timm": lambda: foreign.SimPool2d(8, 2),
    "timm-flat": lambda: foreign.SimPool2d(8, 4, qkv_bias=True, flatten=True),
    "authors": lambda: foreign.SimPool(8),
}


@pytest.mark.parametrize("name", LATENT)
def test_a_learned_query_over_tokens_becomes_one_over_a_map_of_them(name):
    module = seeded(LATENT[name])
    layer, record = adopted(module)
    assert record.proven, record
    assert [type(part) for part in layer] == [attention.TokensAsMap, poolexport.nn.AttentionPoolLatent2d]
    assert ("its dropout in training is left out" in record.notes) == (name == "tanh")
    x = drawn(2, 12, 8)
    torch.testing.assert_close(layer.double()(x), copy.deepcopy(module).double()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SIMPOOL)
def test_simpool_becomes_ours(name):
    module = seeded(SIMPOOL[name])
    layer, record = adopted(module)
    assert record.proven, record
    x = drawn(2, 8, 5, 4)
    torch.testing.assert_close(layer.double()(x), copy.deepcopy(module).double()(x), rtol=1e-9, atol=1e-9)


def test_heads_of_fastai_for_lines_become_ours():
    layer, record = adopted(foreign.AdaptiveConcatPool1d())
    assert record.proven
    assert type(layer) is poolexport.nn.AvgMaxPool1d


@pytest.mark.parametrize("fault", ["weights", "epsilon", "curve"])
def test_a_fault_in_the_table_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    make: Callable[[], nn.Module] = SIMPOOL["timm"] if fault == "weights" else LATENT["tanh"]
    model = nn.Sequential(seeded(make))
    assert poolexport.adopt(model).replacements[0].proven
    carry = attention.carry
    if fault == "weights":
        monkeypatch.setattr(
            attention, "carry", lambda layer, tensors: carry(layer, {k: t for k, t in tensors.items() if "wk" not in k})
        )
    elif fault == "curve":
        monkeypatch.setattr(
            poolexport.nn.AttentionPoolLatent2d, "_activated", lambda self, hidden, dtype: nn.functional.gelu(hidden)
        )
    else:
        monkeypatch.setattr(attention.Foreign, "get", _with_epsilon(attention.Foreign.get))
    with pytest.raises(InputError, match="does not compute what our layer of that name does"):
        poolexport.adopt(model)


def _with_epsilon(get: Callable[..., object]) -> Callable[..., object]:
    return lambda self, name, *default: 1e-6 if name == "norm.eps" else get(self, name, *default)


class Multiscale(nn.Module):
    """Stands for torchvision's modules that no layer of ours is."""


def of_torchvision(name: str) -> nn.Module:
    return type(name, (Multiscale,), {"__module__": "torchvision.ops"})()


def test_what_is_no_layer_of_ours_is_kept_with_a_reason():
    other = foreign.AttentionPoolLatent(8, 2)
    other.mlp = None
    reasons = {
        "2 learned queries": foreign.AttentionPoolLatent(8, 2, latent_len=2),
        "q_norm is LayerNorm": foreign.AttentionPoolLatent(8, 1, qk_norm=True),
        "adds positions": foreign.AttentionPoolLatent(8, 2, pos_embed="abs"),
        "norm is Identity": foreign.AttentionPoolLatent(8, 2, norm_layer=None),
        "bends by ReLU": foreign.AttentionPoolLatent(8, 2, act=nn.ReLU()),
        "all of its queries": foreign.AttentionPoolLatent(8, 2, pool_type=""),
        "no attribute 'mlp.act'": other,
        "smallest value of every channel": foreign.SimPool2d(8, gamma=2.0),
        "q_norm is": foreign.SimPool2d(8, qk_norm=True),
        "its scale is 1.0": foreign.SimPool(8, qk_scale=1.0),
        "smallest value of the batch": foreign.SimPool(8, gamma=2.0),
        "between cells for every bin": of_torchvision("PSRoIAlign"),
        "a map of its own for every box": of_torchvision("MultiScaleRoIAlign"),
    }
    found = poolexport.adopt(nn.Sequential(*reasons.values()).eval())
    assert found.replacements == []
    for record, word in zip(found.kept, reasons, strict=True):
        assert word in record.reason


def test_a_network_of_tokens_exports(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 8, 3)
            self.pool, self.simple = foreign.AttentionPoolLatent(8, 2), foreign.SimPool2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.features(x)
            return torch.cat([self.pool(y.flatten(2).transpose(1, 2)), self.simple(y)[:, 0]], 1)

    net = seeded(Net)
    found = poolexport.adopt(net)
    shapes = {0: "N", 2: "H", 3: "W"}
    bundle = poolexport.export(found.model, torch.randn(2, 3, 7, 8), tmp_path / "net", dynamic_shapes=shapes)
    assert set(bundle.manifest.layers) == {"pool.1", "simple.0"}
    x = drawn(1, 3, 6, 11).float()
    [answer] = poolexport.session(bundle.path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(answer, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
