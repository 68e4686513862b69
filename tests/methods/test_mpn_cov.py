"""MPN-COV: the published rule, real sizes, the eigenvalues that count, and gradients."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from conformance.lab import Specimen
from poolexport import catalog
from poolexport.method import Case
from poolexport.nn import MPNCOVPool2d
from poolexport_ops.second_moment_power import second_moment_power

METHOD = catalog.methods()["mpn_cov"]


def features(channels: int, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """What a trained network's last ReLU gives: non-negative, and correlated through 24 hidden factors."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((channels, 24)) @ rng.standard_normal((24, rows * columns))
    noisy = mixed / 5 + 0.1 * rng.standard_normal(mixed.shape)
    return np.maximum(noisy, 0).reshape(1, channels, rows, columns).astype(np.float32)


def by_eigh(x: np.ndarray, alpha: float, epsilon: float) -> np.ndarray:
    """The published formula with numpy's decomposition of the covariance, in float64."""
    rows = []
    for sample in x.astype(np.float64).reshape(*x.shape[:2], -1):
        values, vectors = np.linalg.eigh(np.cov(sample, bias=True))
        kept = values > 2.0**-23 * 2.0 ** np.floor(np.log2(values[-1]))
        power = (vectors[:, kept] * (values[kept] + epsilon) ** alpha) @ vectors[:, kept].T
        rows.append(np.concatenate([power[: j + 1, j] for j in range(len(power))]))
    return np.array(rows)


@cache
def file(alpha: float = 0.5, epsilon: float = 1e-12, dtype: str = "float32") -> Specimen:
    """An export with dynamic channels."""
    options = {"alpha": alpha, "epsilon": epsilon}
    return Specimen(METHOD, Case("test", options, shape=(2, 4, 3, 4)), dtype, fixed="")


@pytest.mark.parametrize(
    ("channels", "rows", "columns"), [(8, 7, 7), (32, 7, 7), (64, 7, 7), (64, 14, 14), (128, 7, 7), (128, 14, 14)]
)
@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_real_sizes(channels, rows, columns, alpha):
    x = features(channels, rows, columns)
    truth = by_eigh(x, alpha, 1e-12)
    for answer in (MPNCOVPool2d(alpha)(torch.from_numpy(x)).numpy(), file(alpha).onnx(x)[0]):
        assert answer.shape == (1, channels * (channels + 1) // 2)
        assert np.abs(answer - truth).max() < 1e-7 * np.abs(truth).max()


def unpacked(vector: np.ndarray, channels: int) -> np.ndarray:
    """The symmetric matrix of a vector that goes through its upper triangle column by column."""
    matrix = np.zeros((channels, channels))
    place = 0
    for j in range(channels):
        for i in range(j + 1):
            matrix[i, j] = matrix[j, i] = vector[place]
            place += 1
    return matrix


def test_square_root_squares_to_the_covariance():
    x = features(16, 7, 7)
    root = unpacked(file().onnx(x)[0][0], 16)
    np.testing.assert_allclose(root @ root, np.cov(x.reshape(16, -1).astype(np.float64), bias=True), atol=1e-6)


def test_vector_goes_column_by_column():
    x = features(5, 4, 4)
    covariance = np.cov(x.reshape(5, -1).astype(np.float64), bias=True)
    expected = [covariance[place] for place in [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2), (0, 3)]]
    answer = MPNCOVPool2d(alpha=1.0, epsilon=0.0)(torch.from_numpy(x))[0]
    np.testing.assert_allclose(answer[:7], expected, rtol=1e-6)


@pytest.mark.parametrize(("precision", "digits"), [("float32", 23), ("float64", 52)])
@pytest.mark.parametrize("above", [True, False])
def test_eigenvalues_up_to_the_spacing_do_not_count(precision, digits, above):
    """The covariance is diag(1, r^2), and the spacing of the precision at 1 is 2^-digits."""
    share = 2.0 ** (-digits / 2) * (1 + 1e-6 * (1 if above else -1))
    x = torch.tensor([[1.0, 1.0, -1.0, -1.0], [share, -share, share, -share]], dtype=torch.float64).reshape(1, 2, 2, 2)
    layer = MPNCOVPool2d(alpha=0.5, epsilon=0.0, precision=precision)
    case = Case("test", {"epsilon": 0.0, "precision": precision}, shape=(1, 2, 2, 2))
    for answer in (layer(x).numpy(), Specimen(METHOD, case, "float64").onnx(x.numpy())[0]):
        np.testing.assert_allclose(answer, [[1.0, 0.0, share if above else 0.0]], rtol=1e-12, atol=1e-15)


def test_epsilon_is_not_added_to_what_does_not_count():
    x = torch.tensor([[3.0, -3.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    expected = [[float(np.sqrt(9.25)), 0.0, 0.0]]
    np.testing.assert_allclose(MPNCOVPool2d(epsilon=0.25)(x), expected, rtol=1e-6)
    np.testing.assert_allclose(file(0.5, 0.25).onnx(x.numpy())[0], expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e15])
def test_a_root_follows_the_scale_of_its_input(scale):
    x = features(6, 5, 5)
    scaled = (x.astype(np.float64) * scale).astype(np.float32)
    [plain], [answer] = file(0.5, 0.0).onnx(x), file(0.5, 0.0).onnx(scaled)
    np.testing.assert_allclose(answer / np.float32(scale), plain, rtol=1e-5, atol=1e-6)


def test_powers_keep_the_digits_of_a_double():
    """An attribute of ONNX has those of single precision."""
    x = features(6, 5, 5).astype(np.float64)
    truth = by_eigh(x, 0.3, 1e-3)
    for answer in (MPNCOVPool2d(0.3, 1e-3)(torch.from_numpy(x)).numpy(), file(0.3, 1e-3, "float64").onnx(x)[0]):
        np.testing.assert_allclose(answer, truth, rtol=1e-11, atol=1e-13)


def test_a_sample_does_not_see_its_batch():
    alone = features(16, 7, 7)
    batch = np.concatenate([np.zeros_like(alone), alone, 1e6 * features(16, 7, 7, seed=1), np.full_like(alone, 0.7)])
    [together], [single] = file().onnx(batch), file().onnx(alone)
    np.testing.assert_allclose(together[1], single[0], atol=1e-7)
    assert not together[0].any()
    assert not together[3].any()


def spectrum(*values: float) -> torch.Tensor:
    """A (1, n, n + 1) matrix with these singular values."""
    torch.manual_seed(0)
    n = len(values)
    left, right = (torch.linalg.qr(torch.randn(m, m, dtype=torch.float64)).Q for m in (n, n + 1))
    return (left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right[:n]).unsqueeze(0)


@pytest.mark.parametrize("values", [(2, 2, 1), (1, 1, 1), (3, 2, 2 + 1e-7), (3, 2, 2 + 1e-5), (3, 1, 1e-2)])
@pytest.mark.parametrize("alpha", ["0.5", "0.3", "2.0"])
def test_gradient_where_eigenvalues_are_equal_or_nearly(values, alpha):
    x = spectrum(*values).requires_grad_()
    rule = {"alpha": alpha, "epsilon": "1e-3", "precision": "float64", "layout": "matrix"}
    assert torch.autograd.gradcheck(lambda t: second_moment_power(t, **rule), x, atol=1e-6)


def test_gradient_is_that_of_a_decomposition():
    x = torch.from_numpy(features(5, 4, 4)).double()
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.linspace(-1, 1, 15, dtype=torch.float64)
    (MPNCOVPool2d()(ours) @ weights).sum().backward()
    values, vectors = torch.linalg.eigh(torch.cov(plain[0].flatten(1), correction=0))
    power = vectors @ torch.diag(values.sqrt()) @ vectors.T
    entries = torch.stack([power[i, j] for j in range(5) for i in range(j + 1)])
    (entries @ weights).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("values", [(0, 0, 0), (1, 0, 0), (2, 2, 0)])
def test_gradient_is_finite_without_full_rank(values):
    x = spectrum(*values).unsqueeze(2).requires_grad_()
    MPNCOVPool2d()(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_second_derivatives_are_refused_not_wrong():
    x = spectrum(3, 2, 1).unsqueeze(2).requires_grad_()
    [gradient] = torch.autograd.grad(MPNCOVPool2d()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
