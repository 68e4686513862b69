"""Requests and answers of the Open Inference Protocol: JSON, and tensors as the bytes that follow it.

Everything that a client sends is doubted here, before memory is taken for it: names, types, shapes, sizes and counts.
Binary tensors become arrays over the bytes of the request, without a copy where they are aligned.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import orjson

from poolexport.errors import RequestError
from poolexport.serve.config import Limits
from poolexport.serve.datatypes import BYTES, DATATYPES, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
#: Characters of a client's text that an error repeats.
SHOWN = 64
NO_MEMORY = "there is no memory left for this request; send less, or try again"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, and how much of it.

    Args:
        inputs, outputs: by name, in order.
        limits: of a request.
        batched: whether the first axis of everything is one dynamic batch.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    limits: Limits
    batched: bool = False


@dataclass(slots=True)
class Request:
    """A request that can be run.

    Args:
        id: the client's, or empty.
        feeds: arrays by name of input.
        outputs: names of those asked for, in order.
        binary: for each of them, whether its answer is bytes.
        seconds: the client's own time-out; 0 for none.
    """

    id: str
    feeds: dict[str, Array]
    outputs: tuple[str, ...]
    binary: tuple[bool, ...]
    seconds: float = 0.0


def refuse(message: str) -> RequestError:
    return RequestError(400, message)


def shown(text: object) -> str:
    """A client's text in a form that is safe to repeat."""
    spelled = ascii(text)
    return spelled if len(spelled) <= SHOWN else spelled[:SHOWN] + "...'"


def decode(body: bytes, header_length: str | None, signature: Signature) -> Request:
    """The request in a body.

    Args:
        body: of it.
        header_length: bytes of JSON before the binary tensors; None where there is only JSON.
        signature: of the model that is asked.

    Raises:
        RequestError: something about it is wrong.
    """
    end = len(body)
    if header_length is not None:
        end = _header_length(header_length, end)
    document = _document(body if end == len(body) else memoryview(body)[:end])
    inputs = document.get("inputs")
    if type(inputs) is not list or not inputs:
        raise refuse("the request needs 'inputs', a list with one entry per input of the model")
    if len(inputs) > len(signature.inputs):
        raise refuse(f"the request has {len(inputs)} inputs and the model takes {len(signature.inputs)}")
    feeds: dict[str, Array] = {}
    offset = end
    for entry in inputs:
        tensor, shape = declared(entry, feeds, signature)
        size = _binary_size(entry, tensor.name)
        if size is None:
            feeds[tensor.name] = _from_json(entry.get("data"), tensor, shape)
            continue
        if size > len(body) - offset:
            raise refuse(
                f"input {shown(tensor.name)} says it has {size} bytes and {len(body) - offset} are left of the body"
            )
        feeds[tensor.name] = from_bytes(body, tensor, shape, size, offset)
        offset += size
    if offset != len(body):
        raise refuse(f"{len(body) - offset} bytes follow the last input; no input says they are its own")
    complete(feeds, signature)
    name = document.get("id", "")
    if type(name) is not str:
        raise refuse("'id' must be a string")
    parameters = _parameters(document, "the request")
    outputs, binary = _requested(document.get("outputs"), parameters, signature)
    return Request(name, feeds, outputs, binary, client_seconds(parameters.get("timeout")))


def client_seconds(timeout: Any) -> float:
    """A client's time-out, from the microseconds that clients of Triton send."""
    if timeout is None:
        return 0.0
    if type(timeout) is not int or timeout < 0:
        raise refuse("the parameter 'timeout' must be a whole number of microseconds")
    return timeout / 1e6


def _header_length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise refuse(f"Inference-Header-Content-Length must be a whole number of bytes, got {shown(text)}")
    length = int(text)
    if not 0 < length <= size:
        raise refuse(f"Inference-Header-Content-Length is {length} and the body has {size} bytes")
    return length


def _document(text: bytes | memoryview) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = error.msg if len(error.msg) <= 2 * SHOWN else error.msg[: 2 * SHOWN]
        raise refuse(f"the request is not JSON: {reason}") from None
    if type(document) is not dict:
        raise refuse("the request must be a JSON object")
    return document


def _parameters(entry: dict[str, Any], owner: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise refuse(f"'parameters' of {owner} must be an object")
    if any(name.startswith("shared_memory") for name in parameters):
        raise refuse("shared memory is not supported; send the tensor in the request")
    return parameters


def declared(entry: Any, feeds: Mapping[str, Array], signature: Signature) -> tuple[TensorSpec, tuple[int, ...]]:
    """Which input of the model an entry of 'inputs' is, and its shape, both checked."""
    if type(entry) is not dict:
        raise refuse("every input must be an object")
    return checked(entry.get("name"), entry.get("datatype"), entry.get("shape"), feeds, signature)


def checked(
    name: Any, datatype: Any, shape: Any, feeds: Mapping[str, Array], signature: Signature
) -> tuple[TensorSpec, tuple[int, ...]]:
    """The input of the model that goes by this name, if the type and the shape are ones that it takes."""
    tensor = signature.inputs.get(name) if type(name) is str else None
    if tensor is None:
        raise refuse(f"the model has no input {shown(name)}; it takes {_listed(signature.inputs)}")
    if name in feeds:
        raise refuse(f"input {shown(name)} is there twice")
    if datatype != tensor.datatype:
        kind = "is no data type" if datatype not in DATATYPES else "is not its data type"
        raise refuse(f"input {shown(name)}: {shown(datatype)} {kind}; it takes {tensor.datatype}")
    if type(shape) is not list or not {int}.issuperset(map(type, shape)):
        raise refuse(f"input {shown(name)}: 'shape' must be a list of whole numbers")
    if len(shape) != tensor.rank:
        raise refuse(f"input {shown(name)} has {len(shape)} axes; the model takes {_spelled(tensor)}")
    for length, wanted in zip(shape, tensor.shape):
        if length != wanted and (type(wanted) is int or length < 1):
            raise refuse(f"input {shown(name)} has the shape {_brief(shape)}; the model takes {_spelled(tensor)}")
    limits = signature.limits
    if prod(shape) > limits.elements:
        raise refuse(f"input {shown(name)} of shape {_brief(shape)} has more than {limits.elements} elements")
    if signature.batched and shape[0] > limits.batch:
        raise refuse(f"input {shown(name)} is a batch of {shape[0]}; at most {limits.batch} are taken")
    return tensor, tuple(shape)


def complete(feeds: Mapping[str, Array], signature: Signature) -> None:
    """Raise unless every input is there, and axes of one name have one length."""
    if len(feeds) < len(signature.inputs):
        missing = [name for name in signature.inputs if name not in feeds]
        raise refuse(f"the request lacks {_listed(missing)}")
    if len(feeds) == 1:
        return
    lengths: dict[str, int] = {}
    for name, array in feeds.items():
        for length, axis in zip(array.shape, signature.inputs[name].shape):
            if type(axis) is str and axis and lengths.setdefault(axis, length) != length:
                raise refuse(f"the axis {axis!r} is {lengths[axis]} long in one input and {length} in {shown(name)}")


def _binary_size(entry: dict[str, Any], name: str) -> int | None:
    size = _parameters(entry, f"input {shown(name)}").get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise refuse(f"input {shown(name)}: 'binary_data_size' must be a whole number of bytes, got {shown(size)}")
    if "data" in entry:
        raise refuse(f"input {shown(name)} has both 'data' and 'binary_data_size'; send one of them")
    return size


def from_bytes(data: bytes, tensor: TensorSpec, shape: tuple[int, ...], size: int, offset: int = 0) -> Array:
    """The array in ``size`` bytes of ``data``: a view of them where they are aligned, and a copy elsewhere."""
    count = prod(shape)
    if tensor.datatype == BYTES:
        return from_texts(_slices(memoryview(data)[offset : offset + size], tensor), tensor, shape)
    if size != count * tensor.dtype.itemsize:
        raise refuse(
            f"input {shown(tensor.name)} has {size} bytes; {tensor.datatype} of shape {_brief(shape)} "
            f"has {count * tensor.dtype.itemsize}"
        )
    array = np.frombuffer(data, tensor.dtype, count, offset)
    if tensor.datatype == "BOOL" and count and array.view(np.uint8).max() > 1:
        raise refuse(f"input {shown(tensor.name)}: bytes of BOOL must be 0 or 1")
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def _slices(data: memoryview, tensor: TensorSpec) -> Iterator[bytes]:
    """The byte strings in a tensor, each behind its length."""
    start = 0
    while start < len(data):
        if len(data) - start < 4:
            raise refuse(f"input {shown(tensor.name)}: the length of a string is cut off")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if length > len(data) - start:
            raise refuse(
                f"input {shown(tensor.name)}: a string says it has {length} bytes and {len(data) - start} follow"
            )
        yield bytes(data[start : start + length])
        start += length


def from_texts(texts: Iterator[bytes], tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The array of these byte strings, which are text."""
    count = prod(shape)
    array = np.empty(count, np.object_)
    found = 0
    for text in texts:
        if found == count:
            raise refuse(f"input {shown(tensor.name)} has more than {count} strings, of which its shape speaks")
        try:
            array[found] = text.decode()
        except UnicodeDecodeError:
            raise refuse(f"input {shown(tensor.name)}: strings must be UTF-8") from None
        found += 1
    if found != count:
        raise refuse(f"input {shown(tensor.name)} has {found} strings and its shape speaks of {count}")
    return array.reshape(shape)


#: What the elements of a JSON list may be, by the kind of a numpy type.
_JSON_TYPES: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true and false"),
    "i": (frozenset({int}), "whole numbers"),
    "u": (frozenset({int}), "whole numbers"),
    "f": (frozenset({float, int}), "numbers"),
    "O": (frozenset({str}), "strings"),
}


def _from_json(data: Any, tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
    name = shown(tensor.name)
    if type(data) is not list:
        raise refuse(f"input {name} needs 'data', a list, or the parameter 'binary_data_size'")
    if tensor.datatype == "FP16":
        raise refuse(f"input {name}: FP16 has no form in JSON; send it as binary data")
    flat = data
    if data and type(data[0]) is list:
        flat = _flattened(data, name, shape)
    count = prod(shape)
    if len(flat) != count:
        raise refuse(f"input {name} has {len(flat)} elements; the shape {_brief(shape)} has {count}")
    allowed, words = _JSON_TYPES[tensor.dtype.kind]
    if not allowed.issuperset(map(type, flat)):
        raise refuse(f"input {name}: 'data' of {tensor.datatype} must hold {words} and nothing else")
    if tensor.dtype.kind in "iu" and count:
        # asked first, because numpy before 2 wraps around
        bounds = np.iinfo(tensor.dtype)
        if min(flat) < bounds.min or max(flat) > bounds.max:
            raise refuse(f"input {name}: a number is too large for {tensor.datatype}")
    with np.errstate(over="ignore"):
        array = np.array(flat, tensor.dtype)
    if tensor.dtype.kind == "f" and not np.isfinite(array).all():
        raise refuse(f"input {name}: a number is too large for {tensor.datatype}")
    return array.reshape(shape)


def _flattened(data: list[Any], name: str, shape: tuple[int, ...]) -> list[Any]:
    """The elements of nested lists that have the shape and no other."""
    level: list[Any] = [data]
    for axis, length in enumerate(shape):
        if not {list}.issuperset(map(type, level)) or not {length}.issuperset(map(len, level)):
            raise refuse(f"input {name}: axis {axis} of 'data' is not {length} long everywhere, as the shape says")
        level = list(chain.from_iterable(level))
    return level


def _requested(
    entries: Any, parameters: dict[str, Any], signature: Signature
) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    standard = parameters.get("binary_data_output", False)
    if type(standard) is not bool:
        raise refuse("the parameter 'binary_data_output' must be true or false")
    if entries is None or entries == []:
        names = tuple(signature.outputs)
        return names, (standard,) * len(names)
    if type(entries) is not list:
        raise refuse("'outputs' must be a list of objects")
    binary: dict[str, bool] = {}
    for entry in entries:
        if type(entry) is not dict:
            raise refuse("every output must be an object")
        name = requested(entry.get("name"), binary, signature)
        parameters = _parameters(entry, f"output {shown(name)}")
        if parameters.get("classification"):
            raise refuse("the classification extension is not supported; ask for the numbers themselves")
        asked = parameters.get("binary_data", standard)
        if type(asked) is not bool:
            raise refuse(f"output {shown(name)}: the parameter 'binary_data' must be true or false")
        binary[name] = asked
    return tuple(binary), tuple(binary.values())


def requested(name: Any, others: Mapping[str, Any], signature: Signature) -> str:
    """The name of an output that the model has and that was not asked for before."""
    if type(name) is not str or name not in signature.outputs:
        raise refuse(f"the model has no output {shown(name)}; it gives {_listed(signature.outputs)}")
    if name in others:
        raise refuse(f"output {shown(name)} is asked for twice")
    return name


def encode(model: str, version: str, request: Request, answers: Sequence[Array]) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON; None where all are.

    Raises:
        RequestError: an answer has no form in JSON.
    """
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary, answer in zip(request.outputs, request.binary, answers):
        datatype = NAMES[answer.dtype.char]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": answer.shape}
        if binary:
            raw = to_bytes(answer)
            entry["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            _to_json(entry, answer)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id:
        document["id"] = request.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *parts)), len(head)) if parts else (head, None)


#: The protocol's name of a type, by numpy's code of it.
NAMES = {
    **{np.dtype(code).char: name for code, name in (("f2", "FP16"), ("f4", "FP32"), ("f8", "FP64"), ("?", "BOOL"))},
    **{code: f"{'U' * (code in 'BHILQ')}INT{8 * np.dtype(code).itemsize}" for code in "bBhHiIlLqQ"},
    "O": BYTES,
    "U": BYTES,
}


def to_bytes(answer: Array) -> bytes:
    """The bytes of an answer, in the order and the form of the protocol."""
    if answer.dtype.kind in "OU":
        texts = [text.encode() if isinstance(text, str) else bytes(text) for text in answer.ravel().tolist()]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return answer.tobytes()


def _to_json(entry: dict[str, Any], answer: Array) -> None:
    kind = answer.dtype.kind
    if answer.dtype == np.float16:
        raise refuse(f"output {shown(entry['name'])}: FP16 has no form in JSON; ask for it with binary_data")
    if kind in "OU":
        entry["data"] = answer.ravel().tolist()
        return
    if kind == "f" and not np.isfinite(answer).all():
        # JSON has neither NaN nor infinities: they arrive as null, and this says that some did
        entry["parameters"] = {"non_finite_as_null": True}
    entry["data"] = np.ascontiguousarray(answer).reshape(-1)


def _listed(names: Any) -> str:
    spelled = [shown(name) for name in list(names)[:4]]
    return ", ".join(spelled) + (" and more" if len(names) > 4 else "")


def _spelled(tensor: TensorSpec) -> str:
    return "[" + ", ".join(str(length) if length != "" else "?" for length in tensor.shape) + "]"


def _brief(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(length) for length in shape[:8]) + (", ...]" if len(shape) > 8 else "]")
