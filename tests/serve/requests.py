"""Requests to a model that makes ``y`` of one input ``x``, FP32 of [N, 3, 4, 5]: good ones, and every bad one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SHAPE = (2, 3, 4, 5)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def document(**changes: Any) -> dict[str, Any]:
    """A good request in JSON, with some of its fields changed; None removes a field."""
    return merged({"inputs": [tensor()]}, changes)


def tensor(**changes: Any) -> dict[str, Any]:
    """Its input, likewise."""
    good = {"name": "x", "shape": list(SHAPE), "datatype": "FP32", "data": X.ravel().tolist()}
    return merged(good, changes)


def times(count: int) -> bytes:
    """A request to ``models.slow``, which takes as long as this says."""
    return json.dumps({"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [count]}]}).encode()


def merged(good: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def binary(size: Any = X.nbytes, raw: bytes = X.tobytes(), **changes: Any) -> Bad:
    """A request whose input follows the JSON."""
    head = json.dumps(
        document(inputs=[tensor(**{"data": None, "parameters": {"binary_data_size": size}, **changes})])
    ).encode()
    return Bad("", head + raw, str(len(head)))


@dataclass(frozen=True)
class Bad:
    """A request that must be refused: what is wrong, its body, the length of its JSON, a word of the answer."""

    wrong: str
    body: bytes
    header_length: str | None = None
    told: str = ""
    status: int = 400
    headers: dict[str, str] = field(default_factory=dict)

    def but(self, wrong: str, told: str, **changes: Any) -> Bad:
        return Bad(**{**self.__dict__, "wrong": wrong, "told": told, **changes})


def bad(wrong: str, value: Any, told: str) -> Bad:
    return Bad(wrong, value if isinstance(value, bytes) else json.dumps(value).encode(), None, told)


def with_input(wrong: str, told: str, **changes: Any) -> Bad:
    return bad(wrong, document(inputs=[tensor(**changes)]), told)


GOOD = binary()
HEAD = int(GOOD.header_length or 0)
DEEP = b"[" * 100_000

ENVELOPE = [
    bad("1 empty body", b"", "not JSON"),
    bad("2 not JSON", b"hello", "not JSON"),
    bad("3 array at top", [], "JSON object"),
    bad("4 no inputs", {}, "'inputs'"),
    bad("5 inputs null", b'{"inputs": null}', "'inputs'"),
    bad("5 inputs object", {"inputs": {}}, "'inputs'"),
    bad("5 inputs number", {"inputs": 3}, "'inputs'"),
    bad("5 inputs empty", {"inputs": []}, "'inputs'"),
    bad("6 nesting", b'{"inputs": ' + DEEP, "not JSON"),
    bad("6 nested data", json.dumps(document()).encode().replace(b'"data": [', b'"data": ' + DEEP), "not JSON"),
    bad("7 bad UTF-8", b'{"inputs": "\xff\xfe"}', "not JSON"),
    bad("8 NaN", json.dumps(document(inputs=[tensor(data=[float("nan")] * X.size)])).encode(), "not JSON"),
    bad("8 Infinity", json.dumps(document(inputs=[tensor(data=[float("inf")] * X.size)])).encode(), "not JSON"),
    bad("9 1e400", b'{"inputs": [{"name": "x", "shape": [1,1], "datatype": "FP32", "data": [1e400]}]}', "not JSON"),
    with_input("9 1e39", "too large for FP32", data=[1e39] * X.size),
    bad("10 many inputs", {"inputs": [{"name": f"x{i}"} for i in range(10_000)]}, "10000 inputs"),
    bad("11 id", document(id=7), "'id'"),
    bad("12 parameters", document(parameters=[]), "'parameters'"),
    bad("13 outputs", document(outputs=4), "'outputs'"),
    bad("13 outputs of numbers", document(outputs=[4]), "every output"),
    bad("an input that is no object", {"inputs": ["x"]}, "every input"),
    bad("timeout", document(parameters={"timeout": "soon"}), "'timeout'"),
    bad("binary_data_output", document(parameters={"binary_data_output": 1}), "'binary_data_output'"),
    bad("binary_data", document(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "'binary_data'"),
    bad("classification", document(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification"),
]

TENSORS = [
    with_input("14 unknown input", "no input 'z'", name="z"),
    with_input("14 name is a number", "no input 3", name=3),
    with_input("14 name with control characters", "no input 'a\\n\\x00'", name="a\n\0"),
    bad("15 twice", {"inputs": [tensor(), tensor()]}, "2 inputs"),
    with_input("17 wrong type", "takes FP32", datatype="FP64"),
    with_input("18 unknown type", "no data type", datatype="FP33"),
    with_input("18 type is a number", "no data type", datatype=32),
    with_input("19 BYTES", "takes FP32", datatype="BYTES", data=["a"] * X.size),
    with_input("21 wrong rank", "3 axes", shape=[2, 3, 20]),
    with_input("22 wrong length", "the model takes [N, 3, 4, 5]", shape=[2, 3, 5, 4]),
    with_input("23 negative", "the model takes", shape=[-2, 3, 4, 5]),
    with_input("24 zero", "the model takes", shape=[0, 3, 4, 5], data=[]),
    with_input("25 2^60", "elements", shape=[2**60, 3, 4, 5]),
    with_input("25 2^70", "whole numbers", shape=[2**70, 3, 4, 5]),
    with_input("26 float length", "whole numbers", shape=[2.0, 3, 4, 5]),
    with_input("26 string length", "whole numbers", shape=["2", 3, 4, 5]),
    with_input("26 bool length", "whole numbers", shape=[True, 3, 4, 5]),
    with_input("26 no shape", "whole numbers", shape=None),
    with_input("27 too few", "119 elements", data=X.ravel().tolist()[:-1]),
    with_input("27 too many", "121 elements", data=[*X.ravel().tolist(), 1.0]),
    with_input("28 ragged", "axis 1", data=[[1.0], [1.0, 2.0]]),
    with_input("28 too deep", "numbers and nothing else", data=[[[[[1.0]] * 5] * 4] * 3] * 2),
    with_input("28 null", "numbers and nothing else", data=[[[[None] * 5] * 4] * 3] * 2),
    with_input("28 an object", "needs 'data'", data={}),
    with_input("28 objects", "numbers and nothing else", data=[{}] * X.size),
    with_input("28 strings", "numbers and nothing else", data=["1"] * X.size),
    with_input("28 booleans", "numbers and nothing else", data=[True] * X.size),
    with_input("28 no data", "needs 'data'", data=None),
    with_input("29 batch", "at most 64", shape=[65, 3, 4, 5], data=[0.0] * 65 * 60),
    bad("30 unknown output", document(outputs=[{"name": "z"}]), "no output 'z'"),
    bad("31 output twice", document(outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
    with_input("32 shared memory", "not supported", data=None, parameters={"shared_memory_region": "r"}),
    with_input("parameters of an input", "'parameters'", parameters=3),
]

BINARY = [
    binary(-1).but("33 negative size", "whole number of bytes"),
    binary(X.nbytes + 4).but("34 size beyond the body", "are left of the body"),
    binary(2**63).but("35 2^63", "whole number of bytes"),
    binary(2**62).but("35 2^62", "are left of the body"),
    binary("480").but("36 size is a string", "whole number of bytes"),
    binary(float(X.nbytes)).but("36 size is a float", "whole number of bytes"),
    binary(X.nbytes - 4).but("37 size is not the shape's", "has 480"),
    binary(X.nbytes - 3).but("37 half a number", "has 480"),
    binary(0).but("37 size 0", "has 480"),
    GOOD.but("38 trailing bytes", "follow the last input", body=GOOD.body + b"more"),
    GOOD.but("39 header beyond the body", "the body has", header_length=str(len(GOOD.body) + 1)),
    GOOD.but("39 negative header", "whole number", header_length="-1"),
    GOOD.but("39 text", "whole number", header_length="many"),
    GOOD.but("39 huge", "the body has", header_length="99999999999"),
    GOOD.but("39 30 digits", "whole number", header_length="9" * 30),
    GOOD.but("39 zero", "the body has", header_length="0"),
    GOOD.but("39 cut JSON", "not JSON", header_length=str(HEAD - 5)),
    GOOD.but("39 long JSON", "not JSON", header_length=str(HEAD + 5)),
    GOOD.but("39 no header", "not JSON", header_length=None),
    binary(data=[1.0]).but("40 data and size", "both 'data'"),
]

ALL = [*ENVELOPE, *TENSORS, *BINARY]
