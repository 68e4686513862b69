"""Resizing by nearest cells follows torch at every size; onnxruntime reads other cells where a step is rounded."""

import itertools

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

import poolexport


class Resized(torch.nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.interpolate(x, **self.options)


OPTIONS = [
    {"size": (12, 7)},
    {"scale_factor": (2.0, 0.6)},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
    {"scale_factor": (0.5, 3.0)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_size_is_torchs(options, tmp_path):
    model = Resized(options).eval()
    poolexport.export(model, torch.randn(2, 1, 12, 12), tmp_path / "net", dynamic_shapes={0: "N", 2: "H", 3: "W"})
    session = poolexport.session(tmp_path / "net")
    for height, width in itertools.product((2, 5, 12, 20, 31, 40), (4, 9, 20, 35, 60)):
        x = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_array_equal(found, model(x).numpy(), err_msg=f"{height}x{width}")


def test_onnxruntimes_own_resize_still_differs():
    """The reason for all this: where it no longer differs, the entry of the table can go."""
    program = torch.onnx.export(Resized({"size": (12, 7)}), (torch.randn(1, 1, 20, 7),), dynamo=True, verbose=False)
    x = np.arange(140, dtype=np.float32).reshape(1, 1, 20, 7)
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x})
    assert not np.array_equal(found, Resized({"size": (12, 7)})(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize(("shape", "size"), [((1, 1, 20), (12,)), ((1, 1, 20, 5, 6), (12, 7, 4))])
def test_other_ranks(shape, size, tmp_path):
    axes = {axis: f"d{axis}" for axis in range(2, len(shape))}
    poolexport.export(Resized({"size": size}).eval(), torch.randn(shape), tmp_path / "net", dynamic_shapes=axes)
    session = poolexport.session(tmp_path / "net")
    x = torch.randn([n + 2 * k if k > 1 else n for k, n in enumerate(shape)])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_array_equal(found, Resized({"size": size})(x).numpy())
