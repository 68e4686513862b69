"""What the conformance suite cannot see of strip and coordinate pooling: long rows, and torch's own layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from poolexport.nn import CoordinatePool2d, StripPool2d
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport.runtime import session


def answers(layer: nn.Module, x: np.ndarray) -> list[np.ndarray]:
    """What onnxruntime answers for a layer exported on a small input."""
    axes = [{0: "N", 2: "H", 3: "W"}]
    graph = optimise(lower(export(prepare(layer.eval(), torch.zeros(2, x.shape[1], 5, 6), dynamic_shapes=axes))))
    return session(ir.to_proto(graph).SerializeToString(), threads=1).run(None, {"x": x})


@pytest.mark.parametrize("shape", [(1, 2, 3, 60_001), (1, 2, 60_001, 3)])
def test_long_rows_and_columns_keep_their_digits(shape):
    x = (1000 + np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    rows, columns = x.mean(axis=3, keepdims=True, dtype=np.float64), x.mean(axis=2, keepdims=True, dtype=np.float64)
    for result, truth in zip(answers(CoordinatePool2d(), x), (rows, columns), strict=True):
        np.testing.assert_allclose(result, truth, rtol=2e-7)
    [result] = answers(StripPool2d(), x)
    np.testing.assert_allclose(result, rows + columns, rtol=2e-7)


def test_means_are_torchs_adaptive_average():
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    rows, columns = CoordinatePool2d()(x)
    torch.testing.assert_close(rows, nn.AdaptiveAvgPool2d((None, 1))(x))
    torch.testing.assert_close(columns, nn.AdaptiveAvgPool2d((1, None))(x))
    torch.testing.assert_close(StripPool2d()(x), rows.expand_as(x) + columns.expand_as(x))
