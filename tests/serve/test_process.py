"""Processes of a server: started, killed, told to stop, and short of everything."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from processes import free_ports
from serve import models
from serve.conftest import Server, serving
from serve.requests import GOOD

BODY = GOOD.body
HEADERS = {"Inference-Header-Content-Length": str(GOOD.header_length)}
INFER = "/v2/models/mean/infer"
FRONTS = pytest.mark.parametrize("front", ["granian", "uvicorn"])


class Load:
    """Clients that ask until they are told to stop, and count what they get."""

    def __init__(self, server: Server, clients: int = 4) -> None:
        self.statuses: list[int] = []
        self.lost: list[str] = []
        self._server = server
        self._stop = threading.Event()
        self._clients = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
        while not self._stop.is_set():
            sent = False
            try:
                connection.connect()
                connection.request("POST", INFER, BODY, HEADERS)
                sent = True
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
            except (OSError, http.client.HTTPException) as error:
                if sent:
                    self.lost.append(repr(error))
                else:
                    time.sleep(0.01)
            finally:
                connection.close()

    def __enter__(self) -> Load:
        for one in self._clients:
            one.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for one in self._clients:
            one.join()


@FRONTS
def test_nothing_that_was_accepted_is_lost_when_it_is_told_to_stop(bundles, tmp_path, front, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = Server(bundles / "mean", bundles / "slow.onnx", "--server", front, "--drain-seconds", "5", cwd=tmp_path)
    request = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [300]}]}
    slow: list[int] = []

    def ask() -> None:
        slow.append(server.post("/v2/models/slow/infer", json.dumps(request).encode()).status)

    crowd = [threading.Thread(target=ask) for _ in range(4)]
    with Load(server) as load:
        for one in crowd:
            one.start()
        time.sleep(0.5)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(15)
        spent = time.monotonic() - started
    for one in crowd:
        one.join()
    assert slow == [200] * 4
    assert set(load.statuses) == {200}
    if front == "granian":
        assert load.lost == []
    # uvicorn closes its socket with what the kernel has accepted and it has not
    assert [lost for lost in load.lost if "reset" not in lost] == []
    assert spent < 10
    assert code == 0
    assert not list(tmp_path.glob("poolexport-serve-*"))


@FRONTS
def test_idle_and_half_open_connections_do_not_keep_it_alive(bundles, tmp_path, front):
    server = Server(bundles / "mean", "--server", front, "--drain-seconds", "1", cwd=tmp_path)
    idle = socket.create_connection(("127.0.0.1", server.port))
    half = socket.create_connection(("127.0.0.1", server.port))
    half.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\nhalf".encode())
    time.sleep(0.2)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(10)
    assert time.monotonic() - started < 9
    idle.close()
    half.close()


PATIENCE = ("--load-seconds", "10", "--header-seconds", "1", "--body-seconds", "2")


@pytest.fixture(scope="module")
def two(bundles, tmp_path_factory):
    """Two workers, a repository folder, tokens, and little patience."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "repository/grown/1").mkdir(parents=True)
    models.mean(folder / "repository/grown/1/model.onnx")
    (folder / "tokens").write_text("# ours\nsecret\nother\n")
    words = [bundles / "mean", "--repository", folder / "repository", "--workers", "2", "--control"]
    with serving(*words, "--tokens", folder / "tokens", *PATIENCE, cwd=folder) as server:
        server.folder = folder
        yield server


TOKEN = {"Authorization": "Bearer secret"}


def test_two_workers_start_and_share_the_port(two):
    assert len(two.workers()) == 2
    assert two.post(INFER, BODY, {**HEADERS, **TOKEN}).status == 200


def test_only_who_shows_a_token_is_answered(two):
    import grpc
    from tritonclient import grpc as over_grpc
    from tritonclient.utils import InferenceServerException

    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
    ):
        for method, path in (
            ("POST", INFER),
            ("GET", "/v2/models/mean"),
            ("POST", "/v2/repository/models/mean/unload"),
        ):
            answer = two.ask(method, path, BODY if method == "POST" else None, {**HEADERS, **headers})
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    assert two.get("/v2/health/live").status == 200
    assert two.get("/v2/models/mean", headers={"Authorization": "Bearer other"}).status == 200
    client = over_grpc.InferenceServerClient(two.grpc_address)
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="wants a token") as caught:
        client.get_model_metadata("mean")
    assert caught.value.status() == str(grpc.StatusCode.UNAUTHENTICATED)
    assert client.get_model_metadata("mean", headers={"authorization": "Bearer secret"}).name == "mean"


def everywhere(server: Server, path: str, tries: int = 24) -> set[int]:
    return {server.get(path, headers=TOKEN).status for _ in range(tries)}


def test_every_worker_follows_what_one_was_told(two):
    folder = two.folder / "repository/grown"
    assert everywhere(two, "/v2/models/grown/versions/2/ready") == {404}
    (folder / "2").mkdir()
    models.mean(folder / "2/model.onnx")
    assert two.post("/v2/repository/models/grown/load", headers=TOKEN).status == 200
    assert everywhere(two, "/v2/models/grown/versions/2/ready") == {200}
    assert two.get("/v2/models/grown", headers=TOKEN).json["versions"] == ["1", "2"]
    assert two.post("/v2/models/grown/infer", BODY, {**HEADERS, **TOKEN}).json["model_version"] == "2"
    assert two.post("/v2/repository/models/grown/unload", headers=TOKEN).status == 200
    assert everywhere(two, "/v2/models/grown/ready") == {400}
    assert two.post("/v2/repository/models/grown/load", headers=TOKEN).status == 200
    assert everywhere(two, "/v2/models/grown/ready") == {200}


def test_the_old_version_is_served_until_a_new_one_works(two):
    file = two.folder / "repository/grown/1/model.onnx"
    path = "/v2/models/grown/versions/1/infer"
    headers = {**HEADERS, **TOKEN}
    whole = file.read_bytes()
    wanted = two.post(path, BODY, headers).body
    file.write_bytes(whole[:-20])
    answer = two.post("/v2/repository/models/grown/load", headers=TOKEN)
    assert answer.status == 400
    assert "was not loaded: it is not an ONNX model" in answer.json["error"]
    assert str(two.folder) not in answer.json["error"]
    assert {two.post(path, BODY, headers).body for _ in range(8)} == {wanted}
    index = two.post("/v2/repository/index", headers=TOKEN).json
    [entry] = [one for one in index if one["name"] == "grown" and one["version"] == "1"]
    assert entry["state"] == "READY"
    assert "not an ONNX model" in entry["reason"]
    file.unlink()
    assert {two.post(path, BODY, headers).body for _ in range(8)} == {wanted}
    file.write_bytes(whole)
    assert two.post("/v2/repository/models/grown/load", headers=TOKEN).status == 200


def test_reloading_under_load_disturbs_nobody(two):
    statuses: list[int] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            statuses.append(two.post("/v2/models/grown/infer", BODY, {**HEADERS, **TOKEN}).status)

    crowd = [threading.Thread(target=ask) for _ in range(3)]
    for one in crowd:
        one.start()
    for _ in range(2):
        assert two.post("/v2/repository/models/grown/load", headers=TOKEN, timeout=30).status == 200
    over.set()
    for one in crowd:
        one.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}


def test_a_killed_worker_comes_back_and_the_other_serves_on(two):
    victim, other = two.workers()
    os.kill(victim, signal.SIGKILL)
    statuses = []
    until = time.monotonic() + 10
    while time.monotonic() < until and (len(two.workers()) < 2 or victim in two.workers()):
        with contextlib.suppress(OSError):
            statuses.append(two.post(INFER, BODY, {**HEADERS, **TOKEN}, timeout=5).status)
    assert other in two.workers()
    assert len(two.workers()) == 2
    assert set(statuses) <= {200}
    time.sleep(1)
    assert {two.post(INFER, BODY, {**HEADERS, **TOKEN}).status for _ in range(20)} == {200}
    assert everywhere(two, "/v2/models/grown/ready") == {200}


def test_slow_clients_are_cut_off(two):
    headers = [socket.create_connection(("127.0.0.1", two.port)) for _ in range(20)]
    bodies = [socket.create_connection(("127.0.0.1", two.port)) for _ in range(20)]
    for number, one in enumerate(headers):
        # silent from the start, what might become HTTP/2, and half a header
        one.sendall((b"", b"P", b"PRI * HTTP/2.0\r\n", b"POST /v2/models/mean/infer HTTP/1.1\r\nHost")[number % 4])
    for one in bodies:
        one.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\nContent-Length: 500\r\n\r\n".encode()
        )
    started = time.monotonic()
    assert two.post(INFER, BODY, {**HEADERS, **TOKEN}).status == 200
    for one in headers:
        one.settimeout(8)
        assert b" 200 " not in one.recv(200)
    assert time.monotonic() - started < 7
    for one in bodies:
        one.settimeout(8)
        assert b" 408 " in one.recv(200)
    assert 1.9 < time.monotonic() - started < 9
    for one in (*headers, *bodies):
        one.close()


def test_a_host_may_have_a_name_and_no_slot_needs_a_queue(bundles, tmp_path):
    words = [bundles / "slow.onnx", "--host", "localhost", "--queue", "0", "--slots", "1"]
    request = {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [100]}]}
    with serving(*words, cwd=tmp_path) as server:
        found: list[int] = []

        def ask() -> None:
            found.append(server.post("/v2/models/slow/infer", json.dumps(request).encode()).status)

        crowd = [threading.Thread(target=ask) for _ in range(2)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
    assert sorted(found) == [200, 503]


def refused(*words: str | Path) -> tuple[int, str]:
    """Exit code and words of a server that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "poolexport", "serve", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "NO_COLOR": "1"},
    )
    return done.returncode, done.stderr


def test_what_keeps_it_from_starting(bundles, tmp_path):
    port, free = free_ports(2)
    with socket.create_server(("127.0.0.1", port)):
        for option, other in (("--port", "--grpc-port"), ("--grpc-port", "--port")):
            code, told = refused(bundles / "mean", option, port, other, free)
            assert code == 1
            assert f"port {port} of 127.0.0.1 cannot be had: it is taken; choose another with {option}" in told
    code, told = refused(bundles / "mean", "--port", free, "--grpc-port", free)
    assert (code, f"--port and --grpc-port are both {free}" in told) == (2, True)
    (tmp_path / "empty").write_text("")
    shutil.copytree(bundles / "mean", tmp_path / "edited")
    (tmp_path / "edited/sample.npz").write_bytes(b"")
    for words, sentence in (
        ([], "nothing to serve"),
        ([tmp_path / "gone"], "there is no model at"),
        ([tmp_path / "edited"], "'sample.npz' is missing or was edited"),
        ([bundles / "mean", "--tokens", tmp_path / "empty"], "there is no token in"),
        ([bundles / "mean", "--certificate", tmp_path / "empty"], "needs both --certificate and --key"),
        (
            [bundles / "mean", "--certificate", tmp_path / "empty", "--key", tmp_path / "empty"],
            "are no certificate in PEM with its key",
        ),
        ([bundles / "mean", "--host", "no.such.host.invalid"], "is no address of this machine"),
        ([bundles / "mean", "--run-seconds", "nan"], "nan is none"),
        ([bundles / "mean", "--batch-rows", "9", "--max-batch", "8"], "--max-batch says how many"),
        ([bundles / "mean", "--host", "0.0.0.0", "--control"], "add --tokens"),
    ):
        code, told = refused(*words, "--port", port, "--grpc-port", free)
        assert code == 2, told
        assert sentence in told
        assert "Traceback" not in told


def test_an_address_that_others_reach_is_warned_about(bundles, tmp_path):
    with serving(bundles / "mean", "--host", "0.0.0.0", cwd=tmp_path) as server:
        assert "warning: 0.0.0.0 is reached from other machines" in server.log.read_text()


def test_nothing_is_left_behind(bundles, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serving(bundles / "mean", cwd=tmp_path) as server:
        assert len(list(tmp_path.glob("poolexport-serve-*"))) == 1
    assert server.process.returncode == 0
    assert not list(tmp_path.glob("poolexport-serve-*"))


def certificate(folder: Path) -> bool:
    """Write a certificate for 127.0.0.1, if there is openssl."""
    if shutil.which("openssl") is None:
        return False
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(["openssl", *words.split(), *files], check=True, capture_output=True)
    return True


@FRONTS
def test_tls(bundles, tmp_path, front):
    if not certificate(tmp_path):
        pytest.skip("there is no openssl to make a certificate with")
    import http.client

    from tritonclient import grpc as over_grpc

    words = [
        "--certificate",
        tmp_path / "certificate.pem",
        "--key",
        tmp_path / "key.pem",
        "--server",
        front,
        "--drain-seconds",
        "1",
    ]
    server = Server(bundles / "mean", *words, cwd=tmp_path, wait=False)
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
        status = 0
        until = time.monotonic() + 20
        while status != 200 and time.monotonic() < until:
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=5)
            with contextlib.suppress(OSError):
                connection.request("GET", "/v2/health/ready")
                status = connection.getresponse().status
            time.sleep(0.05)
        assert status == 200, server.log.read_text()
        client = over_grpc.InferenceServerClient(
            server.grpc_address, ssl=True, root_certificates=str(tmp_path / "certificate.pem")
        )
        assert client.is_server_ready()
    finally:
        server.stop()
