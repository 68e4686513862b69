"""Dilated windows that reach over a border: their divisors go up and down, and the kernel took one for all."""

from __future__ import annotations

import numpy as np
import torch

from ops.test_operators import run_onnx
from poolexport_ops import Window
from poolexport_ops.average_pool import average_pool


def test_every_window_has_its_own_divisor():
    window = Window((2, 5), (3, 1), (0, 1, 1, 3), (1, 2))
    attributes = {**window.onnx(), "counted_pads": [0, 0, 0, 0], "divisor_override": 0}
    x = torch.arange(60.0).reshape(1, 1, 6, 10)
    [answer] = run_onnx("AveragePool", attributes, x, kernels=True)
    np.testing.assert_allclose(answer, average_pool(x, **attributes).numpy(), rtol=1e-6)
