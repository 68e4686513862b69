"""Epsilons are read where a node is one of the model's normalisations as it stands, and nowhere else."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import ParityError
from poolexport.proof.declared import epsilons
from poolexport.proof.locate import locate
from proof import nets
from proof.faults import attribute, plant, put, stripped


def norms(content: bytes) -> list[onnx.NodeProto]:
    return [node for node in onnx.load_from_string(content).graph.node if node.op_type == "BatchNormalization"]


@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("change", [lambda content: content, stripped], ids=["named", "stripped"])
def test_right_files_of_any_exporter_declare_what_the_model_takes(name, change, exported):
    model, inputs, content = exported(name)
    assert epsilons(change(content), model, inputs) == []


def test_norms_that_are_merged_with_a_convolution_are_none(exported):
    for name in ("merged", "older"):
        model, inputs, content = exported(name)
        assert norms(content) == []
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1.0
        try:
            assert epsilons(content, model, inputs) == []
        finally:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 1e-5


@pytest.mark.parametrize("change", [lambda content: content, stripped], ids=["named", "stripped"])
def test_another_epsilon_is_told_with_its_layer(change, exported):
    model, inputs, content = exported("compact")
    planted = plant(content, "epsilon", 1)
    [found] = epsilons(change(planted.content), model, inputs)
    assert (found.path, found.operator, found.found, found.wanted) == ("convolution2.1", "BatchNormalization", 0, 1e-5)
    assert found.judgement.grade == "DEGRADED"


def test_a_node_with_other_statistics_is_another_norm(exported):
    model, inputs, content = exported("compact")
    planted = plant(plant(content, "epsilon", 0).content, "scale", -1).content
    assert len(epsilons(planted, model, inputs)) == 1
    model = nets.NETS["compact"].model()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var[0] *= 1.5
    assert epsilons(planted, model, inputs) == []


class Twins(nn.Module):
    """Two norms with the same weights and statistics, and different epsilons; and a norm without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3, eps=1e-3)
        self.last = nn.LayerNorm(7, eps=1e-6)
        self.statistics = nn.ParameterList([torch.full((3,), 0.5 + k) for k in range(4)])

    def forward(self, x):
        return self.last(nn.functional.batch_norm(self.two(self.one(x)), *self.statistics, eps=1e-4))


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    torch.manual_seed(0)
    model, x = Twins().eval(), torch.randn(2, 3, 6, 7)
    path = tmp_path_factory.mktemp("twins") / "net.onnx"
    assert poolexport.export(model, x, path).manifest.verdict == "PASS"
    return model, x, path.read_bytes()


@pytest.mark.parametrize(
    ("place", "value", "path"),
    [(0, 1e-3, "one"), (1, 1e-5, "two"), (0, 1e-5, None), (2, 1e-5, ""), (1, 1.00001e-3, "two")],
)
def test_norms_that_are_alike_are_told_apart_by_their_paths(place, value, path, twins):
    model, x, content = twins
    changed = onnx.load_from_string(content)
    node = [node for node in changed.graph.node if node.op_type == "BatchNormalization"][place]
    put(node, "epsilon", value)
    found = epsilons(changed.SerializeToString(), model, [x])
    assert [each.path for each in found] == ([] if path is None else [path])


def test_an_epsilon_that_is_left_out_is_the_standards(twins):
    model, x, content = twins
    changed = onnx.load_from_string(content)
    for node in changed.graph.node:
        if node.op_type in ("BatchNormalization", "LayerNormalization"):
            node.attribute.remove(attribute(node, "epsilon"))
    assert {each.path for each in epsilons(changed.SerializeToString(), model, [x])} == {"two", "", "last"}


def test_bounds_of_the_user_replace_the_derived_one(exported, tmp_path):
    model, inputs, content = exported("compact")
    content = plant(content, "epsilon", 0).content
    assert epsilons(content, model, inputs, atol=1e-4) == []
    assert locate(content, model, inputs, atol=1.0).culprits == ()


def test_the_verdict_holds_a_failed_check(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval(), torch.randn(1, 1, 8, 8)
    path = tmp_path / "net.onnx"
    poolexport.export(model, x, path)
    path.write_bytes(plant(path.read_bytes(), "epsilon", 0).content)
    with pytest.raises(ParityError, match=r"though no answer shows it: 1, .*epsilon is 0 in the file") as caught:
        poolexport.verify(path, model, x)
    [failure] = caught.value.verdict.failures
    assert (failure.values, caught.value.verdict.word, caught.value.verdict.grade) == ("declared", "FAIL", "DEGRADED")
