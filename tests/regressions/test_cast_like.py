"""A CastLike in a file made onnxruntime warn on the terminal every time the file was opened."""

from __future__ import annotations

import onnx
import torch
from torch import nn

import poolexport
from poolexport.nn import AdaptiveMaxPool2d


class Weighted(nn.Module):
    """Integers meet a float tensor: torch's exporter writes CastLike."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = AdaptiveMaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(self.pool(x), min=0, max=2)


def test_files_hold_no_cast_like(tmp_path, capfd):
    poolexport.export(Weighted().eval(), torch.rand(1, 3, 8, 8), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    assert "CastLike" not in {node.op_type for node in nodes}
    poolexport.session(tmp_path / "net.onnx")
    assert capfd.readouterr().err == ""
