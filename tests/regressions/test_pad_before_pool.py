"""onnxruntime makes a border of zeros part of the pooling behind it, where it counts as -inf or not at all."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import poolexport

POOLS = {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2, count_include_pad=False)}


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("pool", POOLS)
def test_a_border_of_zeros_stays_apart(pool, opset, tmp_path):
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Dropout(), POOLS[pool]).eval()
    x = -torch.rand(1, 2, 7, 9)
    bundle = poolexport.export(model, x, tmp_path / "net.onnx", dynamic_shapes={2: "H", 3: "W"}, opset=opset)
    graph = onnx.load(bundle.model).graph
    pad = next(node for node in graph.node if node.op_type == "Pad")
    assert len(pad.input) == (4 if opset > 17 else 3)
    assert ("Concat" in [node.op_type for node in graph.node]) == (opset == 17)
    [answer] = poolexport.session(bundle.path).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(answer, model(x).numpy(), rtol=1e-6)
