"""Models that return an input, or one tensor twice, lost the names of their inputs and outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import poolexport


class ReturnsItsInput(nn.Module):
    def forward(self, x):
        return x


class ReturnsInputAndMore(nn.Module):
    def forward(self, x):
        return x, x * 2


class ReturnsTwice(nn.Module):
    def forward(self, x):
        y = x + 1
        return y, y, x


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("model", [ReturnsItsInput(), ReturnsInputAndMore(), ReturnsTwice(), nn.Identity()])
def test_ports_keep_their_names_and_values(model, portable, tmp_path):
    x = torch.randn(2, 3)
    bundle = poolexport.export(model.eval(), x, tmp_path / "net", input_names=["img"], portable=portable)
    graph = onnx.load(bundle.model).graph
    answers = model(x)
    answers = answers if isinstance(answers, tuple) else (answers,)
    assert [i.name for i in graph.input] == ["img"]
    count = len(answers)
    assert [o.name for o in graph.output] == (["output"] if count == 1 else [f"output_{i}" for i in range(count)])
    for result, answer in zip(poolexport.session(bundle.path).run(None, {"img": x.numpy()}), answers, strict=True):
        np.testing.assert_array_equal(result, answer.numpy())
