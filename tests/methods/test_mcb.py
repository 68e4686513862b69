"""Multimodal compact bilinear pooling: what meets what, dropout, and vectors of the size of published networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import poolexport
from poolexport.nn import CompactBilinearFusion2d, MultimodalCompactBilinear0d, MultimodalCompactBilinear2d

BARE = {"signed_sqrt": False, "norm": "none"}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def test_defaults_are_the_papers():
    layer = MultimodalCompactBilinear0d(8, 4)
    assert (layer.output_dim, layer.dropout) == (16000, 0.1)
    assert list(layer.state_dict()) == ["rand_h_1", "rand_s_1", "rand_h_2", "rand_s_2"]
    assert layer(drawn(3, 8), drawn(3, 4)).shape == (3, 16000)


def test_a_vector_meets_every_location():
    x, v = drawn(2, 5, 3, 4), drawn(2, 6, seed=1)
    layer = MultimodalCompactBilinear2d(5, 6, 17, norm_over="location").eval()
    alone = MultimodalCompactBilinear0d(5, 6, 17).eval()
    answer = layer(x, v)
    assert torch.equal(answer, layer(x, v[:, :, None, None].expand(-1, -1, 3, 4)))
    for row, column in np.ndindex(3, 4):
        torch.testing.assert_close(answer[:, :, row, column], alone(x[:, :, row, column], v))
    last = MultimodalCompactBilinear2d(5, 6, 17, norm_over="location", channels_last=True).eval()
    assert torch.equal(last(x, v), answer.permute(0, 2, 3, 1))


def test_maps_meet_location_by_location():
    x, y = drawn(2, 5, 3, 4), drawn(2, 6, 3, 4, seed=1)
    layer = MultimodalCompactBilinear2d(5, 6, 17, **BARE).eval()
    torch.testing.assert_close(layer(x, y).sum((2, 3)), CompactBilinearFusion2d(5, 6, 17, **BARE)(x, y))


def test_the_norm_is_that_of_the_whole_sample():
    x, v = drawn(2, 5, 3, 4), drawn(2, 6, seed=1)
    answer = MultimodalCompactBilinear2d(5, 6, 17).eval()(x, v)
    torch.testing.assert_close(answer.flatten(1).norm(dim=1), torch.ones(2))


def test_dropout_is_for_training():
    x, v = drawn(4, 5), drawn(4, 6, seed=1)
    layer = MultimodalCompactBilinear0d(5, 6, 4000, dropout=0.25, rand_h_1=range(0, 500, 100))
    layer.eval()
    whole = layer(x, v)
    layer.train()
    torch.manual_seed(0)
    some = layer(x, v)
    kept = some != 0
    torch.testing.assert_close(some[kept], whole[kept] / 0.75)
    assert 0.6 < kept.sum() / (whole != 0).sum() < 0.9


@pytest.mark.parametrize("shape", [(3, 6), (2, 6, 4, 3), (2, 6, 12)])
def test_partners_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="the second input must be vectors"):
        MultimodalCompactBilinear2d(5, 6, 17)(drawn(2, 5, 3, 4), drawn(*shape))
    with pytest.raises(ValueError, match="the second input must be vectors"):
        MultimodalCompactBilinear0d(5, 6, 17)(drawn(2, 5), drawn(2, 6, 1, 1))


def test_a_file_of_two_maps(tmp_path):
    x, y = drawn(2, 5, 3, 4), drawn(2, 6, 3, 4, seed=1)
    layer = MultimodalCompactBilinear2d(5, 6, 17).eval()
    axes = [{0: "N", 2: "H", 3: "W"}] * 2
    poolexport.export(layer, (x, y), tmp_path / "two.onnx", input_names=["x", "y"], dynamic_shapes=axes)
    session = poolexport.session(tmp_path / "two.onnx")
    for shape in ((2, 3, 4), (1, 5, 2)):
        a, b = (drawn(shape[0], c, *shape[1:], seed=c) for c in (5, 6))
        [answer] = session.run(None, {"x": a.numpy(), "y": b.numpy()})
        np.testing.assert_allclose(answer, layer(a, b).numpy(), rtol=1e-6, atol=1e-7)


def test_vectors_of_realistic_size(tmp_path):
    a, b = drawn(1, 800), drawn(1, 700, seed=1)
    layer = MultimodalCompactBilinear0d(800, 700, **BARE).eval()
    h1, s1, h2, s2 = (getattr(layer, f"rand_{kind}_{end}").numpy() for end in (1, 2) for kind in "hs")
    truth = np.zeros(16000)
    products = (s1 * a[0].double().numpy())[:, None] * (s2 * b[0].double().numpy())
    np.add.at(truth, (h1[:, None] + h2) % 16000, products)
    poolexport.export(layer, (a, b), tmp_path / "vectors.onnx", input_names=["a", "b"])
    assert (tmp_path / "vectors.onnx").stat().st_size < 3e6
    session = poolexport.session(tmp_path / "vectors.onnx", threads=2)
    answers = [session.run(None, {"a": a.numpy(), "b": b.numpy()})[0] for _ in range(20)]
    assert all(np.array_equal(answers[0], other) for other in answers)
    for answer in (layer(a, b).numpy(), answers[0]):
        assert np.abs(answer[0] - truth).max() < 1e-7 * np.abs(truth).max()
    a[0, 3], b[0, 5] = torch.nan, -torch.inf
    [answer] = session.run(None, {"a": a.numpy(), "b": b.numpy()})
    np.testing.assert_allclose(answer, layer(a, b).numpy(), rtol=1e-5, atol=1e-5)
