"""The benchmark of servers notices servers that answer wrongly or not at all, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve import planted

ROOT = Path(__file__).parents[2]
FAULTS = {
    "": None,
    "wrong": "a wrong answer: ",
    "wrong later": "a wrong answer: ",
    "sometimes 500": "statuses of 400 and above",
    "silent": "socket errors",
    "does not start": "there is no room for the model",
}
#: Replaces the rows of the benchmark by one server for every fault that is named after the options' end.
PROGRAM = """
import sys
sys.path.insert(0, {benchmarks!r})
import serving, serving_rows
end = sys.argv.index("--")
faults, sys.argv = sys.argv[end + 1:], sys.argv[:end]
words = {planted!r}, "{{port}}"
servers = [serving_rows.Contender(f"planted {{fault}}", (*words, fault), patience=20) for fault in faults]
serving_rows.rows = lambda: [serving_rows.Row(server, "raw") for server in servers]
serving.main()
"""

pytestmark = pytest.mark.skipif(shutil.which("wrk") is None, reason="the benchmark asks with wrk, which is not here")


def benchmark(folder: Path, *options: str, faults: list[str]) -> subprocess.Popen[str]:
    code = PROGRAM.format(benchmarks=str(ROOT / "benchmarks"), planted=planted.__file__)
    words = [sys.executable, "-c", code, "--model", "free", *options, "--", *faults]
    variables = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)


def servers() -> list[str]:
    """Command lines of planted servers, whatever started them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_text().replace("\0", " ")
        except OSError:
            continue
        if planted.__file__ in line and " -c " not in line:
            found.append(line)
    return found


def test_every_fault_makes_its_row_invalid_and_only_its_own(tmp_path):
    results = tmp_path / "results.json"
    options = ("--rounds", "1", "--output", str(results))
    running = benchmark(tmp_path, *options, faults=list(FAULTS))
    told, _ = running.communicate(timeout=120)
    assert running.returncode == 1, told
    rows = json.loads(results.read_text())["models"]["free"]
    for fault, words in FAULTS.items():
        row = rows[f"planted {fault}, raw"]
        if words is None:
            assert "invalid" not in row, row
            assert all(load["rps"] > 0 for load in row["loads"].values())
        else:
            assert words in row["invalid"], fault
    assert "INVALID" in told


def test_nothing_is_left_when_it_is_interrupted(tmp_path):
    running = benchmark(tmp_path, "--rounds", "100", faults=[""])
    until = time.monotonic() + 60
    while not servers() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(2)
    assert servers()
    assert list(tmp_path.glob("serve-*"))
    running.send_signal(signal.SIGINT)
    told, _ = running.communicate(timeout=30)
    assert running.returncode not in (0, None), told
    assert not servers()
    assert not list(tmp_path.glob("serve-*"))
