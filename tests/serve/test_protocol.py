"""Requests are understood, or refused with one sentence, before anything is allocated for them."""

from __future__ import annotations

import json
import struct
import tracemalloc

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolexport.errors import RequestError
from poolexport.serve.config import Limits
from poolexport.serve.datatypes import ROWS, TensorSpec
from poolexport.serve.protocol import NAMES, Request, Signature, decode, encode
from serve.requests import ALL, GOOD, SHAPE, Bad, X, bad, binary, document, tensor


def port(name: str, datatype: str, shape: tuple[int | str, ...]) -> TensorSpec:
    dtype = next(np.dtype(dtype) for _, known, dtype in ROWS if known == datatype)
    return TensorSpec(name, datatype, dtype, shape)


def signature(*inputs: TensorSpec, batched: bool = False) -> Signature:
    outputs = {name: port(name, "FP32", ("N", 3)) for name in ("y",)}
    return Signature({tensor.name: tensor for tensor in inputs}, outputs, Limits(), batched)


ONE = signature(port("x", "FP32", ("N", 3, 4, 5)), batched=True)


def refused(request: Bad, of: Signature = ONE) -> str:
    with pytest.raises(RequestError) as caught:
        decode(request.body, request.header_length, of)
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize("request_", ALL, ids=lambda request: request.wrong)
def test_what_is_wrong_is_refused_in_one_sentence(request_):
    told = refused(request_)
    assert request_.told in told
    assert len(told) < 400
    assert told.isprintable()


def test_a_good_request_becomes_arrays():
    request = decode(GOOD.body, GOOD.header_length, ONE)
    np.testing.assert_array_equal(request.feeds["x"], X)
    assert request.outputs == ("y",)
    assert request.binary == (False,)
    flat = decode(orjson.dumps(document(id="a")), None, ONE)
    nested = decode(orjson.dumps(document(inputs=[tensor(data=X.tolist())])), None, ONE)
    np.testing.assert_array_equal(flat.feeds["x"], X)
    np.testing.assert_array_equal(nested.feeds["x"], X)
    assert flat.id == "a"


def test_aligned_bytes_are_not_copied():
    request = binary()
    head = request.body[: int(request.header_length)]
    padded = head + b" " * (-(len(head)) % 16) + X.tobytes()
    array = decode(padded, str(len(padded) - X.nbytes), ONE).feeds["x"]
    if not array.flags.owndata:
        assert np.shares_memory(array, np.frombuffer(padded, np.uint8))
    shifted = head + b" " * (-(len(head)) % 16 + 1) + X.tobytes()
    other = decode(shifted, str(len(shifted) - X.nbytes), ONE).feeds["x"]
    # one of the two starts where a float may start, and the other does not
    assert array.base is not None
    assert other.flags.aligned
    assert np.shares_memory(array, np.frombuffer(padded, np.uint8)) != np.shares_memory(
        other, np.frombuffer(shifted, np.uint8)
    )


def test_a_lie_about_size_takes_no_memory():
    lies = [
        bad("", document(inputs=[tensor(shape=[2**40, 3, 4, 5])]), "elements"),
        binary(2**62, shape=[2**20, 3, 4, 5]),
        binary(X.nbytes, shape=[64, 3, 4, 5]),
    ]
    tracemalloc.start()
    try:
        for lie in lies:
            refused(lie)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("datatype", [row[1] for row in ROWS])
def test_every_type_comes_as_bytes(datatype):
    tensor_ = port("x", datatype, (2, 3))
    if datatype == "BYTES":
        texts = ["", "a", "äö", "\0", "long" * 9, "x"]
        raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        array = np.array(texts, np.object_).reshape(2, 3)
    else:
        array = np.arange(6).reshape(2, 3).astype(tensor_.dtype)
        raw = array.tobytes()
    request = binary(len(raw), raw, shape=[2, 3], datatype=datatype)
    found = decode(request.body, request.header_length, signature(tensor_)).feeds["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    asked = Request("", {}, ("y",), (True,))
    body, head = encode("m", "1", asked, [array])
    assert body[head:] == raw
    assert orjson.loads(body[:head])["outputs"][0]["datatype"] == datatype
    assert NAMES[array.dtype.char] == datatype


@pytest.mark.parametrize("datatype", [row[1] for row in ROWS if row[1] != "FP16"])
def test_every_type_comes_as_json(datatype):
    tensor_ = port("x", datatype, (2, 2))
    values = {"BOOL": [True, False, True, True], "BYTES": ["a", "ä", "", "d"]}.get(datatype, [0, 1, 2, 127])
    request = orjson.dumps({"inputs": [tensor(shape=[2, 2], datatype=datatype, data=values)]})
    found = decode(request, None, signature(tensor_)).feeds["x"]
    assert found.dtype == tensor_.dtype
    assert found.ravel().tolist() == values
    body, head = encode("m", "1", Request("", {}, ("y",), (False,)), [found])
    assert head is None
    assert orjson.loads(body)["outputs"][0]["data"] == values


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT8", 128), ("INT8", -129), ("UINT8", -1), ("UINT8", 256), ("INT32", 2**31), ("UINT64", -1), ("INT64", 2**63)],
)
def test_whole_numbers_do_not_wrap_around(datatype, value):
    request = bad("", {"inputs": [tensor(shape=[1], datatype=datatype, data=[value])]}, "")
    assert "too large" in refused(request, signature(port("x", datatype, (1,))))


def test_fp16_has_no_form_in_json():
    half = signature(port("x", "FP16", (1,)))
    request = bad("", {"inputs": [tensor(shape=[1], datatype="FP16", data=[1.0])]}, "")
    assert "FP16 has no form in JSON" in refused(request, half)
    with pytest.raises(RequestError, match="ask for it with binary_data"):
        encode("m", "1", Request("", {}, ("y",), (False,)), [np.zeros(2, np.float16)])


def test_answers_that_json_cannot_hold_are_marked():
    body, _ = encode("m", "1", Request("", {}, ("y",), (False,)), [np.array([1, np.nan, np.inf], np.float32)])
    [output] = json.loads(body)["outputs"]
    assert output["data"] == [1.0, None, None]
    assert output["parameters"] == {"non_finite_as_null": True}


def test_bytes_of_bool_and_strings_are_checked():
    def told(datatype: str, raw: bytes) -> str:
        return refused(binary(len(raw), raw, shape=[2], datatype=datatype), signature(port("x", datatype, (2,))))

    assert "must be 0 or 1" in told("BOOL", b"\x00\x02")
    assert "cut off" in told("BYTES", b"\x01\x00")
    assert "and 1 follow" in told("BYTES", b"\xff\xff\xff\xffa")
    assert "has 1 strings" in told("BYTES", b"\x01\x00\x00\x00a")
    assert "more than 2 strings" in told("BYTES", b"\x00\x00\x00\x00" * 3)
    assert "UTF-8" in told("BYTES", b"\x01\x00\x00\x00\xff\x00\x00\x00\x00")


def test_inputs_must_be_there_once_and_agree():
    two = signature(port("x", "FP32", ("N", 3, 4, 5)), port("w", "FP32", ("N",)))
    assert "lacks 'w'" in refused(bad("", document(), ""), two)
    assert "is there twice" in refused(bad("", {"inputs": [tensor(), tensor()]}, ""), two)
    other = tensor(name="w", shape=[3], data=[1.0] * 3)
    assert "axis 'N' is 2 long in one input and 3" in refused(bad("", {"inputs": [tensor(), other]}, ""), two)


def test_a_missing_array_in_one_of_two_bodies_is_noticed():
    two = signature(port("x", "FP32", SHAPE), port("w", "FP32", (2,)))
    head = orjson.dumps(
        {
            "inputs": [
                tensor(data=None, parameters={"binary_data_size": X.nbytes}),
                tensor(name="w", shape=[2], data=None, parameters={"binary_data_size": 8}),
            ]
        }
    )
    raw = np.array([1, 2], np.float32)
    request = decode(head + X.tobytes() + raw.tobytes(), str(len(head)), two)
    np.testing.assert_array_equal(request.feeds["w"], raw)
    assert "are left of the body" in refused(Bad("", head + X.tobytes(), str(len(head))), two)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def answered(body: bytes, header_length: str | None) -> None:
    """Decode, and let nothing pass but arrays of the right shape or a refusal."""
    refusal = None
    try:
        request = decode(body, header_length, ONE)
    except RequestError as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 400
        assert str(refusal).isprintable()
        return
    assert request.feeds["x"].shape[1:] == (3, 4, 5)
    assert request.feeds["x"].dtype == np.float32


@settings(max_examples=400, deadline=None)
@given(field=st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), value=VALUES)
def test_any_value_in_any_field_of_an_input(field, value):
    answered(json.dumps({"inputs": [{**tensor(), field: value}]}).encode(), None)


@settings(max_examples=200, deadline=None)
@given(field=st.sampled_from(["id", "inputs", "outputs", "parameters"]), value=VALUES)
def test_any_value_in_any_field_of_a_request(field, value):
    answered(json.dumps({**document(), field: value}).encode(), None)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_any_byte_anywhere(data):
    body = bytearray(GOOD.body)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([GOOD.header_length, None, "0", "7", str(len(body))]))
    cut = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    answered(bytes(body[:cut]), length)
