"""A running server over HTTP: the right status and one sentence for everything, and nobody else is disturbed."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import zlib

import numpy as np
import pytest

from serve.conftest import Answer, Server, serving
from serve.requests import ALL, GOOD, X, binary, document, times

INFER = "/v2/models/mean/infer"
BODY = GOOD.body
HEADERS = {"Inference-Header-Content-Length": str(GOOD.header_length)}


def good(server: Server) -> None:
    answer = server.post(INFER, BODY, HEADERS)
    assert answer.status == 200, answer.body
    np.testing.assert_allclose(
        np.reshape(answer.json["outputs"][0]["data"], (2, 3)), X.mean((2, 3)), rtol=1e-4, atol=1e-6
    )


def refused(answer: Answer, status: int, told: str = "") -> None:
    assert answer.status == status, answer.body
    assert list(answer.json) == ["error"]
    assert told in answer.json["error"]
    assert answer.headers["content-type"] == "application/json"
    assert "Traceback" not in answer.json["error"]


def test_every_bad_request_is_refused_and_the_next_good_one_answered(server):
    good(server)
    before = server.resident()
    for request in ALL:
        headers = {} if request.header_length is None else {"Inference-Header-Content-Length": request.header_length}
        started = time.perf_counter()
        refused(server.post(INFER, request.body, headers), 400, request.told)
        assert time.perf_counter() - started < 3, request.wrong
        good(server)
    assert server.resident() - before < 20 << 20


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v2/models/nope/infer", "no model 'nope'"),
        ("/v2/models/mean/versions/7/infer", "no version '7'"),
        ("/v2/models/mean/versions/one/infer", "no version 'one'"),
        ("/v2/models/..%2f..%2fetc/infer", ""),
        ("/v2/models/%00/infer", ""),
        ("/v2/models/" + "a" * 8000 + "/infer", ""),
        ("/v2/models/mean/infer/", ""),
        ("/v3/models/mean/infer", ""),
    ],
)
def test_unknown_models_and_addresses_are_not_found(server, path, told):
    refused(server.post(path, BODY, HEADERS), 404, told)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_not_allowed(server, method):
    answer = server.ask(method, INFER)
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    refused(server.post("/v2/models/mean"), 405)


def test_json_needs_no_content_type(server):
    answer = server.post(INFER, json.dumps(document()).encode())
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in connection.recv(4096)


def test_a_body_up_to_twice_the_limit_is_sent_to_its_end_and_then_refused(server):
    """Else a client breaks off with an error of its own, and whether it reads the answer is a matter of luck."""
    refused(server.post(INFER, b" " * ((1 << 20) + 1)), 413, "more than 1048576 bytes")
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {2 << 20}\r\n\r\n".encode())
        for _ in range(8):
            time.sleep(0.05)
            connection.sendall(b" " * (1 << 18))
        assert b" 413 " in connection.recv(4096)
    good(server)


def test_a_body_beyond_the_limit_that_waits_to_be_asked_for_is_refused_at_once(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {(1 << 20) + 1}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096)
    good(server)


def test_chunks_beyond_the_limit_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        try:
            for _ in range(17):
                connection.sendall(chunk)
        except OSError:
            pass
        assert b" 413 " in connection.recv(4096)
    good(server)


def test_many_small_chunks_are_put_together(server):
    before = server.resident()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall((head + f"Inference-Header-Content-Length: {GOOD.header_length}\r\n\r\n").encode())
        connection.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n")
        assert b" 200 " in connection.recv(4096)
    assert server.resident() - before < 20 << 20


@pytest.mark.parametrize("coding", ["gzip", "deflate", "bare deflate"])
def test_compressed_requests(server, coding):
    bare = zlib.compressobj(wbits=-15)
    packed = {
        "gzip": lambda: gzip.compress(BODY),
        "deflate": lambda: zlib.compress(BODY),
        "bare deflate": lambda: bare.compress(BODY) + bare.flush(),
    }[coding]()
    headers = {**HEADERS, "Content-Encoding": coding.split()[-1]}
    assert server.post(INFER, packed, headers).status == 200
    refused(server.post(INFER, packed[:-3], headers), 400, "one whole stream")
    refused(server.post(INFER, packed + b"more", headers), 400, "one whole stream")


def test_compression_that_lies(server):
    bomb = zlib.compressobj(1, wbits=31)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200)) + bomb.flush()
    server.forget_peak()
    before = server.peak()
    refused(server.post(INFER, packed, {"Content-Encoding": "gzip"}), 413, "more than")
    assert server.peak() - before < 20 << 20
    refused(server.post(INFER, b"garbage", {"Content-Encoding": "gzip"}), 400, "not gzip")
    refused(server.post(INFER, BODY, {"Content-Encoding": "br"}), 415, "gzip, deflate or identity")
    good(server)


def test_answers_are_compressed_where_that_is_wished(server):
    x = np.zeros((8, 3, 40, 40), np.float32)
    request = binary(x.nbytes, x.tobytes(), shape=list(x.shape), name="input")
    headers = {"Inference-Header-Content-Length": request.header_length}
    plain = server.post("/v2/models/soft/infer", request.body, headers)
    for coding, unpack in (("gzip", gzip.decompress), ("deflate", zlib.decompress)):
        packed = server.post("/v2/models/soft/infer", request.body, {**headers, "Accept-Encoding": coding})
        assert packed.headers["content-encoding"] == coding
        assert unpack(packed.body) == plain.body
    assert "content-encoding" not in plain.headers


@pytest.fixture(scope="module", params=["granian", "uvicorn"])
def secret(bundles, tmp_path_factory, request):
    """A server that asks for a token, and takes requests that are longer than any message of gRPC."""
    folder = tmp_path_factory.mktemp("secret")
    (folder / "tokens").write_text("a\n")
    words = [bundles / "mean", "--tokens", folder / "tokens", "--server", request.param, "--max-body", "4096"]
    with serving(*words, cwd=folder) as running:
        yield running


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "Content-Length: -5\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-5\r\n",
        "Host : b\r\n\r\n",
    ],
)
def test_two_readings_of_one_request_are_refused(server, head):
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: a\r\n{head}".encode() + b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n"
        )
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b" 200 " not in answer
    assert answer == b"" or b" 400 " in answer
    good(server)


def test_chunks_come_before_a_length_and_end_the_connection(server):
    """Granian's reading of a request that has both; nothing after it is read, so nothing can be smuggled."""
    body = json.dumps(document()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(4096):
                answer += part
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b" 200 " not in answer or b"connection: close" in answer.lower()
    good(server)


@pytest.mark.parametrize("name", ["Inference-Header-Content-Length", "Content-Encoding", "Authorization"])
@pytest.mark.parametrize("path", [INFER, "/v2/repository/index"])
def test_a_header_that_decides_must_not_be_there_twice(secret, path, name):
    """The same on every way into the server: whoever reads one of two may not read what the other reads."""
    body = json.dumps(document()).encode()
    fields = {
        "Inference-Header-Content-Length": str(len(body)),
        "Content-Encoding": "identity",
        "Authorization": "Bearer a",
    }
    told = "".join(f"{key}: {value}\r\n" for key, value in fields.items() if key in (name, "Authorization"))
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{told}"
    head += f"{name}: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", secret.port), timeout=5) as connection:
        connection.sendall(head.encode() + body)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    if path == INFER or name != "Inference-Header-Content-Length":
        assert b" 400 " in answer
        assert f"the header {name.lower()} is there twice".encode() in answer


def test_endless_headers_end_the_connection(server):
    before = server.resident()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\n".encode())
        with pytest.raises(OSError):
            connection.sendall((b"X: " + b"a" * (1 << 20) + b"\r\n") * 100)
    assert server.resident() - before < 8 << 20
    good(server)


def test_pipelined_requests_are_answered_in_order(server):
    one = b"GET /v2/models/mean HTTP/1.1\r\nHost: a\r\n\r\n"
    last = b"GET /v2/models/soft HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(one * 5 + last)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.count(b" 200 ") == 6
    assert answer.rindex(b'"name":"soft"') > answer.rindex(b'"name":"mean"')


def slow(server: Server, count: int, seconds: float = 20) -> Answer:
    return server.post("/v2/models/slow/infer", times(count), timeout=seconds)


def test_a_full_queue_says_so_at_once(server):
    answers: list[Answer] = []
    crowd = [threading.Thread(target=lambda: answers.append(slow(server, 10**9))) for _ in range(16)]
    for one in crowd:
        one.start()
    until = time.monotonic() + 2
    while sum(answer.status == 503 for answer in answers) < 6 and time.monotonic() < until:
        time.sleep(0.02)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        answer = slow(server, 1)
        seconds.append(time.perf_counter() - started)
        refused(answer, 503, "queue")
        assert answer.headers["retry-after"] == "1"
    assert min(seconds) < 0.1
    # others are not disturbed: what is quick is answered while the queue is full, and so is health
    assert server.get("/v2/health/live").status == 200
    good(server)
    for one in crowd:
        one.join()
    # two run and eight wait, until their time is up
    assert sorted(answer.status for answer in answers) == [503] * 6 + [504] * 10
    assert slow(server, 1).status == 200


def test_a_run_that_takes_too_long_is_ended(server):
    started = time.perf_counter()
    refused(slow(server, 10**9), 504)
    assert 2.9 < time.perf_counter() - started < 10
    good(server)


def test_the_clients_own_time_out(server):
    request = {
        "inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [10**9]}],
        "parameters": {"timeout": 200_000},
    }
    started = time.perf_counter()
    refused(server.post("/v2/models/slow/infer", json.dumps(request).encode()), 504)
    assert time.perf_counter() - started < 2.7


def test_a_client_that_leaves_frees_its_slot(server):
    request = times(10**9)
    gone = []
    for _ in range(2):
        connection = socket.create_connection(("127.0.0.1", server.port))
        head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(request)}\r\n\r\n"
        connection.sendall(head.encode() + request)
        gone.append(connection)
    time.sleep(0.4)
    for connection in gone:
        connection.close()
    started = time.perf_counter()
    assert slow(server, 1).status == 200
    assert time.perf_counter() - started < 2.7


def test_a_client_that_leaves_in_the_middle_of_its_body(server):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\nhalf".encode())
    good(server)


def test_an_input_that_the_model_cannot_take_is_the_clients_fault(server):
    x = np.zeros((1, 3, 1, 1), np.float32)
    request = binary(x.nbytes, x.tobytes(), shape=list(x.shape), name="input")
    answer = server.post(
        "/v2/models/soft/infer", request.body, {"Inference-Header-Content-Length": request.header_length}
    )
    refused(answer, 400, "no answer for this input")
    assert "/" not in answer.json["error"]


def test_half_precision_goes_as_bytes_only(server):
    x = np.array([[1, 2]], np.float16)
    request = binary(4, x.tobytes(), shape=[1, 2], datatype="FP16")
    headers = {"Inference-Header-Content-Length": request.header_length}
    refused(server.post("/v2/models/half/infer", request.body, headers), 400, "FP16 has no form in JSON")


def test_metrics_are_on_a_port_of_their_own(server):
    good(server)
    time.sleep(0.6)
    text = server.ask("GET", "/metrics", port=server.metrics_port).body.decode()
    assert 'poolexport_requests_total{model="mean",status="200",version="1"}' in text
    assert server.get("/metrics").status == 404


def test_logs_are_lines_of_json(server):
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert any(line["message"] == "ready" and "mean:1" in line["models"] for line in lines)
    assert all({"time", "level", "message", "process"} <= line.keys() for line in lines)
