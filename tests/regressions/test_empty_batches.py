"""Windows as large as the map, reductions and unpooling once gave an empty batch another shape, or none."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poolexport


class Whole(nn.Module):
    def forward(self, x):
        rows = F.max_pool2d(x, (1, x.shape[3]))
        return (
            F.avg_pool2d(x, x.shape[2:]),
            rows,
            F.avg_pool2d(x, x.shape[2:], divisor_override=3),
            x.amax((-2, -1)),
            x.mean(-1),
        )


class Unpooled(nn.Module):
    def forward(self, x):
        y, places = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(y, places, 2, output_size=x.shape)


@pytest.mark.parametrize("layer", [Whole, Unpooled])
def test_an_empty_batch_keeps_its_shape(layer, tmp_path):
    model, axes = layer().eval(), {0: "N", 2: "H", 3: "W"}
    bundle = poolexport.export(model, torch.randn(2, 3, 6, 8), tmp_path / "net.onnx", dynamic_shapes=axes, verify=False)
    answers = poolexport.session(bundle.path).run(None, {"x": torch.zeros(0, 3, 5, 7).numpy()})
    wanted = model(torch.zeros(0, 3, 5, 7))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert [answer.shape for answer in answers] == [tuple(y.shape) for y in wanted]
