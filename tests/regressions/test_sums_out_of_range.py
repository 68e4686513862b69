"""Products of channels whose sums pass the range of float32 on the way: infinite where the sum is, and nowhere NaN."""

import numpy as np
import pytest
import torch

from ops.test_operators import run_onnx
from poolexport.tolerance import judge

BELOW = np.float32(-np.inf)
#: Products of the channels are +-1e40: the first two rows add up to 0, the others to -2e40.
X = torch.tensor([[[1e20, 1e20, 1e20, 1e20], [1e20, -1e20, 1e20, -1e20], [-1e20, -1e20, -1e20, 1e20]]])
SUMS = np.array([[[np.inf, 0.0, BELOW], [0.0, np.inf, BELOW], [BELOW, BELOW, np.inf]]])


@pytest.mark.parametrize(
    ("name", "attributes", "tensors", "expected"),
    [
        ("SecondMoment", {"centered": 0, "divisor": "one"}, (X,), SUMS),
        ("Gram", {}, (X, X), SUMS),
        ("SubsampledGram", {}, (X[:, :, None], X[:, :, None]), SUMS),
        (
            "CompactBilinear",
            {"output_dim": 9, "pooled": 1, "by": "pairs"},
            (X, X, torch.tensor([0, 3, 6]), torch.ones(3), torch.arange(3), torch.ones(3)),
            SUMS.reshape(1, 9),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sums_that_come_back_are_numbers(name, attributes, tensors, expected):
    np.testing.assert_array_equal(run_onnx(name, attributes, *tensors, kernels=True)[0], expected)


def test_a_mean_that_is_in_range_is_a_number():
    x = 1.5e19 * torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(0))
    (answer,) = run_onnx("SecondMoment", {"centered": 1, "divisor": "count"}, x, kernels=True)
    truth = x.double().squeeze(0).cov(correction=0).numpy()
    assert np.abs(truth).max() > 2e38
    np.testing.assert_allclose(answer[0], truth, rtol=1e-6)


def test_what_the_type_does_not_hold_is_infinite():
    truth, peer = np.array([-1e40, 1.0]), np.array([np.inf, 1.0], np.float32)
    assert judge(np.array([BELOW, 1.0], np.float32), peer, truth).passed
    assert not judge(np.array([np.nan, 1.0], np.float32), peer, truth).passed
    assert not judge(np.array([BELOW, 1.0], np.float32), peer, np.array([-3e38, 1.0])).passed
