"""The library of native kernels: who gets it, what it takes over, and what it says where it cannot."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

import poolexport
from ops.test_operators import one_operator
from poolexport.errors import InputError, MissingKernelsError
from poolexport.runtime import kernel_library, kernel_operators, plain_session, register_kernels, session
from poolexport.runtime.functions import functions
from poolexport.runtime.kernels import native
from poolexport_ops import DOMAIN, Window, operators

WINDOW = Window.from_torch(2, 2).onnx()
X = torch.linspace(-3, 3, 96).reshape(1, 2, 6, 8)


def soft(**changes: object) -> bytes:
    return one_operator("SoftmaxPool", {**WINDOW, **changes}, X, X)


def optimised(model: bytes, path: Path, *, kernels: bool) -> list[str]:
    """The operators that are left once onnxruntime has optimised a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    session(model, options=options, kernels=kernels)
    return [f"{node.domain}::{node.op_type}" for node in onnx.load(path).graph.node]


def test_every_operator_has_a_kernel():
    assert kernel_library() is not None, "the kernels were not compiled; is there a C++ compiler?"
    assert set(kernel_operators()) == set(operators())


def test_the_kernel_takes_the_place_of_the_body_and_only_where_it_is_registered(tmp_path):
    assert optimised(soft(), tmp_path / "native.onnx", kernels=True) == [f"{DOMAIN}::SoftmaxPool"]
    assert f"{DOMAIN}::SoftmaxPool" not in optimised(soft(), tmp_path / "plain.onnx", kernels=False)


def test_options_of_ones_own_serve_every_operator():
    options = ort.SessionOptions()
    assert poolexport.register_kernels(options) == kernel_operators()
    opened = ort.InferenceSession(soft(), options)
    np.testing.assert_allclose(
        opened.run(None, {"x0": X.numpy(), "x1": X.numpy()})[0],
        plain_session(soft()).run(None, {"x0": X.numpy(), "x1": X.numpy()})[0],
        rtol=1e-6,
    )


def test_two_bodies_of_one_operator_are_both_native(tmp_path):
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pools = torch.nn.ModuleList([poolexport.nn.SoftPool2d(k) for k in (2, 3, 4)])

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [pool(x) for pool in self.pools]

    x = torch.randn(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    poolexport.export(Two().eval(), (x,), tmp_path / "two.onnx", input_names=["x"])
    assert native(tmp_path / "two.onnx") == ("SoftmaxPool", "SoftmaxPool_2", "SoftmaxPool_3")
    answers = session(tmp_path / "two.onnx", kernels=True).run(None, {"x": x.numpy()})
    for answer, truth in zip(answers, Two()(x.double())):
        np.testing.assert_allclose(answer, truth.numpy(), rtol=1e-6, atol=1e-6)
    model = (tmp_path / "two.onnx").read_bytes()
    assert optimised(model, tmp_path / "o.onnx", kernels=True).count(f"{DOMAIN}::SoftmaxPool_3") == 1


def detail(*centre: str) -> ort.InferenceSession:
    """A graph of DetailPreservingPool whose last input is called so, or is not there, and has no body."""
    numbers = [helper.make_tensor(name, TensorProto.DOUBLE, [1], [0.5]) for name in ("p", "a", "e")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 8])]
    if "c" in centre:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.DOUBLE, [1, 2, 3, 4]))
    options = {**WINDOW, "above_only": 0, "normalize": "mean"}
    node = helper.make_node("DetailPreservingPool", ["x", "p", "a", "e", *centre], ["y"], domain=DOMAIN, **options)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "g", inputs, outputs, initializer=numbers)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    kernels = ort.SessionOptions()
    register_kernels(kernels)
    content = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    return ort.InferenceSession(content, kernels)


def test_an_input_may_be_missing_only_at_the_end():
    mean = Window.from_torch(2, 2).cells(X.double(), 0.0).mean(-1)
    [found] = detail().run(None, {"x": X.numpy()})
    [given] = detail("c").run(None, {"x": X.numpy(), "c": mean.numpy()})
    np.testing.assert_allclose(found, given, rtol=1e-6)
    with pytest.raises(Exception, match="input 4 has no name"):
        detail("").run(None, {"x": X.numpy()})


def test_without_the_library_sessions_run_standard_operators(monkeypatch, tmp_path):
    monkeypatch.setenv("POOLEXPORT_KERNELS", "off")
    assert kernel_library() is None
    assert kernel_operators() == ()
    assert session(soft()).run(None, {"x0": X.numpy(), "x1": X.numpy()})[0].shape == (1, 2, 3, 4)
    with pytest.raises(MissingKernelsError, match=r"POOLEXPORT_KERNELS turns them off.*standard operators"):
        register_kernels(ort.SessionOptions())
    monkeypatch.setenv("POOLEXPORT_KERNELS", str(tmp_path / "missing.so"))
    with pytest.raises(MissingKernelsError, match=r"missing\.so cannot be loaded"):
        session(soft())


def test_a_relative_path_names_a_build_as_well(monkeypatch):
    path = kernel_library()
    assert path is not None
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("POOLEXPORT_KERNELS", path.name)
    assert "SoftmaxPool" in kernel_operators()


def test_a_library_of_something_else_is_named(monkeypatch):
    monkeypatch.setenv("POOLEXPORT_KERNELS", onnx.onnx_cpp2py_export.__file__)
    with pytest.raises(MissingKernelsError, match=r"is no library of poolexport's kernels: .*poolexport_choose"):
        session(soft())


def test_options_serve_several_sessions():
    every, some = ort.SessionOptions(), ort.SessionOptions()
    register_kernels(every)
    for options in (every, every, some, some):
        assert session(soft(), options=options, kernels=True).run(None, {"x0": X.numpy(), "x1": X.numpy()})
    other = one_operator("MaxPool", WINDOW, X)
    assert session(other, options=every, kernels=True).run(None, {"x0": X.numpy()})
    assert session(other, options=some).run(None, {"x0": X.numpy()})
    with pytest.raises(MissingKernelsError, match="hold the kernels of another model, and not MaxPool"):
        session(other, options=some, kernels=True)
    with pytest.raises(InputError, match="kernels=False needs others"):
        plain_session(other, options=some)


def test_kernels_go_into_session_options_only():
    with pytest.raises(InputError, match="not with NoneType"):
        register_kernels(None)


def test_the_server_wing_finds_it_without_torch():
    code = (
        "import sys; from poolexport.runtime import kernel_operators, register_kernels; import onnxruntime as ort;"
        "register_kernels(ort.SessionOptions()); assert 'SoftmaxPool' in kernel_operators();"
        "assert not {'torch', 'onnxscript', 'poolexport_ops'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def without_a_body(**attributes: object) -> ort.InferenceSession:
    """A session on one node that only a kernel can compute."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x0", "x1")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("SoftmaxPool", ["x0", "x1"], ["y"], domain=DOMAIN, **attributes)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "g", inputs, [output]), opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    register_kernels(options)
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize(
    ("changes", "shape", "words"),
    [
        ({"kernel_shape": [0, 2]}, (1, 2, 6, 8), "must be positive"),
        ({"strides": [-1, 2]}, (1, 2, 6, 8), "must be positive"),
        ({"pads": [0, 0, 0, -1]}, (1, 2, 6, 8), "pads not negative"),
        ({"pads": [0]}, (1, 2, 6, 8), "pads twice as many"),
        ({"kernel_shape": [2] * 9}, (1, 2, 6, 8), "1, 2 or 3 entries, not 9"),
        ({"kernel_shape": [2**62, 2]}, (1, 2, 6, 8), "too large"),
        ({}, (1, 2, 6), "has 3 axes, and kernel_shape"),
        ({}, (1, 2, 6, 1), "axis 1 has length 1, and the kernel spans 2"),
        ({}, (1, 2, 0, 8), "axis 0 has length 0"),
    ],
)
def test_what_cannot_be_pooled_is_refused_by_name(changes, shape, words):
    x = np.zeros(shape, np.float32)
    with pytest.raises(Exception, match=f"poolexport::SoftmaxPool: .*{words}"):
        without_a_body(**{**WINDOW, **changes}).run(None, {"x0": x, "x1": x})


def test_a_missing_attribute_is_named():
    with pytest.raises(Exception, match="poolexport::SoftmaxPool: the attribute strides is missing"):
        without_a_body(kernel_shape=[2, 2])


WRONG_TYPES = ({"dilations": [2.0, 2.0]}, {"pads": "0"}, {"strides": 2}, {"kernel_shape": [2.0, 2.0]})


@pytest.mark.parametrize("changes", WRONG_TYPES, ids=str)
def test_an_attribute_of_another_type_is_named(changes):
    with pytest.raises(Exception, match=f"the attribute {next(iter(changes))} is of another type than it must be"):
        without_a_body(**{**WINDOW, **changes})


def test_a_runtime_older_than_1_20_is_told_so():
    """The C interface, acted by Python: a runtime that has no version 20 of it."""
    texts: list[str] = []
    status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    create_status = status(lambda code, text: texts.append(text.decode()) or 4711)
    table = (ctypes.c_void_p * 300)()
    table[0] = ctypes.cast(create_status, ctypes.c_void_p)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version == 1 else None
    )
    text = ctypes.create_string_buffer(b"1.19.2")
    version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(text))
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(version, ctypes.c_void_p))
    library = ctypes.CDLL(str(kernel_library()))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    library.RegisterCustomOps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    assert library.RegisterCustomOps(None, ctypes.addressof(base)) == 4711
    assert len(texts) == 1
    assert "need onnxruntime 1.20 or newer, and this is 1.19.2" in texts[0]


def test_functions_are_read_without_the_weights(tmp_path):
    model = onnx.load_model_from_string(soft())
    expected = [(f.domain, f.name) for f in model.functions]
    assert functions(soft()) == expected == [(DOMAIN, "SoftmaxPool")]
    heavy = onnx.ModelProto()
    heavy.CopyFrom(model)
    heavy.graph.initializer.append(helper.make_tensor("w", TensorProto.UINT8, [1 << 22], bytes(1 << 22), raw=True))
    path = tmp_path / "heavy.onnx"
    onnx.save(heavy, path)
    assert functions(path) == expected
    content = path.read_bytes()
    for damaged in (b"", b"\xff" * 40, content[: len(content) - 5], b"not a model"):
        assert functions(damaged) in ([], expected)
