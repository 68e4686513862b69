"""Requests that nobody would think of, by the thousand: for the decoders, and for a server as its own document says.

Everything comes from a seed, so what fails once fails again.
"""

from __future__ import annotations

import http.client
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

import poolexport.serve
from poolexport.errors import RequestError
from poolexport.serve import grpc, protocol
from poolexport.serve.config import Limits
from poolexport.serve.datatypes import TensorSpec
from poolexport.serve.protocol import Signature
from poolexport.serve.stubs import inference_pb2 as messages
from serve.conftest import Answer, Server
from serve.requests import ALL

DOCUMENT = json.loads((Path(poolexport.serve.__file__).with_name("static") / "openapi.json").read_text())

# the decoders

#: Numbers, a text and a truth value: each kind of tensor that bytes are read for in a way of its own.
SIGNATURE = Signature(
    {
        "x": TensorSpec("x", "FP32", np.dtype(np.float32), ("N", 2)),
        "t": TensorSpec("t", "BYTES", np.dtype(np.object_), ("N",)),
        "b": TensorSpec("b", "BOOL", np.dtype(np.bool_), ("N",)),
    },
    {"y": TensorSpec("y", "FP32", np.dtype(np.float32), ("N",))},
    Limits(),
    batched=True,
)
RAW = {"x": np.arange(4, dtype=np.float32).tobytes(), "t": b"\x01\0\0\0a\x02\0\0\0bc", "b": b"\0\x01"}
#: What bytes are replaced with beside noise.
PIECES = (
    b"\0",
    b"\xff" * 4,
    b"-1",
    b"9" * 19,
    b"1e400",
    b"NaN",
    b"[",
    b"{",
    b'"',
    b",",
    b"\xed\xa0\x80",
    b"null",
    b"[]",
)


def http_seeds() -> list[tuple[bytes, str | None]]:
    """A good request for each of the two forms, and all that are known to be bad."""
    inputs = [
        {"name": name, "shape": [2, 2] if name == "x" else [2], "datatype": SIGNATURE.inputs[name].datatype}
        for name in RAW
    ]
    sized = [{**entry, "parameters": {"binary_data_size": len(RAW[entry["name"]])}} for entry in inputs]
    head = json.dumps({"id": "1", "inputs": sized}).encode()
    values = ([0, 1, 2, 3.5], ["a", "bc"], [False, True])
    told = json.dumps({"inputs": [{**entry, "data": data} for entry, data in zip(inputs, values)]}).encode()
    good = [(head + b"".join(RAW.values()), str(len(head))), (told, None)]
    return good * 64 + [(bad.body, bad.header_length) for bad in ALL if len(bad.body) < 1000]


def grpc_seeds() -> list[tuple[bytes, None]]:
    raw = messages.ModelInferRequest(model_name="m", id="1")
    typed = messages.ModelInferRequest(model_name="m")
    for message in (raw, typed):
        for name in RAW:
            shape = [2, 2] if name == "x" else [2]
            entry = message.inputs.add(name=name, datatype=SIGNATURE.inputs[name].datatype, shape=shape)
            if message is typed:
                field, values = {
                    "x": ("fp32_contents", [0, 1, 2, 3]),
                    "t": ("bytes_contents", [b"a", b"bc"]),
                    "b": ("bool_contents", [False, True]),
                }[name]
                getattr(entry.contents, field).extend(values)
    raw.raw_input_contents.extend(RAW.values())
    return [(message.SerializeToString(), None) for message in (raw, typed)]


def mutated(body: bytes, noise: random.Random) -> bytes:
    """These bytes with a few of them changed, left out, doubled or cut off."""
    draw = noise.random
    changed = bytearray(body)
    for _ in range(1 + int(3 * draw() * draw())):
        at = int(draw() * (len(changed) + 1))
        kind = int(draw() * 8)
        if kind < 4:
            changed[at : at + 1] = bytes((int(draw() * 256),))
        elif kind == 4:
            changed[at : at + int(draw() * 8)] = PIECES[int(draw() * len(PIECES))]
        elif kind == 5:
            changed[at:at] = changed[at : at + int(draw() * 40)]
        elif kind == 6:
            del changed[at : at + int(draw() * 40)]
        else:
            del changed[at:]
    return bytes(changed)


def over_http(body: bytes, header_length: str | None) -> protocol.Request:
    return protocol.decode(body, header_length, SIGNATURE)


def over_grpc(body: bytes, _: str | None) -> protocol.Request:
    return grpc.decode(grpc._read(messages.ModelInferRequest, body), SIGNATURE)


def decoded(
    decode: Callable[[bytes, str | None], protocol.Request],
    seeds: list[tuple[bytes, Any]],
    count: int,
    seed: int,
) -> Counter[str]:
    """Decode mutated requests; how many were taken and how many refused. Anything else is an error."""
    noise = random.Random(seed)
    found: Counter[str] = Counter()
    for number in range(count):
        body, length = seeds[number % len(seeds)]
        body = mutated(body, noise)
        if length is not None and noise.random() < 0.1:
            length = noise.choice(("0", "-1", "9" * 19, "1", str(len(body)), str(int(noise.random() * 300)), "٣"))
        try:
            request = decode(body, length)
        except RequestError as error:
            told = str(error)
            if error.status != 400 or not told.isprintable() or len(told) > 400:
                raise AssertionError(f"request {number} of seed {seed}: {error.status} {told!r}") from error
            found["refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(f"request {number} of seed {seed}: {body!r} with {length!r}") from error
        for name, array in request.feeds.items():
            tensor = SIGNATURE.inputs[name]
            whole = array.dtype == tensor.dtype and array.ndim == tensor.rank and array.shape[1:] == tensor.shape[1:]
            if not whole or array.nbytes > 16 * len(body):
                raise AssertionError(f"request {number} of seed {seed}: {name} is {array!r}")
        if request.feeds.keys() != SIGNATURE.inputs.keys():
            raise AssertionError(f"request {number} of seed {seed}: {list(request.feeds)}")
        found["taken"] += 1
    return found


# the document

NASTY = ("", "..", "../..", "\0", "a" * 300, "ä", "%", "1", "-1", "0", "mean", "soft", "{model}", "\U0001f600", " ")
NUMBERS = (0, 1, -1, 2, 3, 4, 5, 64, 65, 2**31, 2**63, 2**64, 0.5, 1e300)


def resolved(part: Any) -> Any:
    """A part of the document, or what it refers to."""
    while "$ref" in part:
        found: Any = DOCUMENT
        for step in part["$ref"].split("/")[1:]:
            found = found[step]
        part = found
    return part


def instance(schema: Any, noise: random.Random, spoil: float, depth: int = 0) -> Any:
    """A value of a schema, or, with the chance ``spoil`` in every place, another."""
    schema = resolved(schema)
    if noise.random() < spoil:
        return noise.choice((None, True, [], {}, [[]], noise.choice(NASTY), noise.choice(NUMBERS), [1] * 5, {"a": 1}))
    if "enum" in schema:
        return noise.choice(schema["enum"])
    kind = schema["type"] if isinstance(schema["type"], str) else noise.choice(schema["type"])
    if kind == "object":
        wanted = schema.get("required", ())
        fields = schema.get("properties", {})
        return {
            name: instance(field, noise, spoil, depth + 1)
            for name, field in fields.items()
            if name in wanted or noise.random() < 0.6
        }
    if kind == "array":
        if depth > 8:
            return []
        items = schema.get("items", {"type": "number"})
        return [instance(items, noise, spoil, depth + 1) for _ in range(noise.choice((1, 1, 2, 4, 0)))]
    if kind == "string":
        return noise.choice((*NASTY, "x", "y", "input"))
    if kind == "boolean":
        return noise.random() < 0.5
    if kind == "null":
        return None
    number = noise.choice(NUMBERS)
    return int(number) if kind == "integer" else number


def requests(names: list[str], count: int, seed: int) -> Iterator[tuple[str, str, dict[str, str], bytes | None, Any]]:
    """Method, address, headers, body and the document's operation of that many requests."""
    noise = random.Random(seed)
    operations = [
        (path, method, operation) for path, found in DOCUMENT["paths"].items() for method, operation in found.items()
    ]
    operations += [one for one in operations if one[0].endswith("/infer")] * 6
    for _ in range(count):
        path, method, operation = noise.choice(operations)
        spoil = noise.choice((0, 0, 0.02, 0.1, 0.4))
        for parameter in operation.get("parameters", ()):
            parameter = resolved(parameter)
            if parameter["in"] == "path":
                known = names if parameter["name"] == "model" else ["1"]
                value = noise.choice(known) if noise.random() > spoil else noise.choice(NASTY)
                path = path.replace("{" + parameter["name"] + "}", quote(value, safe=""))
        headers: dict[str, str] = {}
        body = None
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            body = json.dumps(instance(schema, noise, spoil)).encode()
            if noise.random() < 0.3:
                raw = noise.randbytes(noise.choice((0, 1, 4, 16, 240, 480)))
                length = len(body) + noise.choice((0, 0, 0, 0, 1, -1, 10**6))
                headers["Inference-Header-Content-Length"] = str(length)
                body += raw
            if noise.random() < spoil:
                body = mutated(body, noise)
            if noise.random() < spoil / 2:
                headers["Content-Encoding"] = noise.choice(("gzip", "deflate", "br", "identity", ""))
            if noise.random() < 0.1:
                headers["Accept-Encoding"] = noise.choice(("gzip", "deflate", "gzip;q=0", "*", ";;,"))
        yield method.upper(), path, headers, body, operation


def fits(value: Any, schema: Any) -> bool:
    """Whether a value is one of a schema, as far as the document uses schemas."""
    schema = resolved(schema)
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    if not any(isinstance(value, types[kind]) for kind in kinds):
        return False
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        closed = schema.get("additionalProperties", True) is False and not value.keys() <= fields.keys()
        return (
            not closed
            and value.keys() >= set(schema.get("required", ()))
            and all(fits(value[name], field) for name, field in fields.items() if name in value)
        )
    return not isinstance(value, list) or all(fits(item, schema.get("items", {"type": kinds})) for item in value)


def sent(server: Server, names: list[str], count: int, seed: int) -> Counter[int]:
    """Send requests as the document has them; how often each status came back.

    Raises:
        AssertionError: an answer is not one that the document declares, or there is none.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    statuses: Counter[int] = Counter()
    for number, (method, path, headers, body, operation) in enumerate(requests(names, count, seed)):
        try:
            connection.request(method, path, body, headers)
            got = connection.getresponse()
        except (ConnectionError, http.client.RemoteDisconnected):
            # where a body was refused before it was read, the server closes the connection behind its answer
            connection.close()
            connection.request(method, path, body, headers)
            got = connection.getresponse()
        answer = Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        if wrong := undeclared(answer, operation):
            raise AssertionError(f"request {number} of seed {seed}, {method} {path} {body!r}: {wrong}: {answer}")
        statuses[answer.status] += 1
    connection.close()
    return statuses


def undeclared(answer: Answer, operation: Any) -> str:
    """What about an answer the document does not say; nothing where all is as it says."""
    # an empty or nasty name makes another address, which is not there or takes no such method
    declared = {**operation["responses"], "404": {"$ref": "#/components/responses/404"}}
    declared["405"] = {"$ref": "#/components/responses/405"}
    if str(answer.status) not in declared:
        return f"status {answer.status} is not declared"
    content = resolved(declared[str(answer.status)]).get("content")
    if not content:
        return "" if not answer.body else "there should be no body"
    kind = answer.headers.get("content-type", "")
    if kind not in content:
        return f"type {kind!r} is not declared"
    if kind == "application/json" and "content-encoding" not in answer.headers:
        told = json.loads(answer.body)
        if not fits(told, content[kind]["schema"]):
            return "the body does not fit its schema"
        if answer.status >= 400 and not (told["error"].isprintable() and "Traceback" not in told["error"]):
            return "the error is not one sentence"
    return ""
