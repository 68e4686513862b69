"""Max unpooling is torch's, undoes every pooling that returns indices, and is exported with its dynamic lengths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poolexport
from conformance.lab import Specimen
from poolexport import stress
from poolexport.methods.max_unpool import METHOD, MaxUnpool2d
from poolexport.nn import MaxPool2d

POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
UNPOOLS = {1: nn.MaxUnpool1d, 2: nn.MaxUnpool2d, 3: nn.MaxUnpool3d}


@pytest.mark.parametrize("rank", POOLS)
def test_layers_are_torchs_after_every_pooling(rank):
    for (k, s, p), n in itertools.product(itertools.product((1, 2, 3), (1, 2, 3), (0, 1)), (5, 6, 7)):
        if p > k // 2:
            continue
        x = torch.randn(2, 3, *(n, n + 1, n + 2)[:rank])
        values, indices = POOLS[rank](k, s, p, return_indices=True)(x)
        values.requires_grad_()
        answers = [
            layer(values, indices, output_size=size)
            for size in (x.shape, x.shape[2:])
            for layer in (METHOD.layer(rank)(k, s, p), UNPOOLS[rank](k, s, p))
        ]
        assert all(torch.equal(answers[0], other) for other in answers[1:])
        assert answers[0].shape == x.shape
        mine, his = (torch.autograd.grad((y**2).sum(), values, retain_graph=True)[0] for y in answers[:2])
        assert torch.equal(mine, his)


def test_the_default_size_is_torchs():
    for case in METHOD.cases:
        x = torch.from_numpy(stress.draw("nan", case.shape))
        [indices] = (torch.from_numpy(a) for a in METHOD.inputs(case, x.numpy())[1:])
        expected = UNPOOLS[case.rank](**case.options)(x, indices)
        assert torch.equal(METHOD.build(case)(x, indices).nan_to_num(9.0), expected.nan_to_num(9.0))


@pytest.mark.parametrize("form", ["function", "inlined", "native"])
def test_of_equal_indices_the_last_stays(form):
    specimen = Specimen(METHOD, METHOD.cases[0])
    x = stress.draw("normal", METHOD.cases[0].shape)
    indices = np.random.default_rng(0).integers(0, 12, x.shape)
    expected = nn.MaxUnpool2d(2)(torch.from_numpy(x), torch.from_numpy(indices)).numpy()
    np.testing.assert_array_equal(MaxUnpool2d(2)(torch.from_numpy(x), torch.from_numpy(indices)).numpy(), expected)
    [answer] = specimen.session(form).run(None, {"x0": x, "x1": indices})
    np.testing.assert_array_equal(answer, expected)


class There(nn.Module):
    """Down and up again, as in SegNet: the lengths of the way up are those of the way down."""

    def __init__(self, *, torchs: bool) -> None:
        super().__init__()
        window = {"kernel_size": 3, "stride": 2, "padding": 1}
        self.down = nn.MaxPool2d(**window, return_indices=True) if torchs else MaxPool2d(**window, return_indices=True)
        self.up = nn.MaxUnpool2d(**window) if torchs else MaxUnpool2d(**window)

    def forward(self, x: Tensor) -> Tensor:
        half, first = self.down(x)
        quarter, second = self.down(half)
        return self.up(self.up(quarter, second, output_size=half.shape), first, output_size=x.shape)


@pytest.mark.parametrize("portable", [False, True])
def test_a_network_goes_down_and_up_at_every_size(tmp_path, portable):
    ours, theirs = There(torchs=False).eval(), There(torchs=True).eval()
    target = tmp_path / "net.onnx"
    axes = {0: "N", 2: "H", 3: "W"}
    poolexport.export(ours, torch.randn(2, 3, 12, 14), target, dynamic_shapes=axes, portable=portable)
    session = poolexport.session(target)
    for n, batch in itertools.product(range(1, 20), (1, 3)):
        x = torch.randn(batch, 3, n, n + 3)
        np.testing.assert_array_equal(session.run(None, {"x": x.numpy()})[0], theirs(x).numpy())


class Fixed(nn.Module):
    """Unpooling to a size that the network knows."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.up = MaxUnpool2d(2)

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        return self.up(x, indices, output_size=self.size)


@pytest.mark.parametrize("size", [(7, 9), (9, 11), (8, 10), (1, 3, 9, 11)])
def test_other_sizes_within_a_stride_are_right_in_a_graph(size, tmp_path):
    x = torch.randn(1, 3, 4, 5)
    indices = torch.stack([torch.randperm(63)[:20] for _ in range(3)]).reshape(1, 3, 4, 5)
    poolexport.export(Fixed(size).eval(), (x, indices), tmp_path / "net.onnx")
    session = poolexport.session(tmp_path / "net.onnx")
    expected = nn.MaxUnpool2d(2)(x, indices, output_size=size)
    np.testing.assert_array_equal(session.run(None, {"x": x.numpy(), "indices": indices.numpy()})[0], expected.numpy())


@pytest.mark.parametrize(
    ("shape", "indices", "options", "message"),
    [
        ((1, 1, 2, 2), torch.zeros(1, 1, 2, 3, dtype=torch.int64), {}, "of the input's shape"),
        ((1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int32), {}, "int64"),
        ((1, 1, 2, 2), torch.full((1, 1, 2, 2), 16), {}, "in a plane of lengths (4, 4), got 16 to 16"),
        ((1, 1, 2, 2), torch.full((1, 1, 2, 2), -1), {}, "in a plane of lengths"),
        ((1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int64), {"output_size": (6, 4)}, "less than a stride"),
        ((1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int64), {"output_size": (4, 4, 4)}, "2 or 4 entries"),
        ((1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int64), {"output_size": 4}, "a sequence of ints, got 4"),
        ((1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int64), {"output_size": (4.5, 4)}, "must hold ints"),
        ((1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), {}, "expects an input of shape"),
    ],
)
def test_what_does_not_fit_is_refused(shape, indices, options, message):
    with pytest.raises(ValueError) as raised:
        MaxUnpool2d(2)(torch.zeros(shape), indices, **options)
    assert message in str(raised.value)


def test_an_empty_output_is_refused():
    with pytest.raises(ValueError, match="lengths must be positive"):
        MaxUnpool2d(2, stride=1, padding=1)(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64))
