"""However many threads a session has, native kernels answer the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ops.samples import samples
from ops.test_operators import one_operator
from poolexport.runtime import session
from poolexport_ops import Window, operators

WINDOW = Window.from_torch(2, 3, 2, 1)


@pytest.mark.parametrize("name", sorted(operators()))
def test_threads_never_change_a_bit(name):
    x = torch.randn(3, 3, 17, 19, generator=torch.Generator().manual_seed(0))
    for attributes, tensors in samples(name, WINDOW, x):
        model = one_operator(name, attributes, *tensors)
        feed = {f"x{i}": t.numpy() for i, t in enumerate(tensors)}
        first, *others = (session(model, threads=threads, kernels=True).run(None, feed) for threads in (1, 2, 8))
        for other in others:
            for a, b in zip(first, other):
                np.testing.assert_array_equal(a, b)
