"""Every axis that moves alone meets normal values and ties, however many axes there are."""

import itertools

import pytest
import torch

import poolexport


@pytest.mark.parametrize("axes", [{2: "H", 3: "W"}, {0: "N", 2: "H", 3: "W"}], ids=len)
def test_no_axis_meets_one_kind_of_values_only(axes, tmp_path):
    shape = (2, 1, 8, 9)
    model = torch.nn.MaxPool2d(2).eval()
    bundle = poolexport.export(model, torch.randn(shape), tmp_path / "net.onnx", dynamic_shapes=axes)
    met = set()
    for check in poolexport.verify(bundle.path, model, torch.randn(shape)).checks:
        moved = [axis for axis in axes if check.shapes[0][axis] != shape[axis]]
        met |= {(axis, check.values) for axis in moved if len(moved) == 1}
    assert met == set(itertools.product(axes, ("normal", "ties")))
