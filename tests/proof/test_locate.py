"""A planted fault is found in the layer that it was planted in, whatever is wrong besides; a right file has none."""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import poolexport
from poolexport.errors import InputError
from poolexport.proof.locate import locate
from proof import nets
from proof.faults import FAULTS, plant, stripped

#: Network, fault, which of the places for it, and the module that has to be named.
PLANTED = [
    ("compact", "pads", 0, "convolution1.0"),
    ("compact", "transposed", 1, "convolution2.0"),
    ("compact", "epsilon", 0, "convolution1.1"),
    ("compact", "body", 1, "pool2"),
    ("compact", "divisor", 0, "head"),
    ("compact", "rectifier", 1, "convolution2.2"),
    ("compact", "bias", -1, "classifier"),
    ("compact", "stride", 1, "convolution2.0"),
    ("residual", "scale", 1, "stem.1"),
    ("residual", "sign", -1, "block2"),
    ("residual", "half", 2, "pool1"),
    ("residual", "pads", -1, "block2.residual.1"),
    ("residual", "stride", 1, "block1.residual.0.0"),
    ("covariance", "one_bit", 1, "convolution2.0"),
    ("covariance", "ceil_mode", 0, "pool1"),
    ("covariance", "body", 1, "head"),
    ("branches", "include_pad", 0, ""),
    ("branches", "include_pad", 1, ""),
    ("branches", "ceil_mode", 0, ""),
    ("branches", "axis", 0, ""),
    ("branches", "divisor", 0, ""),
    ("branches", "sign", -1, ""),
    ("branches", "one_bit", 1, "right"),
    ("branches", "transposed", 2, "shared"),
    ("branches", "rectifier", 1, "act"),
    ("branches", "scale", -1, "score"),
    ("merged", "include_pad", 1, "pool"),
    ("merged", "scale", 0, "norm1"),
    ("merged", "bias", 1, "norm2"),
    ("merged", "stride", 1, "pool"),
    ("older", "pads", 0, "conv1"),
    ("older", "one_bit", 1, "conv2"),
    ("older", "include_pad", 0, "pool"),
    ("older", "divisor", 0, ""),
    ("deep", "one_bit", 30, "blocks.30.0"),
    ("deep", "sign", 59, "blocks.59.0"),
]


@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("change", [lambda content: content, stripped], ids=["named", "stripped"])
def test_a_right_file_has_no_culprits(name, change, exported):
    model, inputs, content = exported(name)
    located = locate(change(content), model, inputs)
    assert located.culprits == ()
    assert len(located.steps) >= 8
    assert located.runs == 2


@pytest.mark.parametrize(("name", "fault", "place", "path"), PLANTED)
def test_the_right_layer_is_named_first(name, fault, place, path, exported):
    model, inputs, content = exported(name)
    planted = plant(content, fault, place)
    located = locate(planted.content, model, inputs)
    first = located.culprits[0]
    assert first.path == path
    assert planted.node in {node.name for node in first.nodes}
    assert not first.judgement.passed
    assert {culprit.path for culprit in located.culprits} == {path}


@pytest.mark.parametrize(
    ("name", "fault", "place", "path"),
    # What is put between two layers of a file that names none may be either's.
    [each for each in PLANTED if each[1] not in ("half", "sign") or each[3] in ("", "block2")],
)
def test_layers_are_named_from_files_without_names(name, fault, place, path, exported):
    model, inputs, content = exported(name)
    planted = plant(content, fault, place)
    located = locate(stripped(planted.content), model, inputs)
    # Torch's optimiser has merged this convolution with its norm, and nothing says which of them it is.
    expected = {"norm1": "conv1", "norm2": "conv2"}.get(path, path)
    assert located.culprits[0].path == expected
    assert path in located.culprits[0].paths


def test_many_kinds_of_faults_and_networks_are_planted():
    assert len({fault for _, fault, _, _ in PLANTED}) >= 12
    assert {fault for _, fault, _, _ in PLANTED} == set(FAULTS)
    assert {name for name, *_ in PLANTED} == set(nets.NETS)


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        ("compact", [("epsilon", 0, "convolution1.1"), ("divisor", 0, "head")]),
        ("residual", [("pads", 0, "stem.0"), ("one_bit", 1, "block1.residual.0.0"), ("bias", -1, "classifier")]),
        ("branches", [("transposed", 0, "left"), ("scale", 1, "right")]),
        ("residual", [("scale", 0, "stem.0"), ("bias", 0, "stem.1")]),
    ],
)
def test_independent_culprits_are_all_named(name, faults, exported):
    """One behind the other, side by side, and next to each other."""
    model, inputs, content = exported(name)
    for fault, place, _ in faults:
        content = plant(content, fault, place).content
    located = locate(content, model, inputs)
    assert [culprit.path for culprit in located.culprits] == [path for _, _, path in faults]


def test_a_culprit_tells_what_it_creates_and_what_it_inherits(exported):
    model, inputs, content = exported("compact")
    content = plant(plant(content, "bias", -1).content, "scale", 0).content
    first, last = locate(content, model, inputs).culprits
    assert (first.path, first.layers, first.operator) == ("convolution1.0", ("Conv2d",), "Conv")
    assert first.inherited == 0.0
    assert last.inherited > 1e-5
    largest = model.state_dict()["classifier.bias"].abs().max().item()
    assert last.judgement.error == pytest.approx(largest, rel=1e-4)
    assert last.judgement.bound < 1e-5 < last.judgement.error
    told = str(last)
    assert told.startswith("classifier (Linear)")
    assert "node_linear (Gemm): error" in told
    assert "its inputs were off by" in told
    assert "\n" not in told


def test_a_hundred_layers_take_few_runs(exported):
    model, inputs, content = exported("deep")
    planted = plant(plant(content, "bias", 40).content, "scale", 3).content
    located = locate(planted, model, inputs)
    assert [culprit.path for culprit in located.culprits] == ["blocks.3.0", "blocks.40.0"]
    assert len(located.steps) > 100
    assert located.runs <= math.log2(len(located.steps))


def test_memory_is_bounded_by_judging_in_turns(exported):
    model, inputs, content = exported("deep")
    planted = plant(content, "one_bit", 30).content
    whole, turns = locate(planted, model, inputs), locate(planted, model, inputs, budget=50_000)
    assert turns.runs > whole.runs
    assert turns.culprits == whole.culprits
    assert [step.judgement for step in turns.steps] == [step.judgement for step in whole.steps]


def test_a_file_that_fails_on_the_way_takes_the_logarithm_of_its_length(exported):
    model, inputs, content = exported("deep")
    broken = onnx.load_from_string(content)
    place = next(i for i, node in enumerate(broken.graph.node) if node.name == "node_conv2d_25")
    node = broken.graph.node.pop(place)
    # A shape that fits nowhere, known at run time only.
    broken.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    broken.graph.initializer.append(numpy_helper.from_array(np.array([7, 11, 1, 1]), "lengths"))
    new = [
        helper.make_node("ReduceMax", [node.input[0]], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "zero"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["whole"], to=onnx.TensorProto.INT64),
        helper.make_node("Add", ["whole", "lengths"], ["shape"]),
        helper.make_node("Reshape", [node.input[0], "shape"], [node.output[0]], node.name),
    ]
    for each in reversed(new):
        each.metadata_props.extend(node.metadata_props)
        broken.graph.node.insert(place, each)
    located = locate(broken.SerializeToString(), model, inputs)
    assert located.culprits[0].path == "blocks.25.0"
    assert "onnxruntime failed" in located.culprits[0].judgement.reason
    assert located.culprits[0].inherited is not None
    assert located.runs <= 4 * math.log2(len(located.steps))


@pytest.mark.parametrize(("operator", "culprits"), [("Relu", []), ("LeakyRelu", ["convolution2.2"])])
def test_a_branch_that_takes_values_from_outside_is_one_node(operator, culprits, exported):
    model, inputs, content = exported("compact")
    branching = onnx.load_from_string(content)
    place = next(i for i, node in enumerate(branching.graph.node) if node.name == "node_relu_1")
    node = branching.graph.node.pop(place)
    branches = [
        helper.make_graph(
            [helper.make_node(each, [node.input[0]], [each])],
            each,
            [],
            [helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, None)],
        )
        for each in (operator, "Identity")
    ]
    branching.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    then, other = branches
    choice = helper.make_node("If", ["always"], [node.output[0]], node.name, then_branch=then, else_branch=other)
    choice.metadata_props.extend(node.metadata_props)
    branching.graph.node.insert(place, choice)
    located = locate(branching.SerializeToString(), model, inputs)
    assert [culprit.path for culprit in located.culprits] == culprits
    assert "If" in {step.operator for step in located.steps}


def test_weights_beside_the_file_are_found(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 64, 5), nn.ReLU()).eval()
    x = torch.randn(1, 1, 6, 7)
    bundle = poolexport.export(model, x, tmp_path / "net", external_data=True, verify=False)
    assert (bundle.path / "model.onnx.data").stat().st_size >= 6400
    located = locate(bundle.path, model, [x])
    assert (located.culprits, len(located.steps)) == ((), 2)
    with torch.no_grad():
        model[0].bias += 1
    assert [culprit.path for culprit in locate(bundle.path, model, [x]).culprits] == ["0"]


def test_the_model_and_random_states_stay_as_they_are(exported):
    model, inputs, content = exported("residual")
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    locate(plant(content, "pads", 0).content, model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_badly_conditioned_layers_are_not_accused(tmp_path):
    """A root of differences of nearly equal numbers magnifies whatever rounding came before; it makes none itself."""

    class Root(nn.Module):
        def forward(self, x):
            y = x.mean((2, 3))
            y = (y + 1e4) - 1e4
            return torch.sign(y) * torch.sqrt(torch.abs(y))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Root(), nn.Linear(4, 3)).eval()
    x = torch.randn(2, 1, 9, 9)
    bundle = poolexport.export(model, x, tmp_path / "net.onnx", verify=False)
    assert locate(bundle.path, model, [x]).culprits == ()
    content = plant(bundle.model.read_bytes(), "scale", 0).content
    assert [culprit.path for culprit in locate(content, model, [x]).culprits] == ["0"]


def test_bounds_of_the_user_replace_the_derived_one(exported):
    model, inputs, content = exported("compact")
    planted = plant(content, "scale", 0).content
    assert locate(planted, model, inputs, rtol=0.1).culprits == ()
    assert locate(planted, model, inputs, rtol=1e-5).culprits[0].path == "convolution1.0"


def test_what_does_not_belong_together_is_refused(exported):
    model, inputs, content = exported("compact")
    with pytest.raises(InputError, match="the file has 1 inputs"):
        locate(content, model, [*inputs, *inputs])
    other = nets.NETS["compact"].model()
    other.convolution1[0] = nn.Conv2d(2, 4, 3)
    with pytest.raises(InputError, match=r"convolution1\.0 \(Conv2d\) failed on an input"):
        locate(content, other, inputs)
    with pytest.raises(InputError, match="factor must be a positive number"):
        locate(content, model, inputs, factor=0.0)
    with pytest.raises(InputError, match="there is no model at"):
        locate("nowhere.onnx", model, inputs)
