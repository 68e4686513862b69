"""Bilinear pooling has the constants of its sources, two maps of two sizes, and a gradient at 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import poolexport
from poolexport.methods.bilinear import PUBLISHED
from poolexport.nn import BilinearPool0d, BilinearPool2d, MultimodalBilinearPool2d
from poolexport_ops import operators

torch.manual_seed(0)
X = torch.randn(2, 24, 9, 7, dtype=torch.float64)
Y = torch.randn(2, 5, 9, 7, dtype=torch.float64)
G = torch.einsum("nchw,ndhw->ncd", X, X).flatten(1)
MEAN = G / 63
SIGNED = G.sign() * G.abs().sqrt()
SIGNED_MEAN = MEAN.sign() * MEAN.abs().sqrt()
FORMULAS = {
    "paper": SIGNED / SIGNED.norm(dim=1, keepdim=True),
    "matlab": SIGNED_MEAN / (SIGNED_MEAN.square().sum(1, keepdim=True) + 1e-10).sqrt(),
    "compact_matlab": SIGNED / SIGNED.norm(dim=1, keepdim=True),
    "caffe": SIGNED * (SIGNED.square().sum(1, keepdim=True) + 1e-7) ** -0.5,
    "fast_mpn_cov": F.normalize(MEAN.sign() * (MEAN.abs() + 1e-8).sqrt()),
    "umass": F.normalize((F.relu(MEAN) + 1e-5).sqrt() - (F.relu(-MEAN) + 1e-5).sqrt()),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants_give_the_formula_of_their_source(name):
    torch.testing.assert_close(BilinearPool2d.published(name)(X), FORMULAS[name], rtol=1e-11, atol=1e-13)


def test_every_source_has_a_formula():
    assert set(PUBLISHED) == set(FORMULAS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_small_maps_show_which_source_it_is(name):
    """On maps of 1e-5 the constants decide: no two sources but the paper's and its Matlab copy agree."""
    answers = {other: BilinearPool2d.published(other)(1e-5 * X) for other in PUBLISHED}
    same = {other for other, answer in answers.items() if torch.allclose(answer, answers[name], rtol=1e-4, atol=1e-9)}
    assert same == ({"paper", "compact_matlab"} if name in ("paper", "compact_matlab") else {name})


def test_numbers_by_hand():
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, -3.0]]]])  # sums: 10, -9, -9, 9; means: 5, -4.5, -4.5, 4.5
    root = math.sqrt(10)
    assert BilinearPool2d(norm="none", is_vec=False)(x).tolist() == [[[pytest.approx(root), -3.0], [-3.0, 3.0]]]
    assert BilinearPool2d(norm="none", root="none", reduction="mean")(x).tolist() == [[5.0, -4.5, -4.5, 4.5]]
    assert BilinearPool2d()(x)[0, 3].item() == pytest.approx(3 / math.sqrt(37))
    columns = BilinearPool2d(is_vec=False, per_column=True)(x)
    torch.testing.assert_close(columns, F.normalize(BilinearPool2d(norm="none", is_vec=False)(x)))
    assert columns[0, 1, 0].item() == pytest.approx(-3 / math.sqrt(19))


def test_the_jump_is_a_jump_and_zero_stays_zero():
    x = torch.tensor([[[[1e-9]], [[-1e-9]], [[0.0]]]], dtype=torch.float64)
    layer = BilinearPool2d(root="jump", root_eps=1e-8, norm="none", is_vec=False)
    assert layer(x)[0].diag().tolist() == [pytest.approx(1e-4), pytest.approx(1e-4), 0.0]
    assert layer(x)[0, 0, 1].item() == pytest.approx(-1e-4)


def test_the_difference_of_roots_keeps_its_digits_near_zero():
    x = torch.tensor([[[[1e-12]]]], dtype=torch.float64)  # 1e-24 / (2 sqrt(1e-5)): the plain difference gives 0
    layer = BilinearPool2d(root="difference", root_eps=1e-5, norm="none")
    assert layer(x).item() == pytest.approx(1e-24 / (2 * math.sqrt(1e-5)), rel=1e-12)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_maps_of_zeros(name, dtype):
    answer = BilinearPool2d.published(name)(torch.zeros(1, 3, 4, 5, dtype=dtype))
    assert answer.dtype == dtype
    assert answer.isnan().all() if name in ("paper", "compact_matlab") else answer.eq(0).all()


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("matlab", lambda g: 0.5 / (g.abs() + 1e-8).sqrt()),
        ("compact_matlab", lambda g: 0.5 / (g.abs().sqrt() + 0.1)),
        ("caffe", lambda g: 0.5 / (g.abs().sqrt() + 0.03)),
    ],
)
def test_the_guard_is_in_the_gradient_only(name, slope):
    layer = BilinearPool2d.published(name, norm="none", norm_eps=0.0, reduction="sum")
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    x[:, 2] = 0
    with torch.no_grad():
        plain = layer(x)
    x.requires_grad_()
    g = torch.einsum("nchw,ndhw->ncd", x, x).flatten(1)
    assert g.eq(0).any()
    assert torch.equal(layer(x), plain)
    torch.testing.assert_close(plain, (g.sign() * g.abs().sqrt()).detach(), rtol=1e-12, atol=0)
    weights = torch.randn_like(g)
    [found] = torch.autograd.grad((weights * layer(x)).sum(), x)
    [expected] = torch.autograd.grad(g, x, weights * slope(g.detach()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"paper", "compact_matlab"}))
def test_gradients_of_zeros_are_finite_in_float32(name):
    for x in (torch.zeros(2, 3, 4, 4), torch.randn(2, 3, 4, 4).relu() * torch.tensor([1.0, 0.0, 1.0])[:, None, None]):
        x.requires_grad_()
        BilinearPool2d.published(name)(x).sum().backward()
        assert x.grad.isfinite().all()


def test_products_that_cancel_leave_zero():
    """In float64 sums of products of 11 digits each are exact; a float32 sum leaves 1e-6, whose root is 1e-3."""
    a, b = torch.rand(40).half().float(), torch.rand(40).half().float()
    x = torch.stack([torch.cat([a, b, a]), torch.cat([b, -a, 0 * a])]).reshape(1, 2, 10, 12)
    answer = BilinearPool2d(norm="none", is_vec=False)(x)
    assert answer[0, 0, 1].item() == 0.0
    terms = (x[:, 0] * x[:, 1]).flatten().numpy()
    assert np.add.accumulate(terms, dtype=np.float32)[-1] != 0.0


@pytest.mark.parametrize("size", [1e20, 1e-15, 1e-30])
def test_the_scale_of_a_map_does_not_matter(size):
    x = X.float() * size
    answer = BilinearPool2d(norm_eps=1e-36)(x)
    torch.testing.assert_close(answer, FORMULAS["paper"].float(), rtol=1e-4, atol=1e-6)


def test_half_precision_sums_do_not_overflow():
    x = (6e4 * torch.rand(1, 4, 9, 9)).half()
    torch.testing.assert_close(BilinearPool2d()(x), BilinearPool2d()(x.float()).half(), rtol=0, atol=0)


def test_a_large_map():
    x = torch.randn(1, 512, 28, 28).relu()
    g = x.double().flatten(2)
    g = (g @ g.mT).flatten(1).sqrt()
    torch.testing.assert_close(BilinearPool2d()(x).double(), g / g.norm(), rtol=1e-6, atol=1e-9)


def test_two_vectors_are_two_maps_of_one_cell():
    layer = BilinearPool0d()
    x, y = X[:, :, 0, 0], Y[:, :, 0, 0]
    maps = (t[..., None, None] for t in (x, y))
    torch.testing.assert_close(layer(x, y), MultimodalBilinearPool2d()(*maps), rtol=0, atol=0)
    g = (x[:, :, None] * y[:, None, :]).flatten(1)
    torch.testing.assert_close(layer(x, y), F.normalize(g.sign() * g.abs().sqrt()), rtol=1e-12, atol=1e-14)


def test_two_maps_that_are_one_are_homogeneous():
    torch.testing.assert_close(MultimodalBilinearPool2d()(X, X), BilinearPool2d()(X), rtol=0, atol=0)


def test_matlab_flattens_in_the_order_of_swapped_maps():
    """psi = A' * B; psi(:) runs down the columns."""
    layer = MultimodalBilinearPool2d(root="none", norm="none")
    psi = torch.einsum("nchw,ndhw->ncd", X, Y)
    torch.testing.assert_close(layer(Y, X), psi.mT.flatten(1))


#: n, m, and round(linspace(1, n, m)) of Matlab, less 1; halves go upwards.
POSITIONS = [
    (5, 3, [0, 2, 4]),
    (4, 3, [0, 2, 3]),
    (6, 3, [0, 3, 5]),
    (28, 14, [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27]),
    (7, 1, [6]),
    (3, 3, [0, 1, 2]),
    (2, 4, [0, 0, 1, 1]),
]


@pytest.mark.parametrize(("n", "m", "positions"), POSITIONS)
def test_subsampling_reads_evenly_spaced_cells(n, m, positions):
    large, small = torch.randn(1, 2, n, 60, dtype=torch.float64), torch.randn(1, 3, m, 3, dtype=torch.float64)
    picked = large[:, :, positions][..., [0, 30, 59]]  # 29.5 is a half
    gram, subsampled = operators()["Gram"], operators()["SubsampledGram"]
    expected = gram(picked.flatten(2), small.flatten(2))
    torch.testing.assert_close(subsampled(large, small), expected)
    torch.testing.assert_close(subsampled(small, large), expected.mT)


def test_the_size_with_fewer_cells_decides_for_both_axes():
    tall, wide = torch.randn(1, 2, 8, 2, dtype=torch.float64), torch.randn(1, 2, 3, 9, dtype=torch.float64)
    layer = MultimodalBilinearPool2d("subsample", root="none", norm="none", reduction="mean")
    picked = wide[:, :, [0, 0, 1, 1, 1, 1, 2, 2]][..., [0, 8]]
    torch.testing.assert_close(layer(tall, wide), torch.einsum("nchw,ndhw->ncd", tall, picked).flatten(1) / 16)


@pytest.mark.parametrize("size", [(9, 7), (4, 3), (13, 20), (1, 1), (9, 3)])
def test_interpolation_is_torchs(size):
    y = torch.randn(2, 5, *size, dtype=torch.float64)
    layer = MultimodalBilinearPool2d("interpolate")
    resized = F.interpolate(y, size=(9, 7), mode="bilinear")
    torch.testing.assert_close(layer(X, y), MultimodalBilinearPool2d()(X, resized), rtol=1e-9, atol=1e-11)


def test_cells_of_no_weight_are_not_seen():
    y = Y.clone()
    y[0, 0, 4, 3] = math.inf
    y[1, 2, 0, 0] = math.nan
    for options in ({"norm": "none"}, {}):
        peer = MultimodalBilinearPool2d(**options)(X, y)
        answer = MultimodalBilinearPool2d("interpolate", **options)(X, y)
        torch.testing.assert_close(answer, peer, rtol=0, atol=0, equal_nan=True)


AXES = [{0: "N", 2: "H", 3: "W"}, {0: "N", 2: "h", 3: "w"}]


@pytest.mark.parametrize("resize", ["subsample", "interpolate"])
def test_one_file_takes_maps_of_any_two_sizes(resize, tmp_path):
    layer = MultimodalBilinearPool2d(resize, reduction="mean").eval()
    inputs = (torch.randn(2, 4, 6, 5), torch.randn(2, 3, 9, 11))
    bundle = poolexport.export(layer, inputs, tmp_path / "net", dynamic_shapes=AXES, input_names=["a", "b"])
    session = poolexport.session(bundle.path)
    for first, second in (((6, 5), (9, 11)), ((9, 11), (6, 5)), ((7, 7), (7, 7)), ((1, 1), (4, 6)), ((8, 2), (3, 9))):
        x, y = torch.randn(3, 4, *first), torch.randn(3, 3, *second)
        [answer] = session.run(None, {"a": x.numpy(), "b": y.numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), layer(x, y), rtol=1e-6, atol=1e-7)


def test_one_file_takes_two_maps_of_any_one_size(tmp_path):
    layer = MultimodalBilinearPool2d().eval()
    inputs = (torch.randn(2, 4, 6, 5), torch.randn(2, 3, 6, 5))
    axes = [AXES[0]] * 2
    bundle = poolexport.export(layer, inputs, tmp_path / "net", dynamic_shapes=axes, input_names=["a", "b"])
    x, y = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 8, 8)
    [answer] = poolexport.session(bundle.path).run(None, {"a": x.numpy(), "b": y.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), layer(x, y), rtol=1e-6, atol=1e-7)


def test_pairs_that_do_not_fit_are_refused():
    layer = MultimodalBilinearPool2d()
    with pytest.raises(ValueError, match="one height and width"):
        layer(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 4, 3))
    with pytest.raises(ValueError, match="one batch and one type"):
        layer(torch.ones(1, 2, 3, 4), torch.ones(2, 2, 3, 4))
    with pytest.raises(ValueError, match="one batch and one type"):
        BilinearPool0d()(torch.ones(1, 2), torch.ones(1, 2).double())
    with pytest.raises(ValueError, match="expects an input of shape"):
        layer(torch.ones(1, 2, 1, 1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="resize must be one of"):
        MultimodalBilinearPool2d("crop")
    with pytest.raises(ValueError, match="name must be one of"):
        BilinearPool2d.published("tensorflow")


def test_there_is_no_state():
    assert not BilinearPool2d().state_dict()
