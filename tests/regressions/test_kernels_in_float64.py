"""A float64 node between casts, of known shape, opens with native kernels: the shape inferred for it is of float64."""

from __future__ import annotations

import onnx
import torch

from ops.test_operators import one_operator
from poolexport.runtime import session


def test_a_float64_node_of_known_shape_opens():
    x = torch.ones(1, 2, 4, 4, dtype=torch.float64)
    content = one_operator("GlobalAveragePool", {"axes": [2, 3], "keepdims": 1}, x)
    model = onnx.load_model_from_string(content)
    for dimension, length in zip(model.graph.input[0].type.tensor_type.shape.dim, x.shape):
        dimension.dim_value = length
    answer = session(model.SerializeToString(), threads=1, kernels=True).run(None, {"x0": x.numpy()})
    assert answer[0].dtype == "float64"
    assert answer[0].shape == (1, 2, 1, 1)
