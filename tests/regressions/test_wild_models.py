"""Models as people have them that once ended in an error of another module, or were told something untrue."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poolexport
from poolexport.errors import InputError
from poolexport.pipeline.prepare import prepare


class WithALength(nn.Module):
    def forward(self, x):
        return {"pooled": F.max_pool2d(x, 2), "nothing": None, "height": x.shape[2]}


class WithNone(nn.Module):
    def forward(self, x):
        return {"pooled": F.max_pool2d(x, 2), "nothing": None}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_of_the_older_kind_is_copied(tmp_path):
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.MaxPool2d(2)).eval()
    weight = model[0].weight
    axes = {0: "N", 2: "H", 3: "W"}
    bundle = poolexport.export(model, torch.randn(2, 3, 9, 11), tmp_path / "net.onnx", dynamic_shapes=axes)
    assert bundle.manifest.verdict == "PASS"
    assert model[0].weight is weight


def test_a_number_among_the_answers_is_refused(tmp_path):
    with pytest.raises(InputError, match="the model returns 2 values, of which 1 are tensors"):
        poolexport.export(
            WithALength().eval(), torch.randn(2, 3, 9, 11), tmp_path / "net.onnx", dynamic_shapes={2: "H"}
        )
    assert not list(tmp_path.iterdir())


def test_none_among_the_answers_is_left_out(tmp_path):
    bundle = poolexport.export(WithNone().eval(), torch.randn(2, 3, 9, 11), tmp_path / "net.onnx")
    assert [port.name for port in bundle.manifest.outputs] == ["output"]


def test_axes_of_one_name_have_one_length():
    with pytest.raises(InputError, match=re.escape("two axes are called S, which says that they are equal")):
        prepare(nn.MaxPool2d(2).eval(), torch.randn(2, 3, 9, 11), dynamic_shapes={2: "S", 3: "S"})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d(3, 3, 3, device="meta"), "weight is on the device 'meta' and holds no numbers"),
        (nn.LazyConv2d(3, 3), "weight has no shape before the first input"),
    ],
)
def test_weights_without_numbers_are_named(model, message):
    with pytest.raises(InputError, match=message):
        prepare(model.eval(), torch.randn(2, 3, 9, 11))
