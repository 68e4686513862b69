"""However many small matrices come at once, native kernels need room in proportion to them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ops.test_operators import one_operator
from poolexport.runtime import session

FEW, MANY = 100, 1000
#: Bytes that a crowd may take, whose numbers are less than a hundredth of them.
ROOM = 2 << 30


@contextmanager
def room(size: int) -> Iterator[None]:
    """Let the process have so many more bytes of addresses, and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("name", "attributes", "rest"),
    [
        ("MatrixLog", {}, [torch.tensor([1e-3])]),
        ("MatrixSqrt", {"iterations": 5, "norm": "trace"}, []),
        ("SubspaceBasis", {"k": 2}, []),
    ],
)
def test_a_crowd_of_small_matrices_is_answered_as_a_few_are(name, attributes, rest):
    factors = torch.randn(FEW, 4, 6, generator=torch.Generator().manual_seed(0))
    few = factors @ factors.transpose(1, 2)
    model = one_operator(name, attributes, few, *rest)
    opened = session(model, threads=1, kernels=True)
    feed = {f"x{i + 1}": t.numpy() for i, t in enumerate(rest)}
    (expected,) = opened.run(None, {"x0": few.numpy(), **feed})
    many = np.tile(few.numpy(), (MANY, 1, 1))
    with room(ROOM):
        (answer,) = opened.run(None, {"x0": many, **feed})
    np.testing.assert_array_equal(answer, np.tile(expected, (MANY, *(1,) * (expected.ndim - 1))))
