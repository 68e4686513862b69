"""What the first stage refuses, and that it names the place."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poolexport
from poolexport.errors import InputError, ModeError, RandomnessError
from poolexport.pipeline.prepare import prepare

IMAGE = torch.randn(2, 1, 12, 14)


class Block(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), Block(inner), nn.Flatten()).eval()


def test_model_in_training_mode_is_refused():
    with pytest.raises(ModeError, match=r"the model is in training mode; call model.eval\(\)"):
        prepare(network(nn.ReLU()).train(), IMAGE)


def test_dropout_child_left_in_training_mode_is_named():
    model = network(nn.Dropout(0.5))
    model[1].inner.train()
    with pytest.raises(ModeError, match=r"1\.inner \(Dropout\)"):
        prepare(model, IMAGE)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(x, 0.5),
        lambda x: x + torch.rand(()),
        lambda x: x * random.choice([0.5, 1.0, 2.0, 3.0]),
        lambda x: x * float(np.random.rand()),  # noqa: NPY002
        lambda x: x + torch.randn_like(x),
    ],
    ids=["F.dropout", "torch.rand", "random", "numpy", "randn_like"],
)
def test_randomness_in_eval_is_refused_and_its_module_named(function):
    with pytest.raises(RandomnessError, match=r"1\.inner \(Functional\)"):
        prepare(network(Functional(function)), IMAGE)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_answer_that_depends_on_earlier_calls_is_told_from_randomness():
    model = network(Counts())
    with pytest.raises(RandomnessError, match=r"1\.inner \(Counts\): its answer depends on earlier calls"):
        prepare(model, IMAGE)
    assert model[1].inner.calls == 0


def test_compiled_models_are_refused():
    with pytest.raises(InputError, match="compiled TorchScript"):
        prepare(torch.jit.trace(nn.ReLU().eval(), IMAGE), IMAGE)


def test_error_shows_the_shape_that_was_given():
    with pytest.raises(InputError, match="input of shape 1x3x12x14"):
        prepare(network(nn.ReLU()), torch.randn(1, 3, 12, 14), dynamic_shapes={0: "N"})


def test_stochastic_layer_in_eval_is_not_random():
    prepared = prepare(network(poolexport.nn.StochasticPool2d(2)), IMAGE)
    assert prepared.inference_rules == {"1.inner": "expectation: probability-weighted average"}


def test_random_states_and_buffers_are_left_alone():
    model = network(nn.BatchNorm2d(2))
    python, legacy, state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    before = {name: value.clone() for name, value in model.state_dict().items()}
    poolexport_prepared = prepare(model, IMAGE)
    assert poolexport_prepared.original is model
    assert poolexport_prepared.model is not model
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 12, 14), r"1\.inner \(SoftPool2d\).*expects an input of shape \(N, C, H, W\)"),
        ((1, 1, 3, 14), r"1\.inner \(SoftPool2d\).*the window does not fit: spatial axis 0 has length 1"),
        ((1, 3, 12, 14), r"0 \(Conv2d\) failed on an input of shape 1x3x12x14"),
    ],
    ids=["rank", "kernel", "channels"],
)
def test_failing_module_is_named(shape, message):
    with pytest.raises(InputError, match=message):
        prepare(network(poolexport.nn.SoftPool2d(2)), torch.randn(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 7}, "opset 7 is not supported; choose one from 17 to 28"),
        ({"dynamic_shapes": {"y": {0: "N"}}}, r"unknown inputs \['y'\]; the inputs are \['input'\]"),
        ({"dynamic_shapes": {7: "N"}}, "there is no axis 7"),
        ({"dynamic_shapes": [{0: "N"}, {0: "N"}]}, "2 entries for 1 inputs"),
        ({"input_names": ["a", "b"]}, "1 inputs, but 2 input names"),
        ({"output_names": ["a", "b"]}, "1 outputs, but 2 output names"),
        ({"output_names": ["input"]}, "input and output names must differ"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        prepare(network(nn.ReLU()), IMAGE, **arguments)


@pytest.mark.parametrize("model", [lambda x: x, "net", None])
def test_what_is_not_a_module_is_refused(model):
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module"):
        prepare(model, IMAGE)


def test_arguments_that_are_no_tensors_are_refused():
    with pytest.raises(InputError, match=r"got \['ndarray'\]"):
        prepare(network(nn.ReLU()), [np.zeros((1, 1, 4, 4))])
    with pytest.raises(InputError, match="got nothing"):
        prepare(network(nn.ReLU()), [])


def test_dynamic_axis_of_length_one_is_traced_at_two():
    prepared = prepare(network(nn.ReLU()), IMAGE[:1], dynamic_shapes={0: "N", 2: "H"})
    assert prepared.args[0].shape == (2, 1, 12, 14)
    assert prepared.axes == ({0: "N", 2: "H"},)
