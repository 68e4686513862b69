"""Fractional max pooling: torch's windows bit for bit, Graham's regions by their odds, and one file for every size."""

from __future__ import annotations

import collections
import copy
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poolexport
from conformance.lab import Specimen
from poolexport import stress
from poolexport.method import Case
from poolexport.methods.fractional_max import METHOD, FractionalMaxPool2d, FractionalMaxPool3d

LAYERS = {2: (FractionalMaxPool2d, nn.FractionalMaxPool2d), 3: (FractionalMaxPool3d, nn.FractionalMaxPool3d)}
DRAWS = 4000
#: A chi-square above this, for up to nine degrees of freedom, happens by chance once in ten thousand.
CHI_SQUARE = 33.7


def configurations(rank: int):
    """Lengths, kernels and outputs that torch's own layer takes; in three dimensions one cell must be left over."""
    spare = 1 if rank == 3 else 0
    for n, k in itertools.product((4, 7, 12, 15) if rank == 2 else (5, 8), (1, 2, 3)):
        for o in range(1, n - k + 2 - spare):
            yield (n, n + 2, n + 1)[:rank], k, (o, min(o + 2, n - k + 2), o)[:rank]


@pytest.mark.parametrize("rank", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_windows_are_torchs_bit_for_bit(rank, dtype):
    ours, theirs = LAYERS[rank]
    generator = torch.Generator().manual_seed(0)
    for (lengths, k, o), pattern in zip(configurations(rank), itertools.cycle(("normal", "ties", "nan", "-inf"))):
        x = torch.from_numpy(stress.draw(pattern, (2, 3, *lengths))).to(dtype)
        quarters = torch.randint(0, 4, (2, 3, rank), generator=generator).to(dtype) / 4
        for samples in (torch.rand(2, 3, rank, generator=generator, dtype=dtype), quarters):
            options = {"output_size": o, "return_indices": True, "_random_samples": samples}
            layer = ours(k, precision=str(dtype).removeprefix("torch."), **options).eval()
            expected, where = theirs(k, **options)(x)
            values, indices = layer(x)
            assert torch.equal(indices, where), (lengths, k, o)
            assert torch.equal(values.nan_to_num(9.0), expected.nan_to_num(9.0))


@pytest.mark.parametrize("rank", LAYERS)
def test_training_draws_what_torch_draws(rank):
    ours, theirs = LAYERS[rank]
    x = torch.randn(2, 3, *(9, 10, 11)[:rank])
    answers = []
    for layer in (ours(2, output_ratio=0.6), theirs(2, output_ratio=0.6)):
        torch.manual_seed(3)
        answers.append(layer(x))
    assert torch.equal(*answers)


def test_gradients_are_torchs_where_cells_are_equal():
    x = torch.zeros(2, 3, 9, 9, requires_grad=True)
    samples = torch.rand(2, 3, 2)
    options = {"output_size": 5, "_random_samples": samples}
    mine, his = (torch.autograd.grad(layer(2, **options)(x).sum(), x)[0] for layer in LAYERS[2])
    assert torch.equal(mine, his)


def test_state_dicts_of_torchs_layer_load():
    samples = torch.rand(2, 3, 2)
    x = torch.randn(2, 3, 9, 9)
    fixed = nn.FractionalMaxPool2d(2, output_size=5, _random_samples=samples)
    layer = FractionalMaxPool2d(2, output_size=5).eval()
    layer.load_state_dict(nn.FractionalMaxPool2d(2, output_size=5).state_dict())
    assert layer._random_samples.tolist() == [[[0.5, 0.5]]]
    layer.load_state_dict(fixed.state_dict())
    assert torch.equal(layer(x), fixed(x))
    assert torch.equal(layer(x[:1]), fixed(x[:1]))
    with pytest.raises(ValueError, match="samples for 2 inputs"):
        layer(torch.randn(3, 3, 9, 9))


def test_equal_rows_serve_any_batch():
    rows = torch.rand(1, 3, 2).expand(2, -1, -1)
    layer = FractionalMaxPool2d(2, output_size=5, _random_samples=rows).eval()
    x = torch.randn(7, 3, 9, 9)
    expected = nn.FractionalMaxPool2d(2, output_size=5, _random_samples=rows[:1].expand(7, -1, -1).contiguous())(x)
    assert torch.equal(layer(x), expected)


def test_regions_stay_where_they_are_in_every_type():
    layer = FractionalMaxPool2d(2, output_size=9, _random_samples=torch.rand(1, 3, 2, dtype=torch.float64)).eval()
    x = torch.arange(196.0).reshape(1, 1, 14, 14).expand(1, 3, 14, 14)
    expected = layer(x)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        other = copy.deepcopy(layer).to(dtype)
        assert other._random_samples.dtype == torch.float64
        assert torch.equal(other(x.to(dtype)).float(), expected)


def test_new_samples_can_be_fixed():
    layer = FractionalMaxPool2d(2, output_size=9).eval()
    x = torch.randn(1, 3, 14, 14)
    before = layer(x)
    layer.draw_samples(torch.Generator().manual_seed(1))
    assert not torch.equal(layer(x), before)
    assert torch.equal(layer(x), layer(x))


def test_several_draws_are_averaged():
    samples = torch.rand(3, 1, 2, dtype=torch.float64)
    x = torch.randn(2, 3, 9, 9)
    layer = FractionalMaxPool2d(2, output_size=5, draws=3, _random_samples=samples).eval()
    single = [FractionalMaxPool2d(2, output_size=5, _random_samples=samples[m : m + 1]).eval()(x) for m in range(3)]
    torch.testing.assert_close(layer(x), torch.stack(single).mean(0))


def ends(layer: nn.Module, n: int) -> tuple[int, ...]:
    """The cell after the last of every region of the width: a map that rises has its maxima there."""
    x = torch.arange(float(n)).expand(1, 1, n, n).contiguous()
    return tuple(int(value) + 1 for value in layer(x)[0, 0, 0])


def frequencies(layer: nn.Module, n: int) -> collections.Counter[tuple[int, ...]]:
    torch.manual_seed(0)
    layer.train()
    return collections.Counter(ends(layer, n) for _ in range(DRAWS))


def chi_square(found: collections.Counter[tuple[int, ...]], odds: dict[tuple[int, ...], float]) -> float:
    stray = sum(count for outcome, count in found.items() if outcome not in odds)
    return (np.inf if stray else 0.0) + sum((found[key] - DRAWS * p) ** 2 / (DRAWS * p) for key, p in odds.items())


def random_odds(n: int, o: int) -> dict[tuple[int, ...], float]:
    """Every place of the longer steps is as likely as any other."""
    places = list(itertools.combinations(range(o), n % o))
    ends_of = [tuple(np.cumsum([n // o + (i in longer) for i in range(o)]).tolist()) for longer in places]
    return dict.fromkeys(ends_of, 1 / len(places))


def pseudorandom_odds(n: int, o: int, bound: float) -> dict[tuple[int, ...], float]:
    """Shares of u in (0, bound), by trying very many."""
    alpha, tries = n / o, 200_000
    u = (np.arange(tries) + 0.5) / tries * bound
    borders = np.ceil(alpha * (np.arange(1, o) + u[:, None])).astype(int) - 1
    found = collections.Counter(map(tuple, borders.tolist()))
    return {(*outcome, n): count / tries for outcome, count in found.items()}


def test_random_regions_have_the_papers_odds():
    found = frequencies(FractionalMaxPool2d(regions="random", output_size=5), 7)
    assert chi_square(found, random_odds(7, 5)) < CHI_SQUARE
    # Evenly spread steps are another rule, and the same test sees it.
    other = frequencies(FractionalMaxPool2d(regions="pseudorandom", output_size=5), 7)
    assert chi_square(other, random_odds(7, 5)) > CHI_SQUARE


def test_pseudorandom_regions_have_the_papers_odds():
    """Over 5 cells and 3 outputs u stays below 0.8; above, the first region would have 3 cells."""
    found = frequencies(FractionalMaxPool2d(regions="pseudorandom", output_size=3), 5)
    assert chi_square(found, pseudorandom_odds(5, 3, 0.8)) < CHI_SQUARE
    assert chi_square(found, pseudorandom_odds(5, 3, 1.0)) > CHI_SQUARE
    other = frequencies(FractionalMaxPool2d(regions="random", output_size=3), 5)
    assert chi_square(other, pseudorandom_odds(5, 3, 0.8)) > CHI_SQUARE


@pytest.mark.parametrize("regions", ["pseudorandom", "random"])
@pytest.mark.parametrize("overlapping", [False, True])
def test_grahams_regions_cover_everything_in_nearly_equal_steps(regions, overlapping):
    generator = torch.Generator().manual_seed(0)
    for n, o in ((9, 5), (10, 5), (14, 9), (17, 3), (8, 8), (7, 1)):
        layer = FractionalMaxPool2d(regions=regions, overlapping=overlapping, output_size=o).eval()
        for _ in range(20):
            layer.draw_samples(generator)
            x = torch.arange(float(n)).expand(1, 1, n, n).contiguous()
            first, last = -layer(-x)[0, 0, 0], layer(x)[0, 0, 0]
            assert first[0] == 0
            assert last[-1] == n - 1
            assert torch.equal(first[1:], last[:-1] + (0 if overlapping else 1))
            assert set(torch.diff(first, append=torch.tensor([float(n)])).tolist()) <= {n // o, n // o + 1}


@pytest.mark.parametrize("regions", ["pseudorandom", "random"])
def test_grahams_regions_are_shared_by_batch_and_channels_in_training(regions):
    layer = FractionalMaxPool2d(regions=regions, output_ratio=0.6)
    y = layer(torch.arange(121.0).reshape(1, 1, 11, 11).expand(4, 3, 11, 11))
    assert torch.equal(y, y[:1, :1].expand_as(y))
    y = FractionalMaxPool2d(2, output_ratio=0.6)(torch.arange(121.0).reshape(1, 1, 11, 11).expand(4, 3, 11, 11))
    assert not torch.equal(y, y[:1, :1].expand_as(y))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "output_ratio": 0.7},
        {"kernel_size": 2, "output_ratio": 0.57, "precision": "float64"},
        {"kernel_size": 3, "output_size": 4, "return_indices": True},
        {"regions": "pseudorandom", "output_ratio": 0.7, "return_indices": True},
        {"regions": "pseudorandom", "output_size": 3, "overlapping": True},
        {"regions": "random", "output_ratio": 0.7},
        {"regions": "random", "output_size": 4, "return_indices": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_one_file_serves_every_size_bit_for_bit(options):
    specimen = Specimen(METHOD, Case("sizes", options, shape=(2, 3, 9, 11)))
    for n in (*range(6, 34), 45, 90, 100, 200, 301):
        x = stress.draw("nan", (1, 3, n, n // 2 + 3))
        for answer, truth in zip(specimen.onnx(x), specimen.torch(x), strict=True):
            np.testing.assert_array_equal(answer, truth, err_msg=str(x.shape))


class Downstream(nn.Module):
    """A network that goes on with the lengths of the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = FractionalMaxPool2d(1, output_ratio=0.7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x)
        return y.flatten(1) + torch.zeros(1, y.shape[1] * y.shape[2] * y.shape[3])


def test_lengths_of_the_answer_are_right_where_single_precision_is_not(tmp_path):
    """int(90 * 0.7) is 62 in double, and 63 in single precision."""
    model = Downstream().eval()
    target = tmp_path / "net.onnx"
    poolexport.export(model, torch.randn(2, 3, 12, 14), target, dynamic_shapes={0: "N", 2: "H", 3: "W"})
    session = poolexport.session(target)
    for lengths in ((90, 45), (63, 90), (20, 10)):
        x = torch.randn(1, 3, *lengths)
        np.testing.assert_array_equal(session.run(None, {"x": x.numpy()})[0], model(x).numpy())


def test_a_file_with_samples_per_input_refuses_a_larger_batch():
    samples = torch.rand(4, 3, 2).tolist()
    case = Case("limited", {"kernel_size": 2, "output_size": 5, "_random_samples": samples})
    specimen = Specimen(METHOD, case)
    assert specimen.onnx(stress.draw("normal", (4, 3, 9, 11)))[0].shape == (4, 3, 5, 5)
    with pytest.raises(Exception, match="Expand"):
        specimen.onnx(stress.draw("normal", (5, 3, 9, 11)))
