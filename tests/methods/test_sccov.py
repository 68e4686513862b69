"""SCCov pooling is the published computation, and its file stays accurate where covariances are near singular."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from conformance.lab import Specimen
from poolexport import catalog
from poolexport.method import Case
from poolexport.nn import SCCovPool2d

#: Channels and locations: of more channels than locations, covariances are singular.
SIZES = [(8, (7, 7)), (32, (7, 7)), (64, (7, 7)), (128, (7, 7)), (256, (7, 7)), (256, (14, 14))]


def features(channels: int, plane: tuple[int, int], samples: int = 1) -> np.ndarray:
    """What a network leaves: a few latent factors, mixed, with noise, and rectified."""
    rng = np.random.default_rng(channels)
    latent = rng.standard_normal((samples, 24, math.prod(plane)))
    mixed = rng.standard_normal((channels, 24)) @ latent / 5
    x = np.maximum(mixed + 0.3 * rng.standard_normal(mixed.shape), 0.0)
    return x.reshape(samples, channels, *plane).astype(np.float32)


def covariance(x: np.ndarray, l2norm: bool, unbiased: bool = True) -> np.ndarray:
    """Of every sample, by the published matrix that subtracts the mean."""
    x = x.astype(np.float64).reshape(*x.shape[:2], -1)
    m = x.shape[2]
    if l2norm:
        x = x / (np.sqrt((x**2).sum(2, keepdims=True)) + 1e-12)
    centre = np.eye(m) - np.ones((m, m)) / m
    return x @ centre @ x.transpose(0, 2, 1) / (m - unbiased)


def logarithm(c: np.ndarray, eps: float) -> np.ndarray:
    """By LAPACK, in the type of ``c``."""
    values, vectors = np.linalg.eigh(c + np.asarray(eps, c.dtype) * np.eye(c.shape[-1], dtype=c.dtype))
    return (vectors * np.log(values)[:, None]) @ vectors.transpose(0, 2, 1)


@cache
def specimen(l2norm: bool, eps: float, dtype: str, compute_dtype: str) -> Specimen:
    """A layer and its file, which takes any number of channels."""
    options = {"l2norm": l2norm, "eps": eps, "vec": "full", "compute_dtype": compute_dtype}
    return Specimen(catalog.methods()["sccov"], Case("any", options, shape=(2, 3, 4, 5)), dtype, fixed="")


@pytest.mark.parametrize(("channels", "plane"), SIZES)
@pytest.mark.parametrize(
    ("dtype", "compute_dtype", "bound"),
    [("float32", "float64", 1e-6), ("float64", "float64", 1e-12), ("float32", "float32", 1e-5)],
)
def test_files_of_published_networks_are_accurate(channels, plane, dtype, compute_dtype, bound):
    x = features(channels, plane)
    truth = logarithm(covariance(x, l2norm=True), 5e-3)
    each = specimen(True, 5e-3, dtype, compute_dtype)
    for [answer] in (each.onnx(x.astype(dtype)), each.torch(x.astype(dtype))):
        assert np.abs(answer - truth).max() < bound


@pytest.mark.parametrize(("channels", "plane"), SIZES)
def test_raw_features_are_as_good_as_by_lapack_in_single_precision(channels, plane):
    x = features(channels, plane)
    truth = logarithm(covariance(x, l2norm=False), 1e-3)
    lapack = np.abs(logarithm(single_covariance(x), 1e-3) - truth).max()
    for compute_dtype, factor in (("float64", 1), ("float32", 6)):
        [answer] = specimen(False, 1e-3, "float32", compute_dtype).onnx(x)
        assert np.abs(answer - truth).max() < factor * lapack


def single_covariance(x: np.ndarray) -> np.ndarray:
    centred = x.reshape(*x.shape[:2], -1)
    centred = centred - centred.mean(2, keepdims=True)
    return centred @ centred.transpose(0, 2, 1) / np.float32(centred.shape[2] - 1)


@pytest.mark.parametrize("channels", [6, 64])
@pytest.mark.parametrize(("scale", "bound"), [(1.0, 1e-9), (1e4, 1e-3), (1e20, 1e-2)])
def test_raw_singular_covariances_have_an_answer(channels, scale, bound):
    """Against singular values of the features, which see what the covariance has rounded away."""
    x = (features(channels, (1, 5)) * scale).astype(np.float64)
    rows = x.reshape(channels, -1)
    vectors, singular, _ = np.linalg.svd(rows - rows.mean(1, keepdims=True), full_matrices=True)
    values = np.zeros(channels)
    # The last of five is that of the mean, which is not there any more.
    values[:4] = singular[:4] ** 2 / 4
    truth = (vectors * np.log(values + max(5e-3, 2.0**-44 * values.sum()))) @ vectors.T
    each = specimen(False, 5e-3, "float64", "float64")
    for [answer] in (each.onnx(x), each.torch(x)):
        assert np.abs(answer[0] - truth).max() < bound


def test_a_sample_answers_the_same_in_any_company():
    x = features(16, (3, 3), samples=4)
    x[1:3] *= np.float32(1e6)
    x[3, 0, 0, 0] = np.nan
    each = specimen(False, 5e-3, "float32", "float64")
    [together] = each.onnx(x)
    assert np.isnan(together[3]).all()
    for one, whole in zip(x[:3], together):
        np.testing.assert_allclose(each.onnx(one[None])[0][0], whole, rtol=1e-6)


def test_the_official_vector_is_the_published_one():
    x = features(4, (3, 5))
    f = logarithm(covariance(x, l2norm=True), 5e-3)[0]
    r = math.sqrt(2)
    above = [f[0, 1], f[0, 2], f[1, 2], f[0, 3], f[1, 3], f[2, 3]]
    answer = SCCovPool2d()(torch.from_numpy(x).double())[0].numpy()
    np.testing.assert_allclose(answer, [*np.diag(f), *(r * v for v in above)], rtol=1e-11)
    assert math.isclose((answer**2).sum(), (f**2).sum(), rel_tol=1e-11)


def test_survey_is_the_papers_description():
    x = features(3, (3, 5))
    f = logarithm(covariance(x, l2norm=False, unbiased=False), 0.01)[0]
    answer = SCCovPool2d.survey(eps=0.01)(torch.from_numpy(x).double())[0].numpy()
    np.testing.assert_allclose(answer, [f[0, 0], f[0, 1], f[0, 2], f[1, 1], f[1, 2], f[2, 2]], rtol=1e-10)


def test_groups_are_consecutive_channels():
    x = torch.from_numpy(features(6, (3, 4))).double()
    mean = torch.stack([x[:, :3].mean(1), x[:, 3:].mean(1)], 1)
    torch.testing.assert_close(SCCovPool2d(channel_group=3)(x), SCCovPool2d()(mean))


def test_the_norm_of_tiny_channels_counts_the_published_constant():
    x = torch.from_numpy(features(3, (3, 4))).double()
    tiny = x * 1e-13
    answer = SCCovPool2d(eps=1e-3)(tiny)
    truth = logarithm(covariance(tiny.numpy(), l2norm=True), 1e-3)[0]
    np.testing.assert_allclose(answer[0, :3].numpy(), np.diag(truth), rtol=1e-10)


def test_one_location_has_no_variance():
    x = torch.tensor([[[[3.0]], [[5.0]]]])
    expected = torch.tensor([[math.log(0.01), 0.0, math.log(0.01)]])
    torch.testing.assert_close(SCCovPool2d(0.01, l2norm=False, unbiased=False, vec="triu")(x), expected)


@pytest.mark.parametrize("channels", [2, 6])
def test_gradients_are_right_where_eigenvalues_meet(channels):
    x = torch.from_numpy(features(channels, (1, 3))).double().requires_grad_()
    layer = SCCovPool2d(eps=0.01, l2norm=False)
    assert torch.autograd.gradcheck(layer, x + torch.zeros_like(x))
    constant = torch.ones(1, channels, 2, 3, dtype=torch.float64, requires_grad=True)
    layer(constant).square().sum().backward()
    assert constant.grad is not None
    assert constant.grad.abs().max() < 1e-9


def test_single_precision_out_of_range_is_nan():
    layer = SCCovPool2d(l2norm=False, compute_dtype="float32")
    assert layer(1e20 * torch.randn(1, 3, 4, 5)).isnan().all()
