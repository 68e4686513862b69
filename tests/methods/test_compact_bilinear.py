"""Compact bilinear pooling against Fourier transforms, published draws and constants, and at the sizes of papers."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch

import poolexport
from poolexport.nn import CompactBilinearFusion2d, CompactBilinearPool2d, MultimodalCompactBilinear0d
from poolexport_ops.compact_bilinear import factored

BARE = {"signed_sqrt": False, "norm": "none"}


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """What a ReLU leaves."""
    return torch.from_numpy(np.maximum(np.random.default_rng(seed).standard_normal(shape), 0).astype(np.float32))


def pair_sums(layer: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """(d,) of one sample of (C, L) and (D, L), in float64."""
    h1, s1, h2, s2 = (getattr(layer, f"rand_{kind}_{end}").detach().numpy() for end in (1, 2) for kind in "hs")
    z = np.zeros(layer.output_dim)
    np.add.at(z, (h1[:, None] + h2) % layer.output_dim, s1[:, None] * s2 * (a.double() @ b.double().mT).numpy())
    return z


def exported(tmp_path, layer, *inputs, portable=False, threads=1):
    names = [f"x{i}" for i in range(len(inputs))]
    path = tmp_path / f"{portable}.onnx"
    poolexport.export(layer.eval(), inputs, path, input_names=names, portable=portable)
    session = poolexport.session(path, threads=threads)
    return path, lambda *tensors: session.run(None, dict(zip(names, (t.numpy() for t in tensors))))[0]


def error(answer: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(answer - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("d", [7, 37, 200])
def test_it_is_the_convolution_of_two_count_sketches(d):
    x = maps(2, 5, 3, 4).double()
    layer = CompactBilinearPool2d(5, d, **BARE).double()
    z = torch.zeros(2, d, dtype=torch.float64)
    for place in np.ndindex(3, 4):
        p, q = torch.zeros(2, 2, d, dtype=torch.float64)
        for i in range(5):
            p[:, layer.rand_h_1[i]] += layer.rand_s_1[i] * x[:, i, place[0], place[1]]
            q[:, layer.rand_h_2[i]] += layer.rand_s_2[i] * x[:, i, place[0], place[1]]
        z += torch.fft.irfft(torch.fft.rfft(p) * torch.fft.rfft(q), n=d)
    torch.testing.assert_close(layer(x), z, rtol=0, atol=1e-13)
    hit = {int(h1 + h2) % d for h1 in layer.rand_h_1 for h2 in layer.rand_h_2}
    empty = [t for t in range(d) if t not in hit]
    assert len(empty) > d - 26
    assert not layer(x)[:, empty].any(), "a bin without a pair is not exactly 0"


def test_the_published_draws():
    layer = CompactBilinearFusion2d(6, 4, 16000)
    state = np.random.get_state()  # noqa: NPY002
    try:
        for seed, name, below, size in ((1, "h_1", 16000, 6), (3, "s_1", 2, 6), (5, "h_2", 16000, 4), (7, "s_2", 2, 4)):
            np.random.seed(seed)  # noqa: NPY002
            drawn = np.random.randint(below, size=size)  # noqa: NPY002
            drawn = 2 * drawn - 1 if below == 2 else drawn
            np.testing.assert_array_equal(getattr(layer, f"rand_{name}").numpy(), drawn)
    finally:
        np.random.set_state(state)  # noqa: NPY002
    assert layer.rand_h_1.tolist() == [13349, 235, 12172, 5192, 905, 10955]
    assert layer.rand_h_1.dtype == torch.int64


def test_construction_touches_no_global_random_state():
    np_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    CompactBilinearPool2d(4, 9)
    CompactBilinearPool2d(4, 9, projection="random_maclaurin")
    np.testing.assert_array_equal(np_state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())


def test_state_dicts_hold_what_was_drawn():
    first, second = CompactBilinearPool2d(4, 9, seed=1), CompactBilinearPool2d(4, 9, seed=50)
    assert list(first.state_dict()) == ["rand_h_1", "rand_s_1", "rand_h_2", "rand_s_2"]
    x = maps(2, 4, 3, 3)
    assert not torch.equal(first(x), second(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    learned = CompactBilinearPool2d(4, 9, learn=True)
    assert [name for name, _ in learned.named_parameters()] == ["rand_s_1", "rand_s_2"]
    maclaurin = CompactBilinearPool2d(4, 9, projection="random_maclaurin", learn=True)
    assert {name: tuple(p.shape) for name, p in maclaurin.named_parameters()} == {
        "rand_w_1": (4, 9),
        "rand_w_2": (4, 9),
    }


def test_hashes_of_another_size_are_not_loaded():
    wide, narrow = CompactBilinearPool2d(4, 100), CompactBilinearPool2d(4, 9)
    with pytest.raises(RuntimeError, match="rand_h_1 must hold 4 ints from 0 to 8"):
        narrow.load_state_dict(wide.state_dict())


@pytest.mark.parametrize("projection", ["tensor_sketch", "random_maclaurin"])
def test_inner_products_of_answers_are_about_those_of_the_pairs(projection):
    a, b = maps(1, 16, 2, 2), maps(1, 16, 2, 2, seed=1)
    layer = CompactBilinearPool2d(16, 20000, projection, **BARE)
    full = [(m.flatten(2) @ m.flatten(2).mT).flatten() for m in (a, b)]
    kernel = float(full[0] @ full[1])
    scale = float(full[0].norm() * full[1].norm())
    sketch = float((layer(a) * layer(b)).sum())
    # In the paper's scale random Maclaurin features keep sums of squares as sketches do.
    assert abs(sketch - kernel) < 0.03 * scale


def test_random_maclaurin_in_both_scales():
    x = maps(2, 5, 3, 4).double()
    paper, code = (
        CompactBilinearPool2d(5, 8, "random_maclaurin", scale=scale, **BARE).double() for scale in ("paper", "code")
    )
    w1, w2 = paper.rand_w_1, paper.rand_w_2
    z = torch.einsum("nchw,ck,nehw,ek->nk", x, w1, x, w2)
    torch.testing.assert_close(paper(x), z / 8**0.5)
    torch.testing.assert_close(code(x), z / 8)
    assert set(w1.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(w1, w2)
    normal = [CompactBilinearPool2d(5, 8, "random_maclaurin", scale=scale).double() for scale in ("paper", "code")]
    torch.testing.assert_close(normal[0](x), normal[1](x))


def test_published_constants():
    x = 1e-3 * maps(2, 5, 3, 4).double()
    z = CompactBilinearPool2d(5, 11, **BARE).double()(x)
    root = z.sign() * z.abs().sqrt()
    matlab = CompactBilinearPool2d(5, 11).double()
    caffe = CompactBilinearPool2d(5, 11, norm="inside", norm_eps=1e-7).double()
    mpn = CompactBilinearPool2d(5, 11, sqrt_eps=1e-8).double()
    torch.testing.assert_close(matlab(x), root / root.norm(dim=1, keepdim=True))
    torch.testing.assert_close(caffe(x), root * (root.square().sum(1, keepdim=True) + 1e-7) ** -0.5)
    shifted = z.sign() * (z.abs() + 1e-8).sqrt()
    torch.testing.assert_close(mpn(x), torch.nn.functional.normalize(shifted, dim=1))
    assert (matlab(x) - caffe(x)).abs().max() > 1e-3
    assert (matlab(x) - mpn(x)).abs().max() > 1e-4


def test_locations():
    x = maps(2, 5, 3, 4).double() + 0.1
    bare = CompactBilinearPool2d(5, 11, sum_pool=False, **BARE).double()
    assert bare(x).shape == (2, 11, 3, 4)
    torch.testing.assert_close(bare(x).sum((2, 3)), CompactBilinearPool2d(5, 11, **BARE).double()(x))
    last = CompactBilinearPool2d(5, 11, sum_pool=False, channels_last=True, **BARE).double()
    assert torch.equal(last(x), bare(x).permute(0, 2, 3, 1))
    sample = CompactBilinearPool2d(5, 11, sum_pool=False).double()
    torch.testing.assert_close(sample(x).flatten(1).norm(dim=1), torch.ones(2).double())
    location = CompactBilinearPool2d(5, 11, sum_pool=False, norm_over="location").double()
    torch.testing.assert_close(location(x).norm(dim=1), torch.ones(2, 3, 4).double())


def test_a_map_with_itself_is_two_equal_maps():
    x = maps(2, 5, 3, 4)
    assert torch.equal(CompactBilinearFusion2d(5, 5, 11)(x, x), CompactBilinearPool2d(5, 11)(x))


def test_maps_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="the same batch and size"):
        CompactBilinearFusion2d(5, 4, 11)(maps(1, 5, 3, 4), maps(1, 4, 4, 3))


@pytest.mark.parametrize("projection", ["tensor_sketch", "random_maclaurin"])
def test_gradients_are_finite_where_all_is_zero(projection):
    layer = CompactBilinearPool2d(5, 11, projection, learn=True).double()
    x = torch.zeros(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    answer = layer(x)
    answer.sum().backward()
    assert not answer.any()
    assert all(t.grad is not None and not t.grad.any() for t in (x, *layer.parameters()))


def test_special_values_stay_in_their_bins():
    x = torch.ones(1, 3, 2, 2)
    x[0, 0, 0, 0] = torch.nan
    hashes = {"rand_h_1": [0, 1, 2], "rand_h_2": [0, 4, 8], "rand_s_1": [1, 1, 1], "rand_s_2": [1, 1, -1]}
    z = CompactBilinearPool2d(3, 12, **hashes, **BARE)(x)[0]
    assert z.isnan().tolist() == [t in (0, 1, 2, 4, 8) for t in range(12)]
    x[0, 0, 0, 0] = torch.inf
    z = CompactBilinearPool2d(3, 12, **hashes, **BARE)(x)[0]
    assert [t for t in range(12) if z[t] == torch.inf] == [0, 1, 2, 4]
    assert [t for t in range(12) if z[t] == -torch.inf] == [8]
    assert z[[3, 7, 11]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("portable", [False, True])
def test_realistic_files_repeat_every_bit_on_two_threads(tmp_path, portable):
    x = maps(1, 512, 14, 14)
    layer = CompactBilinearPool2d(512, 8192, **BARE)
    truth = pair_sums(layer, x[0].flatten(1), x[0].flatten(1))
    _, run = exported(tmp_path, layer, x, portable=portable, threads=2)
    first = run(x)
    assert error(layer(x).numpy()[0], truth) < 1e-6
    assert error(first[0], truth) < 1e-6
    assert all(np.array_equal(run(x), first) for _ in range(24))


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (CompactBilinearPool2d(6, 40), [(1, 6, 3, 4)]),
        (CompactBilinearPool2d(20, 24, sum_pool=False), [(1, 20, 3, 4)]),
        (CompactBilinearPool2d(20, 400, sum_pool=False), [(1, 20, 3, 4)]),
        (CompactBilinearPool2d(6, 40, "random_maclaurin"), [(1, 6, 3, 4)]),
        (MultimodalCompactBilinear0d(30, 20, 36).eval(), [(1, 30), (1, 20)]),
    ],
    ids=["pooled", "transform", "pairs", "maclaurin", "vectors"],
)
def test_files_hold_neither_unsafe_nor_inexact_operators(tmp_path, layer, shapes):
    path, _ = exported(tmp_path, layer, *(maps(*shape) for shape in shapes))
    model = onnx.load(path)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    kinds = {node.op_type for node in nodes}
    assert kinds.isdisjoint({"ScatterND", "DFT", "Einsum", "OneHot", "STFT"})
    assert ("ScatterElements" in kinds) == hasattr(layer, "rand_h_1")


@pytest.mark.parametrize("d", [1, 24, 37])
def test_transforms_of_any_length_add_up_pairs(tmp_path, d):
    x = maps(2, 30, 2, 3)
    layer = CompactBilinearPool2d(30, d, sum_pool=False, **BARE)
    _, run = exported(tmp_path, layer, x)
    x[1, 4, 0, 1], x[0, 7, 1, 2] = torch.nan, torch.inf
    np.testing.assert_allclose(run(x), layer(x).numpy(), rtol=1e-6, atol=1e-6)


def test_transforms_leave_bins_without_a_pair_empty(tmp_path):
    x = maps(2, 30, 2, 3)
    even = {f"rand_h_{end}": [2 * (i % 12) for i in range(30)] for end in (1, 2)}
    layer = CompactBilinearPool2d(30, 24, sum_pool=False, **even, **BARE)
    _, run = exported(tmp_path, layer, x)
    # where all signs of a bin cancel, its sum is exactly 0
    np.testing.assert_allclose(run(x), layer(x.double()).numpy(), rtol=1e-5, atol=1e-5)
    assert run(x)[:, ::2].any(axis=(0, 2, 3)).all()
    assert not run(x)[:, 1::2].any()


def test_lengths_to_transform():
    assert factored(8192) == (8192, 128, 64)
    for d in (1, 2, 31, 97, 8191, 12000):
        length, n, m = factored(d)
        assert n * m == length
        assert length == d or length >= 2 * d - 1


@pytest.mark.parametrize(("name", "wrong"), [("rand_h_1", -3), ("rand_s_2", math.nan)])
def test_a_refused_state_leaves_the_layer_as_it_is(name, wrong):
    layer = CompactBilinearPool2d(4, 8)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    state = {key: value.clone() for key, value in before.items()}
    state[name][0] = wrong
    with pytest.raises(RuntimeError, match=name):
        layer.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
