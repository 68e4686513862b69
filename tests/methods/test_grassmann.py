"""Grassmann pooling: real sizes, maps without full rank, ties, signs, scores and gradients."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from conformance.lab import Specimen
from poolexport import catalog, stress
from poolexport.method import Case
from poolexport.nn import GrassmannPool2d, GrassmannScore2d
from poolexport_ops.subspace_projection import subspace_projection

METHOD = catalog.methods()["grassmann"]
#: Channels, rows, columns, k; most have fewer locations than channels.
SIZES = [(8, 7, 7, 2), (32, 7, 7, 8), (64, 7, 7, 8), (128, 14, 14, 8), (256, 7, 7, 16), (256, 14, 14, 16)]


def features(channels: int, rows: int, columns: int, factors: int, seed: int = 0) -> np.ndarray:
    """What a trained network's last ReLU gives: non-negative, and correlated through a number of hidden factors."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((channels, factors)) @ rng.standard_normal((factors, rows * columns))
    noisy = mixed / np.sqrt(factors) + 0.1 * rng.standard_normal(mixed.shape)
    return np.maximum(noisy, 0).reshape(1, channels, rows, columns).astype(np.float32)


def by_svd(x: np.ndarray, k: int) -> np.ndarray:
    """Projections by numpy's singular value decomposition; the rank must be at least k."""
    vectors, values, _ = np.linalg.svd(x.astype(np.float64).reshape(*x.shape[:2], -1), full_matrices=False)
    assert (values[:, k - 1] > 1e-5 * values[:, 0]).all()
    return vectors[:, :, :k] @ vectors[:, :, :k].transpose(0, 2, 1)


@cache
def file(k: int, output: str = "projection") -> Specimen:
    """An export with dynamic channels."""
    return Specimen(METHOD, Case("test", {"k": k, "output": output}, shape=(2, 3 * k, 3, 4)), fixed="")


@pytest.mark.parametrize("factors", [24, 2000], ids=["latent", "flat"])
@pytest.mark.parametrize(("channels", "rows", "columns", "k"), SIZES)
def test_projection_of_real_sizes(channels, rows, columns, k, factors):
    x = features(channels, rows, columns, factors)
    truth = by_svd(x, k)
    for answer in (GrassmannPool2d(k)(torch.from_numpy(x)).numpy(), file(k).onnx(x)[0]):
        assert np.abs(answer - truth).max() < 1.5e-7


@pytest.mark.parametrize(("channels", "rank", "k"), [(32, 3, 8), (64, 8, 8), (64, 12, 8)])
def test_maps_without_full_rank(channels, rank, k):
    rng = np.random.default_rng(0)
    factors = rng.integers(-3, 4, (channels, rank)).astype(np.float64), rng.integers(-3, 4, (rank, 49))
    x = (factors[0] @ factors[1]).reshape(1, channels, 7, 7).astype(np.float32)
    truth = by_svd(x, min(rank, k))
    for answer in (GrassmannPool2d(k)(torch.from_numpy(x)).numpy(), file(k).onnx(x)[0]):
        assert np.abs(answer - truth).max() < 2e-7
        assert round(float(np.trace(answer[0]))) == min(rank, k)


@pytest.mark.parametrize("regime", [*stress.REGIMES, "huge", "tiny"])
def test_single_precision_keeps_its_digits(regime):
    x = stress.draw(regime, (2, 3, 9, 11))
    [truth] = METHOD.truth(Case("test", {"k": 2}, shape=x.shape), x)
    for answer in (GrassmannPool2d(2)(torch.from_numpy(x)).numpy(), file(2).onnx(x)[0]):
        np.testing.assert_allclose(answer, truth, rtol=1e-6, atol=1e-7)


def test_a_sample_does_not_see_its_batch():
    alone = features(16, 7, 7, 24)
    batch = np.concatenate([np.zeros_like(alone), alone, 1e6 * features(16, 7, 7, 2000, seed=1), np.ones_like(alone)])
    [together], [single] = file(8).onnx(batch), file(8).onnx(alone)
    np.testing.assert_allclose(together[1], single[0], atol=1e-7)
    assert not together[0].any()
    np.testing.assert_allclose(together[3], 1 / 16, atol=1e-7)


def test_directions_at_the_level_of_rounding_do_not_count():
    """The bound is 2^-20 of the largest singular value."""
    for share, rank in ((2.0**-19, 2), (2.0**-21, 1)):
        x = torch.tensor([[1.0, 0.0], [0.0, share]]).reshape(1, 2, 1, 2)
        expected = torch.diag(torch.tensor([1.0, float(rank == 2)]))
        assert torch.equal(GrassmannPool2d(2)(x)[0], expected)
        np.testing.assert_allclose(file(2).onnx(x.numpy())[0][0], expected, atol=1e-7)


def test_upper_triangle_goes_row_by_row():
    x = torch.from_numpy(features(6, 3, 4, 24))
    matrix, vector = GrassmannPool2d(2)(x), GrassmannPool2d(2, output="triu")(x)
    rows, columns = np.triu_indices(6)
    assert torch.equal(vector, matrix[:, rows, columns])
    np.testing.assert_allclose(file(2, "triu").onnx(x.numpy())[0], vector, atol=1e-7)


def test_signs_of_a_basis():
    """Of entries as large as the largest, but for rounding, the first is positive."""
    directions = torch.tensor([[3.0, -3.0, 3.0, 0.0], [-1.0, -2.0, -1.0, 0.0]])
    torch.manual_seed(0)
    mixes = torch.linalg.qr(torch.randn(20, 5, 2)).Q.mT
    x = (directions.T @ torch.diag(torch.tensor([5.0, 1.0])) @ mixes).unsqueeze(2)
    expected = torch.tensor([[1.0, -1.0, 1.0, 0.0], [1.0, 2.0, 1.0, 0.0]]).T / torch.tensor([3.0, 6.0]).sqrt()
    for answers in (GrassmannPool2d(2, output="basis")(x), file(2, "basis").onnx(x.numpy())[0]):
        for answer in answers:
            np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_basis_spans_the_projection():
    x = torch.from_numpy(features(12, 5, 6, 24))
    basis = GrassmannPool2d(3, output="basis")(x)[0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(3))
    torch.testing.assert_close(basis @ basis.T, GrassmannPool2d(3)(x)[0])


def test_scores_are_squared_cosines():
    torch.manual_seed(0)
    layer = GrassmannScore2d(channels=12, classes=5, k=3, class_dimensions=2)
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == {"weight": (12, 5, 2)}
    x = torch.from_numpy(features(12, 5, 6, 24))
    basis = GrassmannPool2d(3, output="basis")(x)[0]
    scores = layer(x)[0]
    for j, expected in enumerate(scores):
        class_basis = layer.weight[:, j].detach()
        torch.testing.assert_close(class_basis.T @ class_basis, torch.eye(2))
        cosines = torch.linalg.svdvals(basis.T @ class_basis)
        torch.testing.assert_close(expected.detach(), cosines.square().sum())
    torch.manual_seed(0)
    assert torch.equal(layer.weight, GrassmannScore2d(12, 5, 3, 2).weight)
    assert tuple(GrassmannScore2d(4, 2, k=3).weight.shape) == (4, 2, 3)


def test_scores_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="at most 4, the channels"):
        GrassmannScore2d(channels=4, classes=2, k=5)
    with pytest.raises(ValueError, match="classes must be a positive int"):
        GrassmannScore2d(channels=4, classes=0, k=2)
    with pytest.raises(ValueError, match="the layer has 4 channels, the input has 3"):
        GrassmannScore2d(channels=4, classes=2, k=2)(torch.zeros(1, 3, 2, 2))


def spectrum(*values: float) -> torch.Tensor:
    """A (1, n, n + 1) matrix with these singular values."""
    torch.manual_seed(0)
    n = len(values)
    left, right = (torch.linalg.qr(torch.randn(m, m, dtype=torch.float64)).Q for m in (n, n + 1))
    return (left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right[:n]).unsqueeze(0)


@pytest.mark.parametrize("values", [(3, 3, 1, 1), (3, 2, 1, 0), (2, 2, 0, 0)])
def test_gradient_where_kept_or_dropped_values_are_equal(values):
    x = spectrum(*values).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: subspace_projection(t, k=2, layout="matrix"), x, atol=1e-6)


@pytest.mark.parametrize("output", ["projection", "basis"])
@pytest.mark.parametrize("values", [(0, 0, 0), (1, 0, 0), (2, 2, 2)])
def test_gradient_is_finite_where_there_is_none(values, output):
    x = spectrum(*values).unsqueeze(2).requires_grad_()
    GrassmannPool2d(2, output=output)(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 1e3


def test_second_derivatives_are_refused_not_wrong():
    x = spectrum(3, 2, 1).requires_grad_()
    loss = subspace_projection(x, k=1, layout="matrix")[0, 0, 0].square()
    [gradient] = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
