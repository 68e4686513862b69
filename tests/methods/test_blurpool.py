"""What the conformance suite cannot see of blur pooling: other people's layers and checkpoints."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from poolexport.nn import BlurPool1d, BlurPool2d, BlurPool3d, MaxBlurPool2d


def outer(size: int) -> torch.Tensor:
    """The filter as repeated convolution of (1, 1) with itself."""
    row = torch.ones(1, dtype=torch.float64)
    for _ in range(size - 1):
        row = F.conv1d(F.pad(row, (1, 1))[None, None], torch.ones(1, 1, 2, dtype=torch.float64))[0, 0]
    return torch.outer(row, row) / row.sum() ** 2


def pads(rule: str, k: int, s: int) -> tuple[int, int]:
    low, high = {"zhang": (k - 1, k), "timm": (k + s - 2, k + s - 2), "kornia": (k - 1, k - 1)}[rule]
    return low // 2, high // 2


@pytest.mark.parametrize("mode", ["reflect", "replicate", "zero"])
def test_blur_is_a_depthwise_convolution(mode):
    x = torch.randn(2, 3, 13, 16, dtype=torch.float64)
    for k, s, rule in itertools.product(range(1, 8), (1, 2, 3), ("zhang", "timm", "kornia")):
        before, after = pads(rule, k, s)
        padded = F.pad(x, (before, after) * 2, mode="constant" if mode == "zero" else mode)
        expected = F.conv2d(padded, outer(k).expand(3, 1, k, k), stride=s, groups=3)
        layer = BlurPool2d(filt_size=k, stride=s, pad_mode=mode, pad_rule=rule).double()
        torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("n", "expected"), [(8, 4), (9, 5), (1, 1)])
def test_zhangs_rule_gives_one_result_per_stride(n, expected):
    assert BlurPool2d(filt_size=4, pad_mode="replicate")(torch.zeros(1, 1, n, n)).shape == (1, 1, expected, expected)


def test_checkpoints_of_the_authors_package_load():
    layer = BlurPool2d(channels=3)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {"filt": (3, 1, 4, 4)}
    layer.load_state_dict({"filt": outer(4).float().repeat(3, 1, 1, 1)})
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(layer(x), BlurPool2d()(x))


def test_checkpoints_of_timm_load():
    for layer in (BlurPool1d(), BlurPool2d(), BlurPool3d(), MaxBlurPool2d()):
        assert not layer.state_dict()


def test_a_filter_in_the_state_dict_is_used():
    layer = BlurPool2d(channels=1, filt_size=2, stride=2)
    layer.load_state_dict({"filt": torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])})
    x = torch.randn(1, 1, 6, 6)
    assert torch.equal(layer(x), x[..., ::2, ::2])


def test_max_blur_is_a_dense_maximum_before_the_blur():
    x = torch.randn(2, 3, 9, 12)
    expected = BlurPool2d(filt_size=3)(F.max_pool2d(x, 3, 1, 1))
    torch.testing.assert_close(MaxBlurPool2d(3, padding=1, filt_size=3)(x), expected)
