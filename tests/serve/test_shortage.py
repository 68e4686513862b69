"""No memory, no disk, a worker that dies, a clock that is set: what can be answered still is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from serve import models
from serve.conftest import Answer, Server, serving
from serve.requests import tensor
from serve.test_http import good, slow
from serve.test_process import BODY, HEADERS, INFER

MIB = 1 << 20
LONG = [letter * 128 for letter in "abc"]


@pytest.fixture
def pair(bundles, tmp_path):
    models.typed(tmp_path / "same.onnx", 1)
    with serving(bundles / "mean", tmp_path / "same.onnx", "--workers", "2", cwd=tmp_path) as server:
        # it is ready as soon as one of them answers
        until = time.monotonic() + 30
        while server.listening() < 2 and time.monotonic() < until:
            time.sleep(0.02)
        assert server.listening() == 2
        yield server


def asked(server: Server) -> int:
    """Status of a small request; 0 where the connection broke off."""
    with contextlib.suppress(OSError):
        return server.post(INFER, BODY, HEADERS, timeout=5).status
    return 0


def test_a_worker_that_crashes_comes_back_and_the_other_serves_on(pair):
    victim, other = pair.workers()
    os.kill(victim, signal.SIGSEGV)
    found: Counter[int] = Counter()
    until = time.monotonic() + 60
    while time.monotonic() < until and (len(pair.workers()) < 2 or victim in pair.workers()):
        found[asked(pair)] += 1
    # what was on its way to the one that died is lost, and nothing else
    assert found[0] <= 2
    assert found.keys() <= {0, 200}
    assert other in pair.workers()
    assert len(pair.workers()) == 2
    time.sleep(1)
    assert {asked(pair) for _ in range(20)} == {200}


def test_a_request_for_which_there_is_no_memory_is_refused_and_others_are_answered(pair):
    x = np.zeros((6 * MIB, 2), np.float32)
    given = tensor(data=None, shape=list(x.shape), parameters={"binary_data_size": x.nbytes})
    start = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    body = start + x.tobytes()
    headers = {"Inference-Header-Content-Length": str(len(start))}
    path = "/v2/models/same/infer"
    assert pair.post(path, body, headers).status == 200
    for pid in pair.workers():
        size = next(
            int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmSize" in line
        )
        resource.prlimit(pid, resource.RLIMIT_AS, (size * 1024 + 64 * MIB, resource.RLIM_INFINITY))
    before = pair.workers()
    for _ in range(4):
        answer = pair.post(path, body, headers)
        assert answer.status == 503, answer.body[:300]
        assert "no memory left" in answer.json["error"]
        assert answer.headers["retry-after"] == "1"
        assert asked(pair) == 200
    assert pair.workers() == before


@pytest.fixture
def small_disk(bundles, tmp_path, monkeypatch):
    """A server whose temporary folder is a disk of 16 MiB, and whose repository cannot be written to."""
    # mounts that only the server sees
    alone = ["unshare", *([] if os.getuid() == 0 else ["--map-root-user"]), "--mount", "sh", "-c"]
    try:
        subprocess.run([*alone, "mount -t tmpfs none /mnt"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nothing can be mounted here")
    (tmp_path / "disk").mkdir()
    (tmp_path / "repository/kept/1").mkdir(parents=True)
    model = models.mean(tmp_path / "repository/kept/1/model.onnx")
    mounts = (
        f"mount -t tmpfs -o size=16m none {tmp_path}/disk; mount --bind {tmp_path}/repository {tmp_path}/repository; "
        f'mount -o remount,bind,ro {tmp_path}/repository; exec "$@"'
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path / "disk"))
    words = [bundles / "mean", *(f"{name}={model}" for name in LONG), "--repository", tmp_path / "repository"]
    with serving(*words, "--control", "--max-body", "1", cwd=tmp_path, under=[*alone, mounts, "sh"]) as server:
        server.disk = Path(f"/proc/{server.process.pid}/root{tmp_path}/disk")
        server.repository = Path(f"/proc/{server.process.pid}/root{tmp_path}/repository")
        yield server


def test_a_full_disk_and_a_repository_that_cannot_be_written_to(small_disk):
    load = "/v2/repository/models/kept/load"
    with pytest.raises(OSError, match="Read-only") as caught:
        (small_disk.repository / "new").touch()
    assert caught.value.errno == errno.EROFS
    good(small_disk)
    assert small_disk.post(load).status == 200
    workers = small_disk.workers()
    fill = small_disk.disk / "fill"
    with fill.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    answer = small_disk.post(load)
    assert answer.status == 503
    assert answer.json == {"error": "the server cannot write down what it serves: No space left on device"}
    assert small_disk.post("/v2/repository/models/kept/unload").status == 503
    # new counts need room in the files of the metrics: more than a page, with names as long as these
    for name in ("mean", "kept", *LONG):
        path = f"/v2/models/{name}/infer"
        assert small_disk.post(path, BODY, HEADERS).status == 200
        assert small_disk.post(path, bytes(MIB + 1)).status == 413
        assert small_disk.post(path, BODY, {"Content-Encoding": "br"}).status == 415
        for _ in range(5):
            assert small_disk.post(path).status == 400
    time.sleep(0.6)
    [found] = small_disk.get(f"/v2/models/{LONG[0]}/stats").json["model_stats"]
    assert found["inference_stats"]["success"]["count"] == 1
    assert found["inference_stats"]["fail"]["count"] == 7
    fill.unlink()
    assert small_disk.post(load).status == 200
    good(small_disk)
    assert small_disk.workers() == workers


DAY = 86400


@pytest.fixture(scope="module")
def clocked(bundles, tmp_path_factory):
    """A server for which the system's clock is set by ``set_clock``."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no compiler for a clock that can be set")
    folder = tmp_path_factory.mktemp("clock")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(folder / "clock.so")], check=True)
    (folder / "ahead").write_bytes(bytes(8))
    under = ["env", f"LD_PRELOAD={folder}/clock.so", f"CLOCK_AHEAD={folder}/ahead"]
    words = [bundles / "mean", bundles / "slow.onnx", "--run-seconds", "1.5", "--control"]
    with serving(*words, cwd=folder, under=under) as server:
        server.folder = folder
        yield server


def set_clock(server: Server, seconds: int) -> None:
    with (server.folder / "ahead").open("r+b") as file:
        file.write(struct.pack("=q", seconds))


def meanwhile(server: Server, times: int, seconds: int) -> tuple[Answer, float]:
    """Ask for a long run, set the clock while it lasts; the answer, and how long it took."""
    started = time.monotonic()
    timer = threading.Timer(0.3, set_clock, (server, seconds))
    timer.start()
    answer = slow(server, times)
    timer.join()
    return answer, time.monotonic() - started


@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["tomorrow", "yesterday"])
def test_deadlines_do_not_follow_the_clock(clocked, seconds):
    run = time.monotonic()
    assert slow(clocked, 20).status == 200
    each = (time.monotonic() - run) / 20
    answer, spent = meanwhile(clocked, round(0.6 / each), seconds)
    assert answer.status == 200, (answer.body, spent)
    set_clock(clocked, 0)
    answer, spent = meanwhile(clocked, 10**9, seconds)
    assert answer.status == 504
    assert 1.4 < spent < 30
    good(clocked)
    assert clocked.post("/v2/repository/models/mean/load").status == 200
    good(clocked)
    # its clock did jump
    lines = [json.loads(line) for line in clocked.log.read_text().splitlines() if line.startswith("{")]
    last = next(line for line in reversed(lines) if line["message"] == "loaded")
    assert abs(datetime.fromisoformat(last["time"]).timestamp() - time.time() - seconds) < 5
