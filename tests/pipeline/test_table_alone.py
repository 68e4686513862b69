"""Plain ``torch.onnx.export`` with our table: the answers of ``poolexport.export``, or no file where none is right."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poolexport
from poolexport.errors import ExportError, InputError, ModeError, PoolExportError, RandomnessError, ValueDependentError
from poolexport.translate import computed, tracing, translation_table

IMAGE = (2, 4, 11, 13)
NHW = {0: "n", 2: "h", 3: "w"}
UNSEEN = (IMAGE, (5, 4, 16, 9), (1, 4, 12, 14))


class Calls(nn.Module):
    """Functions and layers side by side, to share an export."""

    def __init__(self, *parts: Callable[..., Any]) -> None:
        super().__init__()
        self.parts = parts
        self.layers = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def forward(self, x):
        found: list[Any] = []
        for part in self.parts:
            y = part(x)
            found += list(y) if isinstance(y, tuple) else [y]
        return tuple(found)


class Recurrent(nn.Module):
    """A recurrent layer over the rows of a map."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(1, 2))[0]


def by_table(
    model: nn.Module, *inputs: torch.Tensor, axes: Any = None, opset: int | None = None, **options: Any
) -> bytes:
    shapes = (axes,) if isinstance(axes, dict) else axes
    program = torch.onnx.export(
        model,
        inputs,
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
        opset_version=opset,
        custom_translation_table=translation_table(opset=opset, **options),
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def answers(file: bytes, *inputs: torch.Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(file)
    return session.run(None, {port.name: x.numpy() for port, x in zip(session.get_inputs(), inputs)})


def reason(error: BaseException | None) -> PoolExportError:
    """Our error among those that torch's exporter raised from it."""
    while error is not None and not isinstance(error, PoolExportError):
        error = error.__cause__ or error.__context__
    assert error is not None
    return error


def covariance(x):
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    return flat @ flat.mT / flat.shape[2] + 0.05 * torch.eye(x.shape[1], dtype=x.dtype)


SAMPLES = torch.tensor([0.1, 0.9, 0.4, 0.6, 0.0, 0.5, 0.3, 0.8]).reshape(1, 4, 2)
ALIKE = {
    "windows": Calls(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True, return_indices=True),
        nn.MaxPool2d(3, 2),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
        nn.LPPool2d(2, 3, 2, ceil_mode=True),
        nn.AdaptiveAvgPool2d((None, 5)),
        nn.AdaptiveMaxPool2d(3, return_indices=True),
        lambda x: F.fractional_max_pool2d(x[:1], 2, (4, 5), _random_samples=SAMPLES),
    ),
    "heads": Calls(
        poolexport.nn.SoftPool2d(2),
        poolexport.nn.GeMPool2d(2),
        nn.Sequential(
            nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(4, 3)
        ),
        lambda x: torch.linalg.eigvalsh(covariance(x)),
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[2:]),
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_both_exporters_write_files_that_answer_the_same(name, tmp_path):
    """Bit for bit, but for sums that torch's optimiser puts into another order: those may differ by one unit."""
    torch.manual_seed(0)
    model = ALIKE[name].eval()
    plain = by_table(model, torch.randn(IMAGE), axes=({0: "n", 2: "h", 3: "w"},))
    ours = poolexport.export(model, torch.randn(IMAGE), tmp_path / "f.onnx", dynamic_shapes=NHW, verify=False).model
    for shape in UNSEEN:
        x = torch.randn(shape)
        for a, b in zip(answers(plain, x), answers(ours.read_bytes(), x), strict=True):
            unit = np.spacing(np.abs(b).max()) if np.issubdtype(b.dtype, np.floating) else 0
            np.testing.assert_allclose(a, b, rtol=0, atol=unit)


class Host(nn.Module):
    def __init__(self, part: Callable[..., Any] | nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), part if isinstance(part, nn.Module) else Calls(part))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("part", "kind", "message"),
    [
        (
            lambda x: x * torch.rand(4, 1, 1),
            RandomnessError,
            r"body\.1 \(Calls\) at .*test_table_alone\.py:\d+: rand draws",
        ),
        (lambda x: x[:, torch.randperm(4)], RandomnessError, "randperm draws random numbers"),
        (lambda x: torch.multinomial(x.flatten(1).abs(), 3), RandomnessError, "multinomial draws"),
        (lambda x: x + torch.empty_like(x).uniform_(), RandomnessError, "uniform draws"),
        (lambda x: F.gumbel_softmax(x), RandomnessError, "exponential draws"),
        (
            nn.Dropout2d().train(),
            RandomnessError,
            r"body\.1 \(Dropout2d\) at .*: bernoulli draws .* call model\.eval\(\)",
        ),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
            RandomnessError,
            r"body\.1 \(Calls\) at .*: scaled_dot_product_attention drops values at random",
        ),
        (Recurrent(nn.LSTM(13, 5, 2, dropout=0.5)).train(), ModeError, "lstm is in training mode, in which it drops"),
        (Recurrent(nn.GRU(13, 5, 2, dropout=0.5)).train(), ModeError, "gru is in training mode, in which it drops"),
        (nn.Dropout().train(), ModeError, r"body\.1 \(Dropout\) at .*: native_dropout is in training mode"),
        (nn.RReLU().train(), ModeError, r"body\.1 \(RReLU\) at .*: rrelu is in training mode"),
        (nn.BatchNorm2d(4).train(), ModeError, r"body\.1 \(BatchNorm2d\) at .*: .*statistics of its input"),
        (nn.InstanceNorm2d(4, track_running_stats=True).train(), ModeError, "instance_norm is in training mode"),
        (nn.FractionalMaxPool2d(2, 4), RandomnessError, r"body\.1 \(FractionalMaxPool2d\) at .*: .* or a seed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_draws_or_trains_is_refused_by_module_and_line(part, kind, message):
    with pytest.raises(Exception) as caught:
        by_table(Host(part), torch.randn(IMAGE))
    with pytest.raises(kind, match=message):
        raise reason(caught.value)


def test_eval_mode_and_layers_without_statistics_of_their_own_pass():
    model = Calls(
        nn.Dropout().eval(),
        nn.Dropout(0.0),
        nn.RReLU().eval(),
        nn.BatchNorm2d(4).eval(),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(),
        Recurrent(nn.LSTM(13, 5, 2, dropout=0.5)).eval(),
        Recurrent(nn.GRU(13, 5, 2)),
        lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3),
    )
    file = by_table(model, torch.randn(IMAGE))
    x = torch.randn(IMAGE)
    for got, want in zip(answers(file, x), model(x), strict=True):
        np.testing.assert_allclose(got, want.detach().numpy(), atol=2e-6)


def test_randomness_is_kept_where_it_is_asked_for(tmp_path):
    model = Calls(lambda x: x * torch.rand(4, 1, 1), nn.Dropout().train(), nn.FractionalMaxPool2d(2, 4))
    file = by_table(model, torch.randn(IMAGE), keep_randomness=True)
    x = torch.arange(math.prod(IMAGE), dtype=torch.float32).reshape(IMAGE)
    session = ort.InferenceSession(file)
    runs = [session.run(None, {session.get_inputs()[0].name: x.numpy()}) for _ in range(2)]
    for first, again in zip(*runs, strict=True):
        assert not np.array_equal(first, again)
    layer = Calls(lambda x: x * torch.rand(4, 1, 1)).eval()
    bundle = poolexport.export(layer, x, tmp_path / "f.onnx", randomness={"(the model itself)": "keep"})
    assert bundle.manifest.verdict == "UNVERIFIED"


def test_a_seed_fixes_the_regions_of_fractional_pooling():
    model = Calls(nn.FractionalMaxPool2d(2, 4, return_indices=True), lambda x: x * 2)
    axes = ({0: "n", 2: "h", 3: "w"},)
    x = torch.arange(3 * 4 * 14 * 9, dtype=torch.float32).reshape(3, 4, 14, 9)
    first, again, other = (answers(by_table(model, torch.randn(IMAGE), axes=axes, seed=seed), x) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    with tracing(seed=1):
        traced = answers(by_table(model, torch.randn(IMAGE), axes=axes), x)
    np.testing.assert_array_equal(first[0], traced[0])
    samples = torch.from_numpy(np.random.default_rng(1).random((1, 4, 2), np.float32)).expand(3, -1, -1)
    want = F.fractional_max_pool2d(x, 2, 4, return_indices=True, _random_samples=samples)
    for got, y in zip(first[:2], want, strict=True):
        np.testing.assert_array_equal(got, y.numpy())


def test_a_seed_for_three_dimensions_is_asked_for_while_torch_traces():
    """torch cannot trace these with dynamic sizes, so that the table is never asked."""
    layer, cube = nn.FractionalMaxPool3d(2, 4), torch.randn(2, 3, 8, 8, 8)
    with pytest.raises(Exception) as caught, tracing():
        by_table(layer, cube, axes=({0: "n"},))
    assert isinstance(reason(caught.value), RandomnessError)


@pytest.mark.parametrize("options", [{"opset": 17}, {"opset": 24}, {"seed": -1}, {"seed": True}])
def test_what_torch_does_not_write_is_refused(options):
    with pytest.raises(InputError, match=r"opsets 18 to 23, not|seed must be a whole number"):
        translation_table(**options)


@pytest.fixture(scope="module")
def sampler() -> Calls:
    places = torch.cat([torch.arange(-33, 34) / 8, torch.tensor([math.nan])])
    grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), -1)[None]
    return Calls(
        *(
            lambda x, corners=corners: F.grid_sample(
                x, grid.expand(x.shape[0], -1, -1, -1).to(x.dtype), "nearest", "reflection", corners
            )
            for corners in (False, True)
        )
    )


def test_an_opset_without_a_kernel_is_refused(sampler):
    x = torch.randn(IMAGE).double()
    with pytest.raises(Exception) as caught:
        by_table(sampler, x, opset=18)
    with pytest.raises(ExportError, match="no onnxruntime has a kernel of GridSample for double in opset 18"):
        raise reason(caught.value)
    assert len(answers(by_table(sampler, x, opset=20), x)) == 2


def test_nearest_cells_reflect_as_torch_has_them(sampler, tmp_path):
    """A grid of eighths of a map of 8 cells lies halfway between cells, inside and beyond all borders."""
    file = by_table(sampler, torch.randn(1, 2, 8, 8), axes=({0: "n", 2: "h", 3: "w"},))
    for shape in ((1, 2, 8, 8), (2, 2, 16, 4), (1, 2, 1, 3)):
        x = torch.randn(shape)
        for got, want in zip(answers(file, x), sampler(x), strict=True):
            np.testing.assert_array_equal(got, want.numpy())


def third(n):
    return math.ceil(n / 3)


WINDOWS = (
    lambda x: F.max_pool2d(x, (third(x.shape[2]), 2), (third(x.shape[2]), 1), (0, 1), ceil_mode=True),
    lambda x: F.max_pool2d(x, (2, x.shape[3] // 2), 1, 1, (2, 1), return_indices=True),
    lambda x: F.avg_pool2d(x, (x.shape[2] // 2, 2), (third(x.shape[2]), 3), (x.shape[2] // 4, 1), ceil_mode=True),
)


@pytest.fixture(scope="module")
def windows() -> bytes:
    with tracing():
        return by_table(Calls(*WINDOWS), torch.randn(IMAGE), axes=({0: "n", 2: "h", 3: "w"},))


@pytest.mark.parametrize("height", [6, 7, 8, 9, 11, 14, 23])
def test_computed_windows_follow_every_size(windows, height):
    for number, width in enumerate((5, 8, 13)):
        x = torch.randn(1 + number, 4, height, width)
        x[0, 0] = x[0, 0].round()
        x[0, 1, height // 2, 1:3] = math.nan
        x[0, 2] = -math.inf
        for got, want in zip(answers(windows, x), Calls(*WINDOWS)(x), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=2e-6, atol=2e-6)


def test_a_wrong_computed_window_is_caught(monkeypatch, tmp_path):
    """The last window over the end is divided by cells behind the pads, too: by torch's count it is not."""
    counted = computed._Cells.counted
    monkeypatch.setattr(computed._Cells, "counted", lambda self, pads: counted(replace(self, padding=99), pads))
    layer = Calls(lambda x: F.avg_pool1d(x[:, 0], x.shape[3] // 2, 4, ceil_mode=True)).eval()
    with pytest.raises(poolexport.ParityError):
        poolexport.export(layer, torch.randn(IMAGE), tmp_path / "f.onnx", dynamic_shapes=NHW)


class LoopsOverBoxes(nn.Module):
    def forward(self, x, boxes):
        sizes = [[int(v) for v in box.tolist()] for box in boxes]
        return torch.stack([F.adaptive_max_pool2d(x[0, :, :h, :w], 2) for h, w in sizes])


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = LoopsOverBoxes()

    def forward(self, x, boxes):
        return self.head(x, boxes)


def test_a_decision_by_values_is_an_error_of_its_own():
    inputs = torch.randn(IMAGE), torch.tensor([[2.0, 3.0], [3.0, 4.0]])
    with pytest.raises(ValueDependentError, match=r"at .*test_table_alone\.py:\d+, which .*RoIMaxPool2d"), tracing():
        by_table(Detector(), *inputs)
    with pytest.raises(ValueDependentError, match=r"^head decides by the values of a tensor at .*\.py:\d+") as caught:
        poolexport.export(Detector().eval(), inputs, "nowhere.onnx")
    assert isinstance(caught.value, ExportError)


def test_draws_of_python_are_seen_while_torch_traces():
    model = Calls(lambda x: x * random.random())
    with pytest.raises(RandomnessError, match="Python's random was drawn from"), tracing():
        by_table(model, torch.randn(IMAGE))
    with tracing(keep_randomness=True):
        by_table(model, torch.randn(IMAGE))
