"""The protocol over gRPC: the same core as over HTTP, behind the messages of ``stubs/inference.proto``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from poolexport.errors import RequestError, StartError
from poolexport.serve import core as describe
from poolexport.serve.core import Core
from poolexport.serve.datatypes import BYTES, TensorSpec
from poolexport.serve.model import Model
from poolexport.serve.protocol import (
    NAMES,
    NO_MEMORY,
    Array,
    Request,
    Signature,
    checked,
    client_seconds,
    complete,
    from_bytes,
    from_texts,
    refuse,
    requested,
    shown,
    to_bytes,
)
from poolexport.serve.stubs import inference_pb2 as messages

SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
#: Calls that need no token.
PUBLIC = ("ServerLive", "ServerReady")
#: gRPC's status for each of HTTP's that the core uses.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.RESOURCE_EXHAUSTED,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
#: Fields of typed contents, by the protocol's data type.
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
#: Bytes of a request beside its tensors.
ENVELOPE = 1 << 20
#: Bytes of a message: protobuf has none that is longer.
LONGEST = (1 << 31) - 1
log = logging.getLogger("poolexport.serve")


@dataclass(frozen=True)
class Endpoint:
    """Where gRPC is served, and with which certificate, if any."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None


class Servicer:
    """Answers the calls of the service; each method has the name of its call."""

    def __init__(self, core: Core) -> None:
        self.core = core

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=self.core.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return messages.ServerMetadataResponse(**describe.server_metadata())

    async def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            self._find(request)
        except RequestError as error:
            if error.status == 404:
                raise
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=self.core.ready)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        model = self._find(request)
        found = describe.model_metadata(model, self.core.repository.versions(model.name))
        return ParseDict(found, messages.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        config = describe.model_config(self._find(request), self.core.engine.slots, self.core.settings.batch_delay)
        return ParseDict({"config": config}, messages.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        asked = self.core.chosen(request.name, request.version)
        found = [describe.model_statistics(model, self.core.statistics(model)) for model in asked]
        return ParseDict({"model_stats": found}, messages.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        found = describe.index(self.core.repository, ready=request.ready)
        return ParseDict({"models": found}, messages.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        await self.core.load(request.model_name, request.parameters)
        return messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        await self.core.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        model = self.core.repository.find(request.model_name, request.model_version)
        try:
            return await self._infer(model, request, context.time_remaining())
        except RequestError as error:
            model.meter.failed(error.status)
            raise
        except MemoryError:
            model.meter.failed(503)
            raise RequestError(503, NO_MEMORY) from None
        except asyncio.CancelledError:
            model.meter.failed(499)
            raise

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            try:
                answer = await self.ModelInfer(request, context)
                yield messages.ModelStreamInferResponse(infer_response=answer)
            except RequestError as error:
                refused = messages.ModelInferResponse(id=request.id)
                yield messages.ModelStreamInferResponse(error_message=str(error), infer_response=refused)

    def _find(self, request: Any) -> Model:
        return self.core.repository.find(request.name, request.version)

    async def _infer(self, model: Model, message: Any, remaining: float | None) -> Any:
        started = time.perf_counter()
        request = decode(message, model.signature)
        if remaining is not None and (not request.seconds or remaining < request.seconds):
            request.seconds = max(remaining, 1e-6)
        decoded = time.perf_counter()
        answers, run = await self.core.engine.infer(model, request.feeds, request.outputs, request.seconds)
        computed = time.perf_counter()
        answer = encode(model, request, answers)
        ended = time.perf_counter()
        queue = run.started - decoded
        model.meter.answered(queue, decoded - started, computed - run.started, ended - computed, run.rows)
        return answer


def decode(message: Any, signature: Signature) -> Request:
    """The request in a message.

    Raises:
        RequestError: something about it is wrong.
    """
    inputs, raw = message.inputs, message.raw_input_contents
    if not inputs:
        raise refuse("the request needs one entry in 'inputs' per input of the model")
    if len(inputs) > len(signature.inputs):
        raise refuse(f"the request has {len(inputs)} inputs and the model takes {len(signature.inputs)}")
    if raw and len(raw) != len(inputs):
        raise refuse(f"the request has {len(inputs)} inputs and {len(raw)} raw contents; one for each, or none at all")
    _parameters(message)
    feeds: dict[str, Array] = {}
    for index, entry in enumerate(inputs):
        tensor, shape = checked(entry.name, entry.datatype, list(entry.shape), feeds, signature)
        _parameters(entry)
        if not raw:
            feeds[tensor.name] = _typed(entry, tensor, shape)
            continue
        if entry.HasField("contents"):
            raise refuse(f"input {shown(tensor.name)} has raw and typed contents; send one of them")
        feeds[tensor.name] = from_bytes(raw[index], tensor, shape, len(raw[index]))
    complete(feeds, signature)
    names: dict[str, None] = {}
    for entry in message.outputs:
        requested(entry.name, names, signature)
        if "classification" in _parameters(entry):
            raise refuse("the classification extension is not supported; ask for the numbers themselves")
        names[entry.name] = None
    outputs = tuple(names or signature.outputs)
    timeout = message.parameters["timeout"].int64_param if "timeout" in message.parameters else None
    return Request(message.id, feeds, outputs, (True,) * len(outputs), client_seconds(timeout))


def _parameters(entry: Any) -> Mapping[str, Any]:
    parameters: Mapping[str, Any] = entry.parameters
    if parameters and any(name.startswith("shared_memory") for name in parameters):
        raise refuse("shared memory is not supported; send the tensor in the request")
    return parameters


def _typed(entry: Any, tensor: TensorSpec, shape: tuple[int, ...]) -> Array:
    """The array in the typed contents of an input."""
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise refuse(f"input {shown(tensor.name)}: {tensor.datatype} has no typed contents; send it raw")
    values = getattr(entry.contents, field)
    others = [other.name for other, _ in entry.contents.ListFields() if other.name != field]
    if others:
        raise refuse(f"input {shown(tensor.name)}: {tensor.datatype} belongs into {field}, not into {others[0]}")
    if len(values) != prod(shape):
        raise refuse(f"input {shown(tensor.name)} has {len(values)} elements; its shape has {prod(shape)}")
    if tensor.datatype == BYTES:
        return from_texts(iter(values), tensor, shape)
    array = np.array(values)
    if tensor.dtype.kind in "iu" and array.size:
        bounds = np.iinfo(tensor.dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise refuse(f"input {shown(tensor.name)}: a number is too large for {tensor.datatype}")
    return array.astype(tensor.dtype).reshape(shape)


def encode(model: Model, request: Request, answers: list[Array]) -> Any:
    """The message with the answers, as raw contents."""
    answer = messages.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    for name, array in zip(request.outputs, answers):
        answer.outputs.add(name=name, datatype=NAMES[array.dtype.char], shape=array.shape)
        answer.raw_output_contents.append(to_bytes(array))
    return answer


def add_to_server(servicer: Servicer, server: Any) -> None:
    """Answer the calls of the service on a server, this one's or another's."""
    handlers = {call.name: _handler(call, answer) for call, answer in calls(servicer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))


def calls(servicer: Servicer) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """The calls of the service, and what answers each: it takes the bytes of a message, or a stream of them.

    The bytes are read in it, so that what is no message is refused like all else.
    """
    for call in SERVICE.methods:
        behaviour, read = getattr(servicer, call.name), partial(_read, getattr(messages, call.input_type.name))
        if call.server_streaming:
            yield call, _guarded_stream(servicer, behaviour, read)
        else:
            yield call, _guarded(servicer, behaviour, read, public=call.name in PUBLIC)


def _handler(call: Any, answer: Callable[..., Any]) -> Any:
    write = getattr(messages, call.output_type.name).SerializeToString
    handler = grpc.stream_stream_rpc_method_handler if call.server_streaming else grpc.unary_unary_rpc_method_handler
    return handler(answer, response_serializer=write)


def _read(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise refuse(f"the request is no {kind.DESCRIPTOR.name}") from None


def _authorize(core: Core, context: Any) -> None:
    if core.settings.tokens:
        core.authorize(next((value for key, value in context.invocation_metadata() if key == "authorization"), None))


def _guarded(servicer: Servicer, behaviour: Callable[..., Any], read: Callable[[bytes], Any], *, public: bool) -> Any:
    """A call that ends with a status and one sentence, whatever happens in it."""

    async def call(data: bytes, context: Any) -> Any:
        try:
            if not public:
                _authorize(servicer.core, context)
            return await behaviour(read(data), context)
        except RequestError as error:
            await _abort(context, error)
        except Exception:
            await _fault(context)

    return call


def _guarded_stream(servicer: Servicer, behaviour: Callable[..., Any], read: Callable[[bytes], Any]) -> Any:
    async def call(stream: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        try:
            _authorize(servicer.core, context)
            async for answer in behaviour((read(data) async for data in stream), context):
                yield answer
        except RequestError as error:
            await _abort(context, error)
        except Exception:
            await _fault(context)

    return call


async def _abort(context: Any, error: RequestError) -> None:
    await context.abort(CODES.get(error.status, grpc.StatusCode.INTERNAL), str(error))


async def _fault(context: Any) -> None:
    log.exception("a call could not be answered")
    await context.abort(grpc.StatusCode.INTERNAL, "the server could not answer; its log says why")


@asynccontextmanager
async def serving(core: Core, endpoint: Endpoint) -> AsyncIterator[None]:
    """Serve a core over gRPC; several processes may share the port.

    Raises:
        StartError: the port cannot be had.
    """
    limits = core.settings.limits
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", min(limits.body + ENVELOPE, LONGEST)),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", 256),
            ("grpc.max_metadata_size", 16384),
            ("grpc.so_reuseport", 1),
        ],
    )
    add_to_server(Servicer(core), server)
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    address = f"{host}:{endpoint.port}"
    try:
        if endpoint.certificate is not None and endpoint.key is not None:
            pair = (endpoint.key.read_bytes(), endpoint.certificate.read_bytes())
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(f"gRPC cannot be served at {address}: the port is taken, or not to be had") from error
    await server.start()
    try:
        yield
    finally:
        await server.stop(limits.drain_seconds)
