"""What torch's exporter cannot do is said with the module that asked for it, and without an address in memory."""

import math

import pytest
import torch
from onnx import TensorProto, helper, save

import poolexport
from poolexport.errors import ExportError


class Shifted(torch.nn.Module):
    def forward(self, x):
        return torch.fft.fftshift(x)


class Scaled(torch.nn.Module):
    def forward(self, x):
        return x * math.sqrt(x.shape[2])


class Median(torch.nn.Module):
    def forward(self, x):
        return x.median(-1)[0]


@pytest.mark.parametrize(("module", "said"), [(Shifted, "list"), (Scaled, "sqrt"), (Median, r"aten\.median")])
def test_the_module_is_named(module, said, tmp_path):
    net = torch.nn.Sequential(torch.nn.ReLU(), module()).eval()
    with pytest.raises(ExportError, match=said) as caught:
        poolexport.export(net, torch.randn(2, 3, 8, 8), tmp_path / "net", dynamic_shapes={0: "N", 2: "H", 3: "W"})
    assert str(caught.value).startswith("1: ")
    assert "0x" not in str(caught.value)


def test_sequences_among_the_outputs_are_compared(tmp_path):
    split = helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1, keepdims=1)
    ports = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
        helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None),
    )
    graph = helper.make_graph([split], "g", [ports[0]], [ports[1]])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "in.onnx")
    assert poolexport.api.inline(tmp_path / "in.onnx", tmp_path / "out.onnx").compared > 0
