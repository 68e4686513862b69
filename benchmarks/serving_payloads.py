"""One image in every form that servers accept, and the answer in every form that they give."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2

V2 = "/v2/models/model/infer"
PLAIN = "/infer"
#: Between the parts of a form.
BOUNDARY = "poolexport-benchmark"
GRPC = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Payload:
    """A request.

    Args:
        path: that it is posted to.
        body: its bytes.
        headers: that go with them.
        decode: the answer's array from its headers, their names in small letters, and its body.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]
    decode: Callable[[Mapping[str, str], bytes], np.ndarray]


def image(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of six decimals, which are the same in JSON and in binary form."""
    return np.round(np.random.default_rng(0).standard_normal((1, *shape)), 6).astype(np.float32)


def payloads(x: np.ndarray) -> dict[str, Payload]:
    """Every form of a request, by name."""
    given = tritonclient.http.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    client = tritonclient.http.InferenceServerClient
    body, length = client.generate_request_body([given])
    octets = {"Content-Type": "application/octet-stream"}
    as_json = {"Content-Type": "application/json"}
    numbers = [float(f"{value:.6f}") for value in x.ravel()]
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": numbers}
    head = 'Content-Disposition: form-data; name="x"; filename="x"\r\nContent-Type: application/octet-stream\r\n\r\n'
    form = f"--{BOUNDARY}\r\n{head}".encode() + x.tobytes() + f"\r\n--{BOUNDARY}--\r\n".encode()

    def binary(headers: Mapping[str, str], body: bytes) -> np.ndarray:
        found = client.parse_response_body(body, header_length=int(headers["inference-header-content-length"]))
        return found.as_numpy("y")

    def in_json(headers: Mapping[str, str], body: bytes) -> np.ndarray:
        [y] = json.loads(body)["outputs"]
        return np.array(y["data"], np.float32).reshape(y["shape"])

    def plain(headers: Mapping[str, str], body: bytes) -> np.ndarray:
        found = json.loads(body)
        return np.array(found["y"] if isinstance(found, dict) else found, np.float32)

    def raw(headers: Mapping[str, str], body: bytes) -> np.ndarray:
        if headers.get("content-type") == "application/json":
            return plain(headers, body)
        return np.frombuffer(body, np.float32).reshape(1, -1)

    return {
        "binary": Payload(V2, body, {**octets, "Inference-Header-Content-Length": str(length)}, binary),
        "JSON": Payload(V2, json.dumps({"inputs": [tensor]}).encode(), as_json, in_json),
        "raw": Payload(PLAIN, x.tobytes(), octets, raw),
        "file": Payload(PLAIN, form, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, plain),
    }


def framed(x: np.ndarray) -> bytes:
    """A request of gRPC as it goes over the wire."""
    request = service_pb2.ModelInferRequest(model_name="model")
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.raw_input_contents.append(x.tobytes())
    message = request.SerializeToString()
    return b"\0" + struct.pack(">I", len(message)) + message


def asked_over_grpc(address: str, x: np.ndarray) -> tuple[np.ndarray, int]:
    """The answer, and its bytes as they go over the wire."""
    given = tritonclient.grpc.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    with tritonclient.grpc.InferenceServerClient(address) as client:
        result = client.infer("model", [given], client_timeout=10)
    return result.as_numpy("y"), len(result.get_response().SerializeToString()) + 5
