"""Window geometry: ceil mode is a constant end pad."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from poolexport_ops import Window, operators


def ceil_length(n: int, k: int, s: int, p: int, d: int) -> int:
    """Output length in ceil mode as torch counts it."""
    return F.max_pool1d(torch.zeros(1, 1, n), k, s, p, d, ceil_mode=True).shape[-1]


def test_end_pad_gives_torchs_ceil_mode_for_every_length():
    tried = 0
    for k, s, p, d in itertools.product(range(1, 6), range(1, 6), range(3), range(1, 4)):
        if p > k // 2:
            continue
        window = Window.from_torch(1, k, s, p, d, ceil_mode=True)
        for n in range(1, 15):
            try:
                expected = ceil_length(n, k, s, p, d)
            except RuntimeError:
                assert window.output_lengths([n])[0] < 1, (n, k, s, p, d)
                continue
            assert window.output_lengths([n]) == (expected,), (n, k, s, p, d)
            tried += 1
    assert tried > 1500


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_cells_are_the_windows_that_torch_pools(ceil_mode):
    x = torch.randn(2, 3, 8, 9)
    for k, s, p, d in itertools.product(((2, 3), 3), (1, 2), (0, 1), (1, 2)):
        window = Window.from_torch(2, k, s, p, d, ceil_mode)
        expected = F.max_pool2d(x, k, s, p, d, ceil_mode)
        assert torch.equal(window.cells(x, -float("inf")).amax(-1), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be a positive int or a tuple of 2, got 0"),
        ({"kernel_size": 2.0}, "kernel_size must be a positive int"),
        ({"kernel_size": True}, "kernel_size must be a positive int"),
        ({"kernel_size": (2,)}, "a tuple of 2, got \\(2,\\)"),
        ({"kernel_size": 2, "stride": 0}, "stride must be a positive int"),
        ({"kernel_size": 2, "padding": -1}, "padding must be a non-negative int"),
        ({"kernel_size": 3, "padding": 2}, "at most half of the kernel's extent \\(1\\), got 2"),
        ({"kernel_size": 3, "dilation": 0}, "dilation must be a positive int"),
    ],
)
def test_bad_arguments_are_refused_with_what_was_found(arguments, message):
    with pytest.raises(ValueError, match=message):
        Window.from_torch(2, **arguments)


def test_operators_are_named_like_their_files():
    for name, operator in operators().items():
        module = operator.torch_form.__module__.rpartition(".")[2]
        assert module.replace("_", "") == name.lower()
        assert operator.__doc__, f"{name} does not say what it computes"
