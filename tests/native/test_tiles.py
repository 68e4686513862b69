"""Maps so wide, and windows so long, that native kernels compute a row of outputs in several pieces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ops.samples import samples
from ops.test_operators import as_tuple, one_operator, require_right
from poolexport.runtime import session
from poolexport_ops import Window, operators

#: Windows and maps where a piece of a row, with all cells that it reaches, is as long as the whole row of outputs.
SEAMS = {
    "two cells far apart": (Window.from_torch(1, 2, 1, 0, 800), (2, 3, 2400)),
    "in a row of a map": (Window.from_torch(2, (1, 2), 1, 0, (1, 700)), (1, 3, 1, 2100)),
    "with a stride": (Window.from_torch(1, 3, 2, 0, 500), (2, 3, 2600)),
    "wider than a piece": (Window.from_torch(1, 2, 1, 0, 4080), (1, 3, 8176)),
    "many cells": (Window.from_torch(1, 801, 1), (1, 3, 2400)),
    "a large square": (Window.from_torch(2, 28, 2), (1, 3, 77, 77)),
}
#: Operators that sort their cells are not for windows of hundreds.
SORTING = {"KMaxPool", "OrdinalPool", "SortedWeightedPool"}
CALLS = [
    pytest.param(name, window, shape, id=f"{name}, {seam}")
    for name, operator in sorted(operators().items())
    if {"kernel_shape", "strides"} <= set(operator.attributes)
    for seam, (window, shape) in SEAMS.items()
    if window.size < 10 or name not in SORTING
]
GUARD = 1 << 12


def answers(model: bytes, feed: dict[str, np.ndarray], shapes: list[tuple[int, ...]], threads: int) -> list[np.ndarray]:
    """What the kernels answer, in memory of ours that goes on behind the outputs."""
    opened = session(model, threads=threads, kernels=True)
    binding = opened.io_binding()
    for name, values in feed.items():
        binding.bind_cpu_input(name, values)
    memory = []
    for port, shape in zip(opened.get_outputs(), shapes):
        dtype = np.int64 if port.type == "tensor(int64)" else np.float32
        memory.append(np.full(int(np.prod(shape)) + GUARD, 7, dtype))
        binding.bind_output(port.name, "cpu", 0, dtype, list(shape), memory[-1].ctypes.data)
    opened.run_with_iobinding(binding)
    assert all((each[-GUARD:] == 7).all() for each in memory), "something was written behind the output"
    return [each[:-GUARD].reshape(shape) for each, shape in zip(memory, shapes)]


@pytest.mark.parametrize(("name", "window", "shape"), CALLS)
def test_pieces_of_a_row_fit_together(name, window, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for attributes, tensors in itertools.islice(samples(name, window, x), 2):
        shapes = [tuple(t.shape) for t in as_tuple(operators()[name](*tensors, **attributes))]
        model = one_operator(name, attributes, *tensors)
        feed = {f"x{i}": t.contiguous().numpy() for i, t in enumerate(tensors)}
        first, second = (answers(model, feed, shapes, threads) for threads in (1, 2))
        require_right({"kernel": first}, name, attributes, *tensors)
        for one, two in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, two)
