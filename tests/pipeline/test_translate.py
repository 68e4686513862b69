"""The table: torch's own pooling, exported by torch or by us, answers as torch does at sizes the trace never saw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import poolexport
from poolexport.errors import ExportError, ParityError, RandomnessError
from poolexport.pipeline import export as export_stage
from poolexport.translate import average, tracing

IMAGE, LINE, CUBE = (2, 4, 11, 13), (2, 3, 11), (1, 2, 8, 9, 7)
NHW = {0: "n", 2: "h", 3: "w"}


class Call(nn.Module):
    def __init__(self, *parts: Callable[..., Any]) -> None:
        super().__init__()
        self.parts = parts
        self.layers = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])

    def forward(self, x):
        answers = [part(x) for part in self.parts]
        return tuple(y for answer in answers for y in (answer if isinstance(answer, tuple) else (answer,)))


@dataclass(frozen=True)
class Model:
    """Calls of pooling that share an export, for the sake of time."""

    parts: tuple[Callable[..., Any], ...]
    shape: tuple[int, ...] = IMAGE
    unseen: tuple[tuple[int, ...], ...] = ((5, 4, 16, 9), (1, 4, 13, 14))
    axes: tuple[tuple[int, str], ...] = tuple(NHW.items())
    traced: bool = False

    @property
    def module(self) -> nn.Module:
        return Call(*self.parts).eval()


def regular(x):
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    return flat @ flat.mT / flat.shape[2] + 0.05 * torch.eye(x.shape[1], dtype=x.dtype)


def log_by_eigh(x):
    values, vectors = torch.linalg.eigh(regular(x))
    return (vectors * values.log()[:, None]) @ vectors.mT


def root_by_svd(x):
    u, values, vh = torch.linalg.svd(regular(x))
    return (u * values.sqrt()[:, None]) @ vh


PLACES = torch.tensor([0, 2, 2, 1])
SAMPLES = torch.tensor([0.1, 0.9, 0.4, 0.6, 0.0, 0.5, 0.3, 0.8]).reshape(1, 4, 2)
MODELS = {
    "lines": Model(
        (
            nn.MaxPool1d(3, 2, ceil_mode=True),
            nn.AvgPool1d(3, 2, 1, ceil_mode=True),
            nn.AdaptiveAvgPool1d(5),
            nn.AdaptiveMaxPool1d(5, return_indices=True),
            nn.LPPool1d(2, 3, ceil_mode=True),
            lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2, output_size=x.shape[2:]),
        ),
        LINE,
        ((4, 3, 16), (1, 3, 9)),
        ((0, "n"), (2, "h")),
        traced=True,
    ),
    "cubes": Model(
        (
            nn.MaxPool3d(2, ceil_mode=True),
            nn.AvgPool3d(3, 2, (1, 0, 1), ceil_mode=True, divisor_override=3),
            nn.AdaptiveAvgPool3d((2, 3, 1)),
            nn.AdaptiveMaxPool3d(2),
        ),
        CUBE,
        ((2, 2, 5, 6, 7), (1, 2, 9, 8, 10)),
        ((0, "n"), (2, "d"), (3, "h"), (4, "w")),
    ),
    "max": Model(
        (
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.MaxPool2d(2, 3, 1, dilation=3, ceil_mode=True),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True, return_indices=True),
            nn.AdaptiveMaxPool2d(3, return_indices=True),
        )
    ),
    "average": Model(
        (
            nn.AvgPool2d(3, 3, 1, ceil_mode=True, count_include_pad=False),
            nn.AvgPool2d(2, 3, ceil_mode=True),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5),
            nn.AdaptiveAvgPool2d(7),
            nn.AdaptiveAvgPool2d((None, 4)),
            nn.AdaptiveAvgPool2d(1),
            nn.LPPool2d(3, 3, 2, ceil_mode=True),
            poolexport.nn.SoftPool2d(2),
            lambda x: F.interpolate(x, size=(round(x.shape[2] * 0.6), 5)),
        )
    ),
    "unbatched": Model((nn.AvgPool2d(3, 2, 1),), (4, 11, 13), ((4, 8, 9),), ((1, "h"), (2, "w"))),
    "computed windows": Model(
        (
            lambda x: F.max_pool2d(x, x.shape[2:]),
            lambda x: F.avg_pool2d(x, x.shape[2:], divisor_override=7),
            lambda x: F.avg_pool2d(x, (3, x.shape[3]), stride=2),
            nn.AdaptiveMaxPool2d((None, 4)),
            lambda x: F.fractional_max_pool2d(x[:1], 2, (4, 5), _random_samples=SAMPLES, return_indices=True),
            lambda x: F.fractional_max_pool2d(x[:1], 2, output_ratio=(0.5, 0.5), _random_samples=SAMPLES),
        ),
        traced=True,
    ),
    "places": Model(
        (
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[2:]),
            lambda x: torch.zeros_like(x).index_add(2, PLACES, x[:, :, :4], alpha=2),
            lambda x: torch.zeros_like(x[0]).index_put((PLACES, PLACES + 1), x[0, :, 0], accumulate=True),
            lambda x: torch.ops.aten.index_put(torch.zeros_like(x), [None, None, PLACES - 3], x[:, :, :4], True),
            lambda x: torch.zeros_like(x).index_put((torch.tensor([0]),), x[:1]),
        )
    ),
    "transforms": Model(
        (
            lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(x + 1), n=12),
            lambda x: torch.view_as_real(torch.fft.fft(x, n=307)),
            lambda x: torch.view_as_real(torch.fft.fft(x, n=360, norm="ortho")),
            lambda x: torch.fft.ifft(torch.fft.fft(x, dim=0), dim=0).real,
            lambda x: torch.fft.irfft2(torch.fft.rfft2(x.reshape(-1, 3, 4)), s=(3, 4)),
        ),
        (2, 12),
        ((5, 12),),
        ((0, "n"),),
        traced=True,
    ),
    "covariances": Model(
        (torch.cov, lambda x: torch.cov(x, correction=0, aweights=x[0].abs())),
        (5, 20),
        ((7, 9),),
        ((0, "c"), (1, "n")),
        traced=True,
    ),
    "matrices": Model(
        (
            log_by_eigh,
            root_by_svd,
            lambda x: torch.linalg.eigvalsh(regular(x)),
            lambda x: torch.linalg.svdvals(x.flatten(2)),
            lambda x: torch.linalg.inv(regular(x)),
            lambda x: torch.linalg.cholesky(regular(x)),
            lambda x: torch.linalg.matrix_exp(regular(x)),
        )
    ),
}


def by_torch(model: Model, table: dict[Any, Any] | None = None) -> bytes:
    x = torch.randn(model.shape)
    with tracing() if model.traced else torch.no_grad():
        program = torch.onnx.export(
            model.module,
            (x,),
            dynamic_shapes=(dict(model.axes),),
            dynamo=True,
            verbose=False,
            custom_translation_table=poolexport.translation_table() if table is None else table,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


def by_us(model: Model, folder: Any) -> bytes:
    x = torch.randn(model.shape)
    bundle = poolexport.export(model.module, x, folder / "f.onnx", dynamic_shapes=dict(model.axes), verify=False)
    return bundle.model.read_bytes()


def answers(file: bytes, x: torch.Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(file)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def expected(model: Model, x: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        y = model.module(x)
    return [t.numpy() for t in (y if isinstance(y, tuple) else (y,))]


def worst(model: Model, file: bytes) -> float:
    error = 0.0
    for shape in (model.shape, *model.unseen):
        x = torch.randn(shape)
        for got, want in zip(answers(file, x), expected(model, x), strict=True):
            assert got.shape == want.shape
            np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
            scale = max(1.0, float(np.nanmax(np.abs(want), initial=0.0)))
            error = max(error, float(np.nanmax(np.abs(got - want), initial=0.0)) / scale)
    return error


def every_node(file: bytes) -> list[onnx.NodeProto]:
    model = onnx.load_from_string(file)
    found, graphs = [], [model.graph.node, *(function.node for function in model.functions)]
    while graphs:
        for node in graphs.pop():
            found.append(node)
            graphs += [a.g.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], tuple[bytes, bytes]]:
    kept: dict[str, tuple[bytes, bytes]] = {}

    def of(name: str) -> tuple[bytes, bytes]:
        if name not in kept:
            torch.manual_seed(0)
            kept[name] = by_torch(MODELS[name]), by_us(MODELS[name], tmp_path_factory.mktemp("files"))
        return kept[name]

    return of


@pytest.mark.parametrize("name", MODELS)
def test_both_exporters_answer_as_torch_does_at_unseen_sizes(name, files):
    for file in files(name):
        assert worst(MODELS[name], file) < 1e-5
        for node in every_node(file):
            assert node.op_type != "DFT"
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert not (node.op_type == "ScatterND" and attributes.get("reduction", b"none") != b"none")
            assert not attributes.get("ceil_mode")


@pytest.mark.parametrize("opset", [18, 23])
def test_every_opset(opset):
    model = Model((MODELS["average"].parts[0], nn.AdaptiveMaxPool2d(3), lambda x: torch.linalg.eigvalsh(regular(x))))
    program = torch.onnx.export(
        model.module,
        (torch.randn(model.shape),),
        dynamic_shapes=(NHW,),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        custom_translation_table=poolexport.translation_table(),
    )
    assert program is not None
    assert program.model.opset_imports[""] == opset
    assert worst(model, program.model_proto.SerializeToString()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions(dtype):
    model = Model((*MODELS["average"].parts[:4], *MODELS["max"].parts[2:], MODELS["places"].parts[1])).module
    program = torch.onnx.export(
        model,
        (torch.randn(IMAGE).to(dtype),),
        dynamic_shapes=(NHW,),
        dynamo=True,
        verbose=False,
        custom_translation_table=poolexport.translation_table(),
    )
    assert program is not None
    x = torch.randn(3, 4, 9, 14).to(dtype)
    for got, want in zip(answers(program.model_proto.SerializeToString(), x), model(x), strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=2 * torch.finfo(dtype).eps)


def test_indices_and_values_keep_nan_and_ties(files):
    x = torch.zeros(IMAGE)
    x[0, 0, 4, 4] = math.nan
    for file in files("max"):
        for got, want in list(zip(answers(file, x), expected(MODELS["max"], x), strict=True))[2:]:
            np.testing.assert_array_equal(got, want)


def test_wrong_entry_is_caught(monkeypatch, tmp_path):
    monkeypatch.setattr(
        average.Window, "onnx", lambda self, whole=average.Window.onnx: {**whole(self), "strides": [1] * self.rank}
    )
    model = Model((nn.AvgPool2d(3, 2, 1, count_include_pad=False),))
    with pytest.raises(AssertionError):
        worst(model, by_torch(model))
    with pytest.raises(ParityError):
        poolexport.export(model.module, torch.randn(IMAGE), tmp_path / "f.onnx", dynamic_shapes=NHW)


def test_without_the_table_the_same_file_is_wrong():
    model = Model((nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5),))
    assert worst(model, by_torch(model, {})) > 0.05


class Host(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 1), Call(function))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: F.adaptive_max_pool2d(x, (x.shape[2] // 2, 2)), "body.1: the output size .* computed from"),
        (lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, 2)), "body.1: the output size .* computed from"),
        (lambda x: torch.linalg.svd(x, full_matrices=True)[0], "body.1: svd of .* full_matrices=False"),
        (lambda x: torch.fft.hfft(x), "body.1: transforms of Hermitian signals"),
    ],
    ids=["bins of max", "bins of average", "full svd", "hfft"],
)
def test_what_has_no_form_is_refused_by_the_name_of_its_module(function, message, tmp_path):
    with pytest.raises(ExportError, match=message) as caught:
        poolexport.export(Host(function).eval(), torch.randn(IMAGE), tmp_path / "f.onnx", dynamic_shapes=NHW)
    assert "\n" not in str(caught.value)


def test_fractional_pooling_without_samples_needs_a_seed(tmp_path):
    layer = nn.FractionalMaxPool2d(2, output_size=4).eval()
    model = Model((layer,))
    with pytest.raises(RandomnessError):
        poolexport.export(layer, torch.randn(IMAGE), tmp_path / "f.onnx", dynamic_shapes=NHW)
    with pytest.raises(Exception) as caught:
        by_torch(model)
    assert any(isinstance(error, RandomnessError) for error in export_stage._causes(caught.value))

    def seeded(seed: int) -> np.ndarray:
        with tracing(seed=seed):
            file = by_torch(model)
        return answers(file, x)[0]

    x = torch.arange(math.prod(IMAGE), dtype=torch.float32).reshape(IMAGE)
    np.testing.assert_array_equal(seeded(1), seeded(1))
    assert not np.array_equal(seeded(1), seeded(2))


def test_torchvision_operators_are_found_by_name(tmp_path):
    library = torch.library.Library("torchvision", "FRAGMENT")
    signature = "(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
    if not hasattr(torch.ops.torchvision, "roi_pool"):
        library.define(f"roi_pool{signature}) -> (Tensor, Tensor)")
        library.define(f"ps_roi_pool{signature}) -> (Tensor, Tensor)")
        library.define(f"roi_align{signature}, int sampling_ratio, bool aligned) -> Tensor")

        def pooled(divide: int) -> Callable[..., Any]:
            def shape(x, rois, scale, h, w):
                y = x.new_empty(rois.shape[0], x.shape[1] // ((divide and h * w) or 1), h, w)
                return y, y.to(torch.int32)

            return shape

        library.impl("roi_pool", pooled(0), "Meta")
        library.impl("ps_roi_pool", pooled(1), "Meta")
        library.impl("roi_align", lambda x, rois, s, h, w, *_: x.new_empty(rois.shape[0], x.shape[1], h, w), "Meta")

    class Regions(nn.Module):
        def forward(self, x, rois):
            ops = torch.ops.torchvision
            return (
                ops.roi_pool(x, rois, 0.5, 2, 2)[0],
                ops.ps_roi_pool(x, rois, 0.5, 2, 2)[0],
                ops.roi_align(x, rois, 0.5, 2, 2, 2, True),
            )

    rois = torch.tensor([[0, 1, 2, 15, 17], [1, 3, 0, 12, 9.0]])
    program = torch.onnx.export(
        Regions(),
        (torch.randn(2, 4, 10, 10), rois),
        dynamic_shapes=(NHW, {0: "r"}),
        dynamo=True,
        verbose=False,
        custom_translation_table=poolexport.translation_table(),
    )
    assert program is not None
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    x, boxes = torch.randn(3, 4, 12, 9), torch.cat([rois, rois + torch.tensor([1.0, 0, 1, 2, 3])])
    names = [port.name for port in session.get_inputs()]
    layers = [
        poolexport.nn.RoIMaxPool2d(2, 0.5),
        poolexport.nn.PSRoIPool2d(2, 0.5),
        poolexport.nn.RoIAlign2d(2, 0.5, sampling_ratio=2, aligned=True),
    ]
    for got, layer in zip(session.run(None, dict(zip(names, (x.numpy(), boxes.numpy())))), layers, strict=True):
        np.testing.assert_allclose(got, layer(x, boxes).numpy(), atol=1e-6)
