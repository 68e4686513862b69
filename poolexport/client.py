"""Ask a server for answers: a thin cover over ``tritonclient``, the published client of the protocol.

>>> from poolexport.client import Client
>>> Client("ftp://localhost")
Traceback (most recent call last):
    ...
poolexport.errors.InputError: 'ftp://localhost' is no address of a server; it begins with http://, https://, grpc:// ...
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from poolexport.errors import InputError, MissingExtraError, RequestError

__all__ = ["Client"]

T = TypeVar("T")
#: Where servers listen, unless an address says otherwise.
PORTS = {"http": 8000, "https": 8000, "grpc": 8001, "grpcs": 8001}
#: HTTP's status for each of gRPC's that servers answer with; a connection that failed is none.
CODES = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 0,
    "DEADLINE_EXCEEDED": 504,
}
#: Answers after which a request may be sent once more: nobody was there, what was to answer it ended, as a replica of a
#: cluster may, or there was no room for it.
AGAIN = frozenset({0, 500, 503})


class Client:
    """A connection to a server of the Open Inference Protocol, ours or another.

    Args:
        url: ``http://host:8000`` or ``grpc://host:8001``; with an s for TLS.
        token: sent as ``Authorization: Bearer``.
        timeout: seconds that an answer may take.
        retries: how often a request is sent again that the server could not begin, or lost.

    Example, with a server at hand::

        with Client("http://127.0.0.1:8000") as client:
            answers = client.infer("net", {"input": np.zeros((1, 3, 32, 32), "float32")})
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 30.0, retries: int = 1) -> None:
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise InputError(
                f"{url!r} is no address of a server; it begins with http://, https://, grpc:// or grpcs://"
            )
        try:
            port = parts.port or PORTS[parts.scheme]
        except ValueError as error:
            raise InputError(f"{url!r} is no address of a server: {error}") from error
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        secure = parts.scheme.endswith("s")
        self.url = url
        self.timeout = timeout
        self.retries = retries
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._over_http = parts.scheme.startswith("http")
        self._library = _library("http" if self._over_http else "grpc")
        address = f"{host}:{port}"
        if self._over_http:
            waits = {"connection_timeout": timeout, "network_timeout": timeout}
            self._client = self._library.InferenceServerClient(address, ssl=secure, **waits)
        else:
            self._client = self._library.InferenceServerClient(address, ssl=secure)

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: str = "", outputs: list[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The model's answers, by name.

        Args:
            model: its name.
            inputs: an array for every input.
            version: the latest by default.
            outputs: names of those wanted; all by default.

        Raises:
            RequestError: the server refuses, or does not answer.
        """
        given = []
        for name, x in inputs.items():
            x = np.ascontiguousarray(x)
            given.append(self._library.InferInput(name, list(x.shape), _datatype(name, x)))
            given[-1].set_data_from_numpy(x)
        wanted = [self._library.InferRequestedOutput(name) for name in outputs] if outputs else None
        waits = {} if self._over_http else {"client_timeout": self.timeout}
        result = self._call(
            lambda: self._client.infer(
                model, given, model_version=version, outputs=wanted, headers=self._headers or None, **waits
            )
        )
        response = result.get_response()
        found = response["outputs"] if self._over_http else response.outputs
        names = [output["name"] if self._over_http else output.name for output in found]
        return {name: result.as_numpy(name) for name in names}

    def ready(self, model: str | None = None) -> bool:
        """Whether the server, or one of its models, is ready; False also where nobody listens."""
        try:
            if model is None:
                return bool(self._client.is_server_ready(headers=self._headers or None))
            return bool(self._client.is_model_ready(model, headers=self._headers or None))
        except Exception:
            return False

    def models(self) -> list[str]:
        """Names of the models that are served.

        Raises:
            RequestError: the server does not tell, or does not answer.
        """
        index = self._call(lambda: self._client.get_model_repository_index(headers=self._headers or None))
        entries = index if self._over_http else [{"name": m.name, "state": m.state} for m in index.models]
        return sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, request: Callable[[], T]) -> T:
        for attempt in range(self.retries + 1):
            try:
                return request()
            except Exception as error:
                status = _status(error)
                if status not in AGAIN or attempt == self.retries:
                    raise RequestError(status, f"{self.url}: {_reason(error)}") from error
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(f"tritonclient.{name}")
    except ImportError as error:
        raise MissingExtraError("tritonclient", "client", "talking to a server") from error


def _datatype(name: str, x: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    found = np_to_triton_dtype(x.dtype)
    if found is None:
        raise InputError(f"input {name!r} is an array of {x.dtype}, which the protocol has no word for")
    return str(found)


def _status(error: Exception) -> int:
    """HTTP's status of an answer that is an error; 0 where nobody answered."""
    told = str(getattr(error, "status", lambda: None)() or "").rpartition(".")[2]
    if told.isdecimal():
        return int(told)
    return CODES.get(told, 500) if told else 0


def _reason(error: Exception) -> str:
    message = getattr(error, "message", lambda: None)() or str(error)
    lines = str(message).strip().splitlines()
    return lines[0] if lines else type(error).__name__
