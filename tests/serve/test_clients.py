"""The published clients, unmodified, over HTTP and gRPC: every call that they have and the server answers."""

from __future__ import annotations

import asyncio
import queue
from types import ModuleType
from typing import Any

import grpc as grpc_library
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.utils import InferenceServerException

from poolexport.runtime import session
from poolexport.serve.stubs import inference_pb2 as messages
from serve.requests import SHAPE, X

BOTH = pytest.mark.parametrize("library", [over_http, over_grpc], ids=["http", "grpc"])
Y = X.astype(np.float64).mean((2, 3))


def client(library: ModuleType, server: Any) -> Any:
    address = server.grpc_address if "grpc" in library.__name__ else server.address
    return library.InferenceServerClient(address)


def inputs(
    library: ModuleType, array: np.ndarray = X, datatype: str = "FP32", name: str = "x", **how: Any
) -> list[Any]:
    given = library.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, **how)
    return [given]


def plain(answer: Any) -> Any:
    """A document, whether the client gives one or a message."""
    if isinstance(answer, (dict, list)):
        return answer
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True)


@BOTH
def test_health_and_metadata(server, library):
    asked = client(library, server)
    assert asked.is_server_live()
    assert asked.is_server_ready()
    assert asked.is_model_ready("mean")
    assert asked.is_model_ready("mean", "1")
    assert not asked.is_model_ready("mean", "2") if library is over_http else True
    assert plain(asked.get_server_metadata())["name"] == "poolexport"
    found = plain(asked.get_model_metadata("soft"))
    assert found["versions"] == ["1"]
    assert [int(length) for length in found["inputs"][0]["shape"]] == [-1, 3, -1, -1]
    assert found["inputs"][0]["datatype"] == "FP32"
    config = plain(asked.get_model_config("mean"))
    config = config.get("config", config)
    assert config["max_batch_size"] == 64
    assert [int(length) for length in config["input"][0]["dims"]] == [3, 4, 5]
    index = plain(asked.get_model_repository_index())
    index = index if isinstance(index, list) else index["models"]
    assert {"name": "mean", "version": "1", "state": "READY"}.items() <= index[0].items()


@BOTH
def test_inference(server, library):
    asked = client(library, server)
    for outputs in (None, [library.InferRequestedOutput("y")]):
        answer = asked.infer("mean", inputs(library), outputs=outputs, request_id="7")
        np.testing.assert_allclose(answer.as_numpy("y"), Y, rtol=1e-4, atol=1e-6)
    assert plain(answer.get_response())["id"] == "7"
    assert plain(asked.infer("mean", inputs(library), model_version="1").get_response())["model_version"] == "1"


@BOTH
def test_a_bundle_answers_what_its_session_answers(server, bundles, library):
    x = np.random.default_rng(1).standard_normal((3, 3, 14, 10)).astype(np.float32)
    [wanted] = session(bundles / "soft").run(None, {"input": x})
    answer = client(library, server).infer("soft", inputs(library, x, name="input"))
    np.testing.assert_allclose(answer.as_numpy("y"), wanted, rtol=1e-5, atol=1e-6)


def test_json_and_compression_over_http(server):
    asked = client(over_http, server)
    wish = [over_http.InferRequestedOutput("y", binary_data=False)]
    answer = asked.infer("mean", inputs(over_http, binary_data=False), outputs=wish)
    np.testing.assert_allclose(answer.as_numpy("y"), Y, rtol=1e-4, atol=1e-6)
    for coding in ("gzip", "deflate"):
        options = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        answer = asked.infer("mean", inputs(over_http), **options)
        np.testing.assert_allclose(answer.as_numpy("y"), Y, rtol=1e-4, atol=1e-6)


@BOTH
@pytest.mark.parametrize(
    ("model", "array", "datatype"),
    [
        ("half", np.array([[1.5, -2]], np.float16), "FP16"),
        ("whole", np.array([[2**31 - 1, -(2**31)]], np.int32), "INT32"),
        ("text", np.array([[b"a", "ä".encode()]], np.object_), "BYTES"),
    ],
)
def test_types(server, library, model, array, datatype):
    answer = client(library, server).infer(model, inputs(library, array, datatype))
    assert answer.as_numpy("y").tolist() == array.tolist()


@BOTH
def test_refusals(server, library):
    asked = client(library, server)
    with pytest.raises(InferenceServerException, match="there is no model 'nope'"):
        asked.infer("nope", inputs(library))
    with pytest.raises(InferenceServerException, match="no version '3'"):
        asked.infer("mean", inputs(library), model_version="3")
    with pytest.raises(InferenceServerException, match=r"the model takes \[N, 3, 4, 5\]"):
        asked.infer("mean", inputs(library, X[:, :, :, :4].copy()))
    with pytest.raises(InferenceServerException, match="no output 'z'"):
        asked.infer("mean", inputs(library), outputs=[library.InferRequestedOutput("z")])
    shared = library.InferInput("x", list(SHAPE), "FP32")
    shared.set_shared_memory("region", X.nbytes)
    with pytest.raises(InferenceServerException, match="shared memory is not supported"):
        asked.infer("mean", [shared])


@BOTH
def test_statistics_count_everything(server, library):
    asked = client(library, server)
    before = plain(asked.get_inference_statistics("mean"))["model_stats"][0]
    for _ in range(3):
        asked.infer("mean", inputs(library))
    with pytest.raises(InferenceServerException):
        asked.infer("mean", inputs(library), outputs=[library.InferRequestedOutput("z")])
    after = plain(asked.get_inference_statistics("mean", "1"))["model_stats"][0]

    def difference(*path: str) -> int:
        ends = []
        for found in (before, after):
            for name in path:
                found = found.get(name, {})
            ends.append(int(found or 0))
        return ends[1] - ends[0]

    assert difference("inference_stats", "success", "count") == 3
    assert difference("inference_stats", "fail", "count") == 1
    assert difference("inference_stats", "compute_infer", "count") == 3
    assert difference("inference_stats", "compute_infer", "ns") > 0
    assert difference("inference_count") == 3 * len(X)
    assert difference("execution_count") == 3
    assert len(plain(asked.get_inference_statistics())["model_stats"]) == 6


@BOTH
def test_loading_and_unloading(server, library):
    asked = client(library, server)
    asked.unload_model("whole")
    assert not asked.is_model_ready("whole")
    with pytest.raises(InferenceServerException, match="'whole' is not loaded"):
        asked.infer("whole", inputs(library, np.zeros((1, 2), np.int32), "INT32"))
    asked.load_model("whole")
    assert asked.is_model_ready("whole")
    with pytest.raises(InferenceServerException, match="no model 'nope'"):
        asked.load_model("nope")
    with pytest.raises(InferenceServerException, match="no parameters are taken"):
        asked.load_model("whole", config="{}")


def test_a_stream_answers_in_order_and_survives_a_refusal(server):
    asked = client(over_grpc, server)
    answers: queue.Queue[Any] = queue.Queue()
    asked.start_stream(lambda result, error: answers.put((result, error)))
    for number, model in enumerate(("mean", "nope", "mean")):
        asked.async_stream_infer(model, inputs(over_grpc), request_id=str(number))
    found = [answers.get(timeout=10) for _ in range(3)]
    asked.stop_stream()
    assert [result.get_response().id if result else None for result, _ in found] == ["0", None, "2"]
    assert "no model 'nope'" in str(found[1][1])


@pytest.mark.parametrize("library", [over_http_aio, over_grpc_aio], ids=["http", "grpc"])
def test_clients_of_asyncio(server, library):
    async def ask() -> list[np.ndarray]:
        address = server.grpc_address if "grpc" in library.__name__ else server.address
        async with library.InferenceServerClient(address) as asked:
            answers = await asyncio.gather(*(asked.infer("mean", inputs(library)) for _ in range(20)))
            return [answer.as_numpy("y") for answer in answers]

    for y in asyncio.run(ask()):
        np.testing.assert_allclose(y, Y, rtol=1e-4, atol=1e-6)


# What the published client cannot send.


def call(server: Any, name: str, request: Any, seconds: float = 10) -> Any:
    with grpc_library.insecure_channel(server.grpc_address) as channel:
        method = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[name]
        gives = getattr(messages, method.output_type.name)
        ask = channel.unary_unary(
            f"/inference.GRPCInferenceService/{name}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=gives.FromString,
        )
        return ask(request, timeout=seconds)


def message(**changes: Any) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": SHAPE, **changes.pop("tensor", {})}
    fields = {"model_name": "mean", "inputs": [tensor], "raw_input_contents": [X.tobytes()], **changes}
    return messages.ModelInferRequest(**fields)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"raw_input_contents": [X.tobytes()] * 2}, "2 raw contents"),
        ({"raw_input_contents": [X.tobytes()[:-1]]}, "has 480"),
        ({"tensor": {"contents": {"fp32_contents": X.ravel()}}}, "raw and typed contents"),
        ({"raw_input_contents": []}, "0 elements"),
        (
            {"raw_input_contents": [], "tensor": {"contents": {"fp64_contents": X.ravel()}}},
            "belongs into fp32_contents",
        ),
        ({"inputs": []}, "'inputs'"),
        ({"tensor": {"name": "z"}}, "no input 'z'"),
        ({"tensor": {"shape": [-1, 3, 4, 5]}}, "the model takes"),
        ({"tensor": {"shape": [2**62, 3, 4, 5]}}, "elements"),
        ({"tensor": {"shape": [2, 3, 20]}}, "3 axes"),
        ({"tensor": {"datatype": "FP16"}}, "takes FP32"),
    ],
)
def test_bad_messages_are_refused(server, changes, told):
    with pytest.raises(grpc_library.RpcError) as caught:
        call(server, "ModelInfer", message(**changes))
    assert caught.value.code() == grpc_library.StatusCode.INVALID_ARGUMENT
    assert told in caught.value.details()
    assert call(server, "ModelInfer", message()).model_name == "mean"


def test_typed_contents(server):
    answer = call(
        server, "ModelInfer", message(raw_input_contents=[], tensor={"contents": {"fp32_contents": X.ravel()}})
    )
    np.testing.assert_allclose(np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 3), Y, rtol=1e-4)
    whole = {"model_name": "whole", "raw_input_contents": []}
    tensor = {"datatype": "INT32", "shape": [1, 2], "contents": {"int_contents": [1, -5]}}
    answer = call(server, "ModelInfer", message(**whole, tensor=tensor))
    assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == [1, -5]


def test_statuses_of_grpc(server):
    def code(request: Any, seconds: float = 10) -> grpc_library.StatusCode:
        with pytest.raises(grpc_library.RpcError) as caught:
            call(server, "ModelInfer", request, seconds)
        return caught.value.code()

    assert code(message(model_name="nope")) == grpc_library.StatusCode.NOT_FOUND
    assert code(message(raw_input_contents=[bytes(3 << 20)])) == grpc_library.StatusCode.RESOURCE_EXHAUSTED
    assert code(b"\xff\xff\xff") == grpc_library.StatusCode.INVALID_ARGUMENT
    times = messages.ModelInferRequest(
        model_name="slow",
        inputs=[{"name": "n", "datatype": "INT64", "shape": [1]}],
        raw_input_contents=[np.array([10**9]).tobytes()],
    )
    # more of them than there are slots: each frees its own
    for _ in range(4):
        assert code(times, 0.2) == grpc_library.StatusCode.DEADLINE_EXCEEDED
    assert call(server, "ModelInfer", message()).model_name == "mean"
    times.raw_input_contents[0] = np.array([1]).tobytes()
    assert call(server, "ModelInfer", times, 2).model_name == "slow"
