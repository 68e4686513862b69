"""Bundles to hand on, each exported once."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import poolexport
from poolexport.nn import RoIMaxPool2d, SoftPool2d

#: These run in environments of their own, which hold other packages.
collect_ignore = ["backend", "ask.py", "read_service.py"]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A classifier of any number of images of any size."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), SoftPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    path = tmp_path_factory.mktemp("handoff") / "Soft net"
    poolexport.export(net.eval(), torch.randn(1, 3, 10, 8), path, dynamic_shapes={0: "N", 2: "H", 3: "W"})
    return path


@pytest.fixture(scope="session")
def regions(tmp_path_factory):
    """A pooling of regions: as many rows come out as there are boxes."""
    path = tmp_path_factory.mktemp("handoff") / "regions"
    boxes = torch.tensor([[0.0, 0, 0, 5, 5], [0, 2, 1, 7, 6]])
    shapes = ({2: "H", 3: "W"}, {0: "R"})
    poolexport.export(RoIMaxPool2d(2).eval(), (torch.randn(1, 2, 8, 8), boxes), path, dynamic_shapes=shapes)
    return path


def written(path, nodes, inputs, outputs):
    """An .onnx file of these nodes, by hand."""
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ports), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.save(model, path)
    return path


@pytest.fixture
def bundled(tmp_path):
    """Make a folder that looks like a bundle from nodes, with a sample."""

    def make(name, nodes, inputs, outputs, sample):
        folder = tmp_path / name
        folder.mkdir()
        written(folder / "model.onnx", nodes, inputs, outputs)
        np.savez(folder / "sample.npz", **{f"input/{key}": x for key, x in sample.items()})
        return folder

    return make
