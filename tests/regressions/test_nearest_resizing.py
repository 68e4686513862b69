"""Resizing by nearest cells follows torch at every size; onnxruntime reads other cells where a step is rounded."""

import itertools

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

import poolexport


class Resized(torch.nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.interpolate(x, **self.options)


OPTIONS = [
    {"size": (12, 7)},
    {"scale_factor": (2.0, 0.6)},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
    {"scale_factor": (0.5, 3.0)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_size_is_torchs(options, tmp_path):
    model = Resized(options).eval()
    poolexport.export(model, torch.randn(2, 1, 12, 12), tmp_path / "net", dynamic_shapes={0: "N", 2: "H", 3: "W"})
    session = poolexport.session(tmp_path / "net")
    for height, width in itertools.product((2, 5, 12, 20, 31, 40), (4, 9, 20, 35, 60)):
        x = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_array_equal(found, model(x).numpy(), err_msg=f"{height}x{width}")


def test_onnxruntimes_own_resize_still_differs():
    """The reason for all this: where it no longer differs, the entry of the table can go."""
    program = torch.onnx.export(Resized({"size": (12, 7)}), (torch.randn(1, 1, 20, 7),), dynamo=True, verbose=False)
    x = np.arange(140, dtype=np.float32).reshape(1, 1, 20, 7)
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: x})
    assert not np.array_equal(found, Resized({"size": (12, 7)})(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize(("shape", "size"), [((1, 1, 20), (12,)), ((1, 1, 20, 5, 6), (12, 7, 4))])
def test_other_ranks(shape, size, tmp_path):
    axes = {axis: f"d{axis}" for axis in range(2, len(shape))}
    poolexport.export(Resized({"size": size}).eval(), torch.randn(shape), tmp_path / "net", dynamic_shapes=axes)
    session = poolexport.session(tmp_path / "net")
    x = torch.randn([n + 2 * k if k > 1 else n for k, n in enumerate(shape)])
    [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_array_equal(found, Resized({"size": size})(x).numpy())


STEPS = [
    # 41 times the float32 that is nearest to 1 / 41 is less than 1.
    {"scale_factor": (1.0, 41.0)},
    # With two axes torch copies one that keeps its length, and repeats every cell of one that doubles.
    {"scale_factor": 1.1},
    {"scale_factor": (1.1, 2.3)},
    {"scale_factor": (1.01, 2.03)},
    {"scale_factor": 0.7, "mode": "nearest-exact"},
    {"scale_factor": (1.01, 2.3), "mode": "nearest-exact"},
    {"size": (12, 46), "mode": "nearest-exact"},
]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_table_alone_reads_torchs_cells(rank):
    every = [_of_rank(options, rank) for options in STEPS]
    layers = torch.nn.ModuleList(map(Resized, every))
    program = torch.onnx.export(
        All(layers).eval(),
        (torch.randn(1, 1, *[12] * (rank - 1), 13),),
        dynamic_shapes=({axis: f"d{axis}" for axis in range(2, 2 + rank)},),
        dynamo=True,
        verbose=False,
        custom_translation_table=poolexport.translation_table(),
    )
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for length in (2, 3, 5, 7, 9, 10, 14, 24, 26, 30, 37, 99):
        x = torch.arange(float(length)).expand(1, 1, *[3] * (rank - 1), length).contiguous()
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for options, answer, layer in zip(every, found, layers, strict=True):
            np.testing.assert_array_equal(answer, layer(x).numpy(), err_msg=f"{options} of {length}")


class All(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


def _of_rank(options, rank):
    """Options for two axes, for their last one alone, or with the first one twice."""
    return {key: (v[0], *v)[-rank:] if isinstance(v, tuple) else v for key, v in options.items()}
