"""Clients that ask as fast as they are answered. Nobody here wrote them: wrk, h2load of nghttp2, and tritonclient."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
#: Seconds after which a client that should have ended is ended.
PATIENCE = 30


@dataclass(frozen=True)
class Load:
    """What a client got.

    Args:
        requests: that were answered.
        seconds: that it took.
        p50, p99: milliseconds until an answer.
        errors: what was not as it should be, in words; empty where nothing was.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    errors: str = ""


def _output(words: list[str], seconds: float) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds + PATIENCE)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def wrk(url: str, body: Path, headers: Mapping[str, str], concurrency: int, seconds: int) -> Load:
    """Post a file over HTTP/1.1. Times are as wrk corrects them for the requests that a slow answer held up."""
    words = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout", "10s"]
    words += ["-s", str(HERE / "servers/post.lua"), url, "--", str(body)]
    found = json.loads(_output([*words, *(f"{k}={v}" for k, v in headers.items())], seconds).splitlines()[-1])
    kinds = {"statuses": "statuses of 400 and above", "sockets": "socket errors", "timeouts": "answers that never came"}
    errors = [f"{found[kind]} {words}" for kind, words in kinds.items() if found[kind]]
    if not found["requests"]:
        errors.append("no answer at all")
    return Load(found["requests"], found["seconds"], found["p50"], found["p99"], ", ".join(errors))


def h2load(url: str, body: Path, answer: int, concurrency: int, seconds: int) -> Load:
    """Call gRPC with the bytes in a file, one call at a time on every connection.

    gRPC says what went wrong in trailers that h2load does not read, and then sends no message: the bytes tell.

    Args:
        url: of the method.
        body: the message in its frame.
        answer: bytes of the right answer in its frame.
        concurrency: connections.
        seconds: to go on for.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        words = ["h2load", "-t1", f"-c{concurrency}", "-m1", f"-D{seconds}", f"-d{body}", f"--log-file={log}"]
        words += ["-Hcontent-type: application/grpc", "-Hte: trailers", url]
        told = _output(words, seconds)
        lines = [line.split() for line in log.read_text().splitlines()]
    good = [int(microseconds) for _, status, microseconds in lines if status == "200"]
    found = re.search(r"\((\d+)\) data", told)
    data = int(found[1]) if found else 0
    broken = sum(int(count) for count in re.findall(r"(\d+) (?:failed|errored|timeout)\b", told))
    errors = [f"{broken} calls without an answer"] if broken else []
    if len(good) < len(lines):
        errors.append(f"{len(lines) - len(good)} statuses other than 200")
    # calls that the end cut off may have sent some
    if not len(good) * answer <= data <= (len(good) + concurrency) * answer:
        errors.append(f"{data} bytes of answers instead of {len(good)} times {answer}")
    if not good:
        return Load(0, seconds, 0, 0, "no answer at all")
    p50, p99 = np.percentile(good, (50, 99)) / 1e3
    return Load(len(good), seconds, float(p50), float(p99), ", ".join(errors))


def tritonclient(address: str, concurrency: int, seconds: int) -> Load:
    """Call gRPC with NVIDIA's Python client, in as many processes as there are cores."""
    parts = min(concurrency, os.cpu_count() or 1)
    threads = [concurrency // parts + (part < concurrency % parts) for part in range(parts)]
    script = str(HERE / "servers/ask_grpc.py")
    running = [
        subprocess.Popen([sys.executable, script, address, str(count), str(seconds)], stdout=subprocess.PIPE, text=True)
        for count in threads
    ]
    found = [
        json.loads(one.communicate(timeout=seconds + PATIENCE)[0] or '{"times": [], "failed": 1}') for one in running
    ]
    times = [taken for part in found for taken in part["times"]]
    failed = sum(part["failed"] for part in found)
    if not times:
        return Load(0, seconds, 0, 0, "no answer at all")
    p50, p99 = np.percentile(times, (50, 99)) * 1e3
    return Load(len(times), seconds, float(p50), float(p99), f"{failed} calls failed" if failed else "")


def available(name: str) -> bool:
    """Whether a program is there."""
    return shutil.which(name) is not None
