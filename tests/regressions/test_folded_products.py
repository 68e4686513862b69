"""A constant behind a float64 product was folded into it as a float32: answers in float64 had seven digits."""

from __future__ import annotations

import pytest
import torch

import poolexport
from poolexport.nn import BilinearPool2d, ImprovedBilinearPool2d, ISQRTCOVPool2d, O2PPool2d, SCCovPool2d

LAYERS = (
    ISQRTCOVPool2d(is_sqrt=False),
    O2PPool2d(log=False),
    ImprovedBilinearPool2d(),
    SCCovPool2d.survey(1e-3),
    BilinearPool2d("mean", "none", norm="none"),
)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_products_in_float64_are_divided_in_float64(layer, tmp_path):
    # Nine locations, known before the graph runs: a ninth is no float32.
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bundle = poolexport.export(layer.eval(), x, tmp_path / "net.onnx")
    [answer] = poolexport.session(bundle.path).run(None, {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), layer(x), rtol=1e-13, atol=1e-13)
