"""fast-MPN-COV's modules and the ports of compact bilinear pooling become ours, with their hashes and weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poolexport
from pipeline import foreign
from pipeline.test_adopt import adopted, drawn, seeded
from poolexport.adoption import second_order
from poolexport.errors import InputError

ONE = {
    "mpncov": (lambda: foreign.MPNCOV(input_dim=4), "ISQRTCOVPool2d"),
    "mpncov-matrix": (lambda: foreign.MPNCOV(5, is_vec=False), "ISQRTCOVPool2d"),
    "mpncov-one-step": (lambda: foreign.MPNCOV(1), "ISQRTCOVPool2d"),
    "mpncov-no-root": (lambda: foreign.MPNCOV(is_sqrt=False), "ISQRTCOVPool2d"),
    "mpncov-reduced": (lambda: statistics(foreign.MPNCOV(5, input_dim=4, dimension_reduction=3)), "ISQRTCOVPool2d"),
    "bcnn": (foreign.BCNN, "BilinearPool2d"),
    "bcnn-matrix": (lambda: foreign.BCNN(1e-5, is_vec=False), "BilinearPool2d"),
    "bcnn-plain-root": (lambda: foreign.BCNN(0), "BilinearPool2d"),
    "cbp": (lambda: foreign.CBP(projDim=8, input_dim=4), "CompactBilinearPool2d"),
    "cbp-empty-bins": (lambda: foreign.CBP(1e-5, 512, 4), "CompactBilinearPool2d"),
    "cbp-plain-root": (lambda: foreign.CBP(0.0, 32, 4), "CompactBilinearPool2d"),
}
TWO = {
    "sums": lambda: foreign.CompactBilinearPooling(4, 3, 16),
    "locations": lambda: foreign.CompactBilinearPooling(4, 3, 16, sum_pool=False),
    "parameters": lambda: foreign.compact_of_parameters()((4, 3), 16, True, False, 1),
    "parameters-times": lambda: foreign.compact_of_parameters()((4, 3), 16, True, False, 16),
    "parameters-locations": lambda: foreign.compact_of_parameters()((4, 3), 16, False, False, 1),
    "parameters-bins-last": lambda: foreign.compact_of_parameters()((4, 3), 16, False, True, 16),
}


def statistics(module: foreign.MPNCOV) -> foreign.MPNCOV:
    """The module with statistics that training left, and an epsilon that is not torch's own."""
    norm = module.conv_dr_block[1]
    norm.running_mean.copy_(drawn(3).float())
    norm.running_var.copy_(drawn(3).exp().float())
    norm.eps = 1e-3
    return module


@pytest.mark.parametrize("name", ONE)
def test_second_order_pooling_becomes_ours(name):
    make, ours = ONE[name]
    module = seeded(make)
    layer, record = adopted(module)
    assert type(layer) is getattr(poolexport.nn, ours)
    assert record.proven, record
    x = drawn(2, 4, 6, 5).float()
    # Single precision, in which the authors' layers run; and the bins that the transform leaves roundings in.
    torch.testing.assert_close(
        layer(x), module(x), rtol=1e-4, atol=1e-2 if "empty" in name or "plain" in name else 1e-4
    )


@pytest.mark.parametrize("name", TWO)
def test_ports_for_two_maps_are_told_apart_by_what_they_hold_and_answer(name):
    module = TWO[name]().eval()
    layer, record = adopted(module)
    assert type(layer) is poolexport.nn.CompactBilinearFusion2d
    assert record.proven, record
    x, y = drawn(2, 4, 6, 5).float(), drawn(2, 3, 6, 5, seed=1).float()
    torch.testing.assert_close(layer(x, y), module(x, y), rtol=1e-4, atol=1e-3)


def test_hashes_are_those_that_the_layer_computes_with_and_go_into_the_state_dict():
    module = foreign.CBP(projDim=8, input_dim=4)
    state = adopted(module)[0].state_dict()
    for end in (1, 2):
        matrix = module.sparseM[end - 1].numpy()
        assert state[f"rand_h_{end}"].tolist() == np.abs(matrix).argmax(1).tolist()
        assert state[f"rand_s_{end}"].tolist() == matrix.sum(1).tolist()


def test_a_port_for_any_number_of_axes_needs_a_choice():
    model = nn.Sequential(foreign.compact_of_sketches()(4, 3, 16)).eval()
    with pytest.raises(InputError, match=r"one input or two.*choices=\{'0': 'two_vectors'\}.*'keep'"):
        poolexport.adopt(model)
    found = poolexport.adopt(model, {"CompactBilinearPooling": "two_vectors"})
    assert found.replacements[0].proven
    assert "channels last" in found.replacements[0].notes[0]
    assert type(found.model[0]) is poolexport.nn.MultimodalCompactBilinear0d
    x, y = drawn(5, 4), drawn(5, 3, seed=1)
    torch.testing.assert_close(found.model[0](x, y), model[0](x, y))


def test_a_comparison_leaves_the_default_type_and_the_layers_own_tensors_as_they_were():
    module = foreign.CBP(projDim=8, input_dim=4)
    poolexport.adopt(nn.Sequential(module))
    assert torch.get_default_dtype() == torch.float32
    assert [matrix.dtype for matrix in module.sparseM] == [torch.float32] * 2


def test_a_layer_that_cannot_run_any_more_is_adopted_unproven():
    class CBP(foreign.CBP):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft(x, 1)  # type: ignore[operator]

    (record,) = poolexport.adopt(nn.Sequential(CBP(projDim=8, input_dim=4))).replacements
    assert not record.proven
    assert "'module' object is not callable" in record.proof


# What is planted


def _changed(options: dict[str, Any], name: str) -> dict[str, Any]:
    """One channel's sign turned, or one channel in the next bin."""
    options[name] = np.where(
        np.arange(4) == 2, -options[name] if "_s_" in name else (options[name] + 1) % 8, options[name]
    )
    return options


@pytest.mark.parametrize("fault", ["weights", "statistics", "hash", "sign", "thresh", "steps"])
def test_a_fault_in_the_table_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    make: dict[str, Callable[[], nn.Module]] = {
        "weights": ONE["mpncov-reduced"][0],
        "statistics": ONE["mpncov-reduced"][0],
        "hash": ONE["cbp"][0],
        "sign": TWO["sums"],
        "thresh": ONE["bcnn-matrix"][0],
        "steps": ONE["mpncov"][0],
    }
    model = nn.Sequential(seeded(make[fault]))
    assert poolexport.adopt(model).replacements[0].proven
    sketches, carry = second_order._sketches, second_order.carry
    if fault == "weights":
        monkeypatch.setattr(second_order, "carry", lambda layer, tensors: layer)
    elif fault == "statistics":
        left_out = f"{second_order.REDUCTION}.1.running_var"
        monkeypatch.setattr(
            second_order,
            "carry",
            lambda layer, tensors: carry(layer, {k: t for k, t in tensors.items() if k != left_out}),
        )
    elif fault in ("hash", "sign"):
        name = "rand_h_1" if fault == "hash" else "rand_s_1"
        monkeypatch.setattr(second_order, "_sketches", lambda *given: _changed(sketches(*given), name))
    else:
        ours = poolexport.nn.BilinearPool2d if fault == "thresh" else poolexport.nn.ISQRTCOVPool2d
        forward = ours.forward

        def other(self: Any, x: Tensor) -> Tensor:
            changed = copy.copy(self)
            vars(changed)["root_eps" if fault == "thresh" else "iterations"] = 1e-8 if fault == "thresh" else 4
            return forward(changed, x)

        monkeypatch.setattr(ours, "forward", other)
    with pytest.raises(InputError, match="does not compute what our layer of that name does"):
        poolexport.adopt(model)


def test_what_is_left_out_for_roundings_is_small():
    class CBP(foreign.CBP):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return nn.functional.normalize(torch.where(y == y.abs().amin(1, keepdim=True), 0.1, y))

    with pytest.raises(InputError, match="does not compute what our layer of that name does"):
        poolexport.adopt(nn.Sequential(CBP(1e-8, 512, 4)))


# What is kept


def test_other_classes_of_these_names_are_kept_with_a_reason():
    class CBP(nn.Module):
        """Convolution, normalisation, activation: the usual meaning of the letters."""

    class BCNN(nn.Module):
        """A whole network."""

    class MPNCOV(nn.Module):
        iterNum = 3

    class CompactBilinearPooling(nn.Module):
        sketch_dim = 8

    dense = foreign.CBP(projDim=8, input_dim=4)
    dense.sparseM[1] = torch.randn(4, 8)
    cut = foreign.CompactBilinearPooling(4, 3, 16)
    cut.output_dim = 15
    odd = foreign.MPNCOV(5, input_dim=4, dimension_reduction=3)
    odd.conv_dr_block[0] = nn.Conv2d(4, 3, 3)
    bare = foreign.MPNCOV(5, input_dim=4, dimension_reduction=3)
    bare.conv_dr_block[1] = nn.BatchNorm2d(3, track_running_stats=False)
    capped = foreign.MPNCOV(5, input_dim=4, dimension_reduction=3)
    capped.conv_dr_block[2] = nn.ReLU6()
    longer = foreign.MPNCOV(5, input_dim=4, dimension_reduction=3)
    longer.conv_dr_block.append(nn.Hardtanh(-99, 99))
    none = foreign.MPNCOV()
    none.iterNum = None
    others = (CBP(), BCNN(), MPNCOV(), CompactBilinearPooling())
    model = nn.Sequential(*others, dense, cut, odd, bare, capped, longer, none).eval()
    found = poolexport.adopt(model)
    assert found.replacements == []
    words = ["'thresh'", "'thresh'", "'is_sqrt'", "'input_dim1'", "no sketch", "(4, 15)", "not 1x1", "statistics"]
    for record, word in zip(found.kept, [*words, "not a ReLU", "not a ReLU", "does not hold what"], strict=True):
        assert word in record.reason


class Net(nn.Module):
    """A map pooled in three ways, whose answers are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.cov = statistics(foreign.MPNCOV(3, input_dim=4, dimension_reduction=3))
        self.sketch = foreign.CBP(projDim=8, input_dim=4)
        self.pair = foreign.CompactBilinearPooling(4, 3, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return torch.cat([self.cov(y).flatten(1), self.sketch(y), self.pair(y, x[:, :, 1:-1, 1:-1])], 1)


def test_a_network_of_them_exports_and_its_file_computes_what_the_original_does(tmp_path):
    net = seeded(Net)
    found = poolexport.adopt(net)
    assert [record.path for record in found.replacements] == ["cov", "sketch", "pair"]
    bundle = poolexport.export(found.model, torch.randn(2, 3, 9, 8), tmp_path / "net", dynamic_shapes={0: "N", 2: "H"})
    x = drawn(3, 3, 11, 8).float()
    [answer] = poolexport.session(bundle.path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(answer, net(x).detach().numpy(), rtol=1e-3, atol=1e-4)
