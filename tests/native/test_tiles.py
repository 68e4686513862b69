"""Maps so wide, and windows so long, that native kernels compute a row of outputs in several pieces."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from ops.samples import samples
from ops.test_operators import as_tuple, one_operator
from poolexport.runtime import session
from poolexport.tolerance import judge
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
WINDOWED = [
    name
    for name in sorted(operators())
    if {"kernel_shape", "dilations"} <= set(operators()[name].attributes) and not name.startswith("Same")
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


@pytest.mark.parametrize("seam", SEAMS)
@pytest.mark.parametrize("name", WINDOWED)
def test_pieces_of_a_row_fit_together(name, seam):
    window, shape = SEAMS[seam]
    if name in SORTING and window.size > 9:
        return
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    operator = operators()[name]
    for attributes, tensors in itertools.islice(samples(name, window, x), 2):
        peers, truths = (as_tuple(operator(*these, **attributes)) for these in (tensors, [doubled(t) for t in tensors]))
        feed = {f"x{i}": t.contiguous().numpy() for i, t in enumerate(tensors)}
        model = one_operator(name, attributes, *tensors)
        shapes: list[Any] = [tuple(t.shape) for t in peers]
        first, second = (answers(model, feed, shapes, threads) for threads in (1, 2))
        for result, other, peer, truth in zip(first, second, peers, truths, strict=True):
            judgement = judge(result, peer.numpy(), truth.numpy(), factor=2.0)
            assert judgement.passed, f"{attributes}: {judgement.reason}"
            np.testing.assert_array_equal(result, other)


def doubled(t: torch.Tensor) -> torch.Tensor:
    return t.double() if t.is_floating_point() else t
