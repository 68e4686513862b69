"""What can be seen of serving on Ray without Ray; a cluster is tried by ``tests/cluster/oracles.py``."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from poolexport import cluster as nodes
from poolexport.cli.serve import NOT_ON_RAY, ON_RAY
from poolexport.cli.serve import serve as command
from poolexport.errors import InputError, StartError
from poolexport.serve.cluster import HELD, Replica, Scale, in_replica, options
from poolexport.serve.config import Limits, Settings
from poolexport.serve.state import Entry, first_state, places
from poolexport.serve.stubs import inference_pb2 as messages
from serve import requests


@pytest.fixture(scope="module")
def travelling(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Entry, nodes.Parcel]:
    """A bundle that was tried and packed, and is not there any more."""
    here = tmp_path_factory.mktemp("here") / "mean"
    shutil.copytree(bundles / "mean", here)
    [entry] = first_state(places([str(here)]), Settings()).entries
    parcel = nodes.packed(here)
    shutil.rmtree(here)
    return entry, parcel


@pytest.mark.parametrize(
    ("settings", "scale", "told"),
    [
        (Settings(), Scale(), {"num_replicas": 1, "max_ongoing_requests": 1 + HELD, "max_queued_requests": 64 - HELD}),
        (Settings(), Scale(3, cpus=2), {"num_replicas": 3, "max_ongoing_requests": 2 * (1 + HELD)}),
        (
            Settings(),
            Scale(3, cpus=2),
            {"max_queued_requests": 3 * 2 * (64 - HELD), "ray_actor_options": {"num_cpus": 2}},
        ),
        (Settings(limits=Limits(queue=4)), Scale(2), {"max_ongoing_requests": 5, "max_queued_requests": 1}),
        (Settings(limits=Limits(drain_seconds=30)), Scale(), {"graceful_shutdown_timeout_s": 32}),
        (Settings(), Scale(2, per_node=1), {"max_replicas_per_node": 1, "backpressure_config": {"retry_after_s": 1}}),
        (Settings(slots=4), Scale(cpus=0.5), {"max_ongoing_requests": 4 * (1 + HELD)}),
    ],
)
def test_ray_is_told_the_plan(settings: Settings, scale: Scale, told: dict[str, Any]) -> None:
    found = options(in_replica(settings, scale), scale)
    assert {name: found[name] for name in told} == told
    assert "autoscaling_config" not in found


def test_more_replicas_under_load_are_autoscaling() -> None:
    found = options(in_replica(Settings(), Scale(2, 5, cpus=3)), Scale(2, 5, cpus=3))
    bounds = {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 6}
    assert (found["autoscaling_config"], "num_replicas" in found) == (bounds, False)


def ask(replica: Replica, body: bytes, head: str | None) -> tuple[int, bytes]:
    """What the application of a replica answers at the address of its model."""
    application = replica.__serve_build_asgi_app__()
    headers = [(b"inference-header-content-length", head.encode())] if head else []
    scope = {"type": "http", "method": "POST", "path": "/v2/models/mean/infer", "headers": headers}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_a_model_travels_and_leaves_nothing(
    travelling: tuple[Entry, nodes.Parcel], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    replica = Replica([travelling], Settings(), "error")
    assert not list(tmp_path.iterdir())
    status, body = ask(replica, requests.GOOD.body, requests.GOOD.header_length)
    assert status == 200
    answer = np.array(json.loads(body)["outputs"][0]["data"]).reshape(2, 3)
    np.testing.assert_allclose(answer, requests.X.mean((2, 3)), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="not ready"):
        replica.check_health()


def test_a_model_that_changed_on_the_way_is_not_served(travelling: tuple[Entry, nodes.Parcel]) -> None:
    entry, parcel = travelling
    sample = parcel.contents["sample.npz"]
    other = replace(parcel, contents={**parcel.contents, "sample.npz": sample[:-1] + bytes([sample[-1] ^ 1])})
    with pytest.raises(InputError, match=r"mean, version 1, cannot be served here: .* changed"):
        Replica([(entry, other)], Settings(), "error")


def test_a_large_model_has_to_be_there(bundles: Path, travelling: tuple[Entry, nodes.Parcel]) -> None:
    entry, parcel = travelling
    there = nodes.packed(bundles / "mean", most=1000)
    assert not there.contents
    Replica([(entry, there)], Settings(), "error")
    with pytest.raises(InputError, match="is too large to travel, and is not on this machine"):
        Replica([(entry, replace(parcel, contents={}))], Settings(), "error")


class Context:
    """Ray's context of a call."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata, self.told = metadata, []

    def invocation_metadata(self) -> Any:
        return self.metadata

    def set_code(self, code: Any) -> None:
        self.told.append(code)

    def set_details(self, details: str) -> None:
        self.told.append(details)


def test_calls_are_answered_from_the_bytes_that_ray_passes_on(travelling: tuple[Entry, nodes.Parcel]) -> None:
    replica: Any = Replica([travelling], Settings(), "error")
    message = messages.ModelInferRequest(model_name="mean", raw_input_contents=[requests.X.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=requests.X.shape)
    answer = asyncio.run(replica.ModelInfer(message.SerializeToString(), grpc_context=Context()))
    np.testing.assert_allclose(
        np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(2, 3), requests.X.mean((2, 3)), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("data", "metadata", "code", "told"),
    [
        (b"\xff\xff", [("authorization", "Bearer right")], grpc.StatusCode.INVALID_ARGUMENT, "no ModelInferRequest"),
        (b"", [("authorization", "Bearer right")], grpc.StatusCode.NOT_FOUND, "no model"),
        (b"", [("authorization", "Bearer wrong")], grpc.StatusCode.UNAUTHENTICATED, "wants a token"),
        (b"", [], grpc.StatusCode.UNAUTHENTICATED, "wants a token"),
    ],
)
def test_calls_are_refused_with_their_status(
    travelling: tuple[Entry, nodes.Parcel], data: bytes, metadata: Any, code: Any, told: str
) -> None:
    from hashlib import sha256

    replica: Any = Replica([travelling], Settings(tokens=(sha256(b"right").digest(),)), "error")
    context = Context(*metadata)
    with pytest.raises(RuntimeError, match=told):
        asyncio.run(replica.ModelInfer(data, grpc_context=context))
    assert context.told[0] is code
    assert told in context.told[1]


def said(*words: str) -> str:
    """What the command says, which must not come as far as to serve."""
    with pytest.MonkeyPatch.context() as patch:
        for served in ("process", "cluster"):
            patch.setattr(f"poolexport.serve.{served}.serve", None)
        done = CliRunner().invoke(command, list(words))
    assert isinstance(done.exception, InputError), (words, done.exception)
    return str(done.exception)


VALUES = {"workers": "2", "metrics_port": "9000", "header_seconds": "3", "front": "uvicorn", "control": ""}


@pytest.mark.parametrize("name", NOT_ON_RAY)
def test_options_without_meaning_on_a_cluster_are_refused(bundles: Path, name: str) -> None:
    [option] = [parameter.opts[0] for parameter in command.params if parameter.name == name]
    words = [option, *filter(None, [VALUES.get(name, __file__)])]
    told = said(str(bundles / "mean"), "--ray", *words)
    assert told == f"{option} means nothing with --ray: {NOT_ON_RAY[name]}"
    assert "with --ray" in said(str(bundles / "mean"), "--ray-address", "head:6379", *words)


@pytest.mark.parametrize("name", ON_RAY)
def test_options_of_a_cluster_want_one(bundles: Path, name: str) -> None:
    [option] = [parameter.opts[0] for parameter in command.params if parameter.name == name]
    told = said(str(bundles / "mean"), option, *([] if name == "detach" else ["2"]))
    assert told == f"{option} is for a cluster: add --ray"


def with_all_but(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it look as if Ray was installed, and all that it needs but one package."""
    real = importlib.util.find_spec

    def found(name: str) -> Any:
        if name in ("ray", "fastapi"):
            return None if name == package else real("json")
        return real(name)

    monkeypatch.setattr(importlib.util, "find_spec", found)


@pytest.mark.parametrize("package", ["ray", "fastapi"])
def test_without_ray_it_says_what_to_install(bundles: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    with_all_but(package, monkeypatch)
    told = said(str(bundles / "mean"), "--ray")
    assert told == (
        f"serving on a cluster needs the package {package!r}; install it with: pip install 'poolexport[ray]'"
    )


def test_fewer_replicas_under_load_make_no_sense(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_all_but("nothing", monkeypatch)
    told = said(str(bundles / "mean"), "--ray", "--replicas", "3", "--max-replicas", "2")
    assert told == "--max-replicas 2 is less than --replicas 3"


@pytest.mark.parametrize(
    ("address", "kind", "told"),
    [
        ("ray://head:10001", InputError, "write host:port"),
        ("head", InputError, "write host:port"),
        ("127.0.0.1:1", StartError, "there is no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_only_addresses_of_heads_are_joined(
    address: str, kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(kind, match=told), nodes.joined(address):
        pass
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(kind, match=told), nodes.joined():
        pass
