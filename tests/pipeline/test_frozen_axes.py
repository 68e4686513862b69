"""An axis that is dynamic in name only is an error that names the module, and the line, that made it a constant."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poolexport
from poolexport.errors import ExportError, FrozenAxisError, InputError, ParityError
from poolexport.pipeline import export as export_stage

HW = {2: "H", 3: "W"}
IMAGE = torch.randn(2, 3, 14, 14)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """torch's exporter without our table, which is what can be wrong."""
    monkeypatch.setattr(export_stage, "translation_table", lambda **_: {})
    monkeypatch.setattr(export_stage, "tracing", lambda **_: nullcontext())


class Fn(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Net(nn.Module):
    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv", nn.Conv2d(3, 4, 3, padding=1))
        self.features.add_module("pool", pool)
        self.head = nn.ReLU()

    def forward(self, x):
        return self.head(self.features(x))


def fails(pool: nn.Module, tmp_path, error, axes=HW, **options):
    torch.manual_seed(0)
    with pytest.raises(error) as caught:
        poolexport.export(Net(pool).eval(), IMAGE, tmp_path / "net", dynamic_shapes=axes, **options)
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("layer", [nn.AdaptiveAvgPool2d((7, 7)), nn.AdaptiveMaxPool2d(2), nn.AdaptiveAvgPool2d(3)])
def test_adaptive_pooling_of_torch_is_named(layer, portable, tmp_path):
    error = fails(layer, tmp_path, FrozenAxisError, portable=portable)
    name = type(layer).__name__
    assert (error.axes, error.path, error.exit_code) == (("H", "W"), "features.pool", 1)
    assert not error.verdict.passed
    assert f"features.pool ({name})" in str(error)
    assert f"replace it by poolexport.nn.{name}, or leave H and W out of the dynamic axes" in str(error)
    if layer.output_size in ((7, 7), 2):
        assert "axis H of input 'x' is frozen at 14 and axis W of input 'x' is frozen at 14" in str(error)


def test_only_the_axes_that_are_frozen_are_told(tmp_path):
    error = fails(nn.AdaptiveAvgPool2d((None, 7)), tmp_path, FrozenAxisError)
    assert error.axes == ("W",)
    assert "axis W of input 'x' is frozen at 14 by features.pool (AdaptiveAvgPool2d)" in str(error)


def test_our_own_adaptive_pooling_follows_every_size(tmp_path):
    model = Net(poolexport.nn.AdaptiveAvgPool2d(7)).eval()
    bundle = poolexport.export(model, IMAGE, tmp_path / "net", dynamic_shapes=HW)
    assert bundle.manifest.verdict == "PASS"


def rows(x):
    y = x * 2
    parts = [y[:, :, i] for i in range(y.shape[2])]
    return torch.stack(parts, 2)


def branch(x):
    if x.shape[2] == 14:
        return x * 2
    return x


# fmt: off
FIXED = {
    "tensor-of-fixed-size": (lambda x: x + torch.zeros(1, 4, 14, 14), 0),
    "list-of-rows": (rows, 2),
    "branch": (branch, 1),
    "kernel-of-shape": (lambda x: F.avg_pool2d(x, x.shape[2:]), 0),
    "range": (lambda x: x + sum(range(x.shape[2])), 0),
    "list": (lambda x: x + len([0] * x.shape[2]), 0),
}
# fmt: on


@pytest.mark.parametrize("name", FIXED)
def test_code_that_fixes_an_axis_while_it_is_traced_is_named_with_its_line(name, tmp_path):
    function, offset = FIXED[name]
    error = fails(Fn(function), tmp_path, ExportError, axes={2: "H"})
    line = function.__code__.co_firstlineno + offset
    assert "axis H (number 2) of input 'x' cannot be dynamic: features.pool (Fn) at " in str(error)
    assert f"test_frozen_axes.py:{line} fixes it at its length of 14" in str(error)
    assert "leave H out of the dynamic axes" in str(error)


def test_a_layer_of_torch_that_fixes_an_axis_is_named_without_a_line(tmp_path):
    model = nn.Sequential(nn.ReLU(), nn.MaxPool1d(2)).eval()
    with pytest.raises(ExportError, match=r"1 \(MaxPool1d\) fixes it .* replace it by poolexport\.nn\.MaxPool1d"):
        poolexport.export(model, torch.randn(2, 3, 14), tmp_path / "net", dynamic_shapes={2: "L"})


def in_a_string(x):
    half = int(str(x.shape[2]).replace("s", "")) // 2 if not torch.onnx.is_in_onnx_export() else 7
    y = x + 1
    z = y[:, :, :half]
    return z * 3


def test_a_length_that_silently_became_a_number_is_named_with_its_line(tmp_path):
    error = fails(Fn(in_a_string), tmp_path, FrozenAxisError, axes={2: "H"})
    assert (error.axes, error.path) == (("H",), "features.pool")
    assert error.source.endswith(f"test_frozen_axes.py:{in_a_string.__code__.co_firstlineno + 3}")
    assert "x7x14 instead of " in str(error)
    assert "let it compute its lengths from x.shape" in str(error)


def scaled(x):
    scale = 14.0 if torch.onnx.is_in_onnx_export() else float(x.shape[2])
    return x / scale


def test_a_number_that_is_wrong_though_all_shapes_are_right_is_named(tmp_path):
    error = fails(Fn(scaled), tmp_path, FrozenAxisError)
    assert (error.axes, error.path) == (("H",), "features.pool")
    assert error.source.endswith(f"test_frozen_axes.py:{scaled.__code__.co_firstlineno + 2}")
    assert "its answer is off by" in str(error)


def test_a_model_that_takes_one_length_only_is_refused_with_the_module_that_fails(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 12 * 12, 3)).eval()
    with pytest.raises(ExportError, match=r"cannot be dynamic: 2 \(Linear\) fixes it .*; give it an input of one size"):
        poolexport.export(model, IMAGE, tmp_path / "net", dynamic_shapes={2: "H"})
    with pytest.raises(InputError, match=r"axis H of input 'input' is dynamic in name only: 2 \(Linear\) failed"):
        poolexport.export(model, IMAGE, tmp_path / "net", dynamic_shapes=HW)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :, : int(x.shape[2]) // 2],
        lambda x: x + torch.zeros(1, 4, *x.shape[2:]),
        lambda x: x / x.shape[2],
        lambda x: F.interpolate(x, size=(14, 14)),
        lambda x: x + torch.arange(x.shape[3]),
    ],
    ids=["half", "zeros", "divide", "fixed-output", "arange"],
)
def test_code_that_follows_the_shape_passes(function, tmp_path):
    bundle = poolexport.export(Net(Fn(function)).eval(), IMAGE, tmp_path / "net", dynamic_shapes=HW)
    assert bundle.manifest.verdict == "PASS"


def test_a_file_that_is_wrong_at_the_traced_length_is_no_frozen_axis(tmp_path):
    torch.manual_seed(0)
    model = Net(nn.AvgPool2d(2)).eval()
    bundle = poolexport.export(model, IMAGE, tmp_path / "net.onnx", dynamic_shapes=HW)
    proto = onnx.load(bundle.model)
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    onnx.save(proto, tmp_path / "bent.onnx")
    with pytest.raises(ParityError, match="does not compute what the model computes") as caught:
        poolexport.verify(tmp_path / "bent.onnx", model)
    assert not isinstance(caught.value, FrozenAxisError)


def test_looking_for_the_culprit_changes_nothing(tmp_path):
    model = Net(nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(7))).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(FrozenAxisError, match=r"features\.pool\.1"):
        poolexport.export(model, IMAGE, tmp_path / "net", dynamic_shapes=HW)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
