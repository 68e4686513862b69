import numpy as np
import pytest
import torch
from google.protobuf import text_format
from onnx import helper
from tritonclient.grpc import model_config_pb2

import poolexport
from poolexport.errors import InputError, MissingExtraError, OutputError
from poolexport.handoff import deployment, triton
from poolexport.handoff.triton import configuration


def parsed(folder):
    """The configuration as Triton's published protobuf reads it."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_a_model_with_a_proven_batch_axis(images, tmp_path):
    folder = triton(deployment(images), tmp_path / "repository")
    config = parsed(folder)
    assert folder == tmp_path / "repository" / "soft-net"
    assert (config.name, config.backend, config.max_batch_size) == ("soft-net", "onnxruntime", 8)
    assert config.HasField("dynamic_batching")
    [port] = config.input
    assert (port.name, list(port.dims), port.data_type) == ("input", [3, -1, -1], model_config_pb2.TYPE_FP32)
    [port] = config.output
    assert list(port.dims) == [4]
    assert (folder / "1" / config.default_model_filename).read_bytes() == (images / "model.onnx").read_bytes()


def test_the_sample_is_run_before_triton_is_ready(images, tmp_path):
    folder = triton(deployment(images), tmp_path / "repository")
    [warmup] = parsed(folder).model_warmup
    entry = warmup.inputs["input"]
    stored = np.frombuffer((folder / "warmup" / entry.input_data_file).read_bytes(), np.float32)
    with np.load(images / "sample.npz") as sample:
        np.testing.assert_array_equal(stored.reshape(list(entry.dims)), sample["input/input"][0])
    assert warmup.batch_size == 1


def test_regions_keep_all_their_axes(regions, tmp_path):
    config = parsed(triton(deployment(regions), tmp_path / "repository"))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [list(port.dims) for port in config.input] == [[1, 2, -1, -1], [-1, 5]]
    assert config.model_warmup[0].batch_size == 0


def test_one_number_a_row_is_reshaped(bundled, tmp_path):
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    nodes.insert(0, helper.make_node("Constant", [], ["axes"], value_ints=[1]))
    path = bundled("total", nodes, {"x": ["N", 6]}, {"y": ["N"]}, {"x": np.ones((1, 6), np.float32)})
    [port] = parsed(triton(deployment(path), tmp_path / "repository")).output
    assert list(port.dims) == [1]
    assert port.HasField("reshape")
    assert list(port.reshape.shape) == []


def test_weights_and_a_library_go_along(tmp_path):
    net = torch.nn.Linear(64, 64).eval()
    poolexport.export(net, torch.randn(1, 64), tmp_path / "net", external_data=True)
    library = tmp_path / "libops.so"
    library.write_bytes(b"\x7fELF")
    folder = triton(deployment(tmp_path / "net"), tmp_path / "repository", version=3, op_library=library)
    assert {file.name for file in (folder / "3").iterdir()} == {"model.onnx", "model.onnx.data", "libops.so"}
    assert list(parsed(folder).model_operations.op_library_filename) == ["libops.so"]


@pytest.mark.parametrize("options", [{"version": 0}, {"max_batch": 0}, {"op_library": "missing.so"}])
def test_bad_options_are_refused_and_nothing_is_written(images, tmp_path, options):
    with pytest.raises(InputError):
        triton(deployment(images), tmp_path / "repository", **options)
    assert not (tmp_path / "repository").exists()


def test_what_is_there_is_not_replaced_unasked(images, tmp_path):
    model = deployment(images)
    folder = triton(model, tmp_path)
    with pytest.raises(OutputError, match="exists"):
        triton(model, tmp_path)
    triton(model, tmp_path, version=2, force=True)
    assert [file.name for file in folder.iterdir() if file.name.isdigit()] == ["2"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(OutputError, match="not a model"):
        triton(deployment(images, "mine"), tmp_path, force=True)
    assert (mine / "thesis.tex").exists()


def test_without_tritons_protobuf_the_extra_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.grpc", None)
    with pytest.raises(MissingExtraError, match=r"poolexport\[triton\]"):
        triton(deployment(images), tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_one_row_at_a_time_when_asked(images):
    config = configuration(deployment(images), max_batch=1)
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
