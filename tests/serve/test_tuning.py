"""Ways of serving a model: which are measured, how they are chosen from, and what becomes of the choice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from poolexport.cli import main
from poolexport.errors import InputError
from poolexport.serve import tuning
from poolexport.serve.check import facts
from poolexport.serve.config import Limits, Settings
from poolexport.serve.model import open_model
from poolexport.serve.protocol import decode
from poolexport.serve.tuning import Result, Way, best, request, sample, ways
from serve import models
from serve.conftest import serving


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(tuning, "cores", lambda: 4)


def asked(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["tune", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.usefixtures("four_cores")
def test_no_way_asks_for_more_cores_than_there_are():
    found = ways(None, None, None, batched=True)
    assert {(way.workers, way.threads) for way in found} == {(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)}
    assert {way.batch for way in found} == {1, 4, 16}
    assert {way.slots * way.workers * way.threads for way in found} == {4}
    assert {way.batch for way in ways(None, None, None, batched=False)} == {1}


@pytest.mark.usefixtures("four_cores")
def test_ways_that_cannot_be():
    with pytest.raises(InputError, match=r"not proven to be independent, so only --batch 1"):
        ways(None, None, [1, 8], batched=False)
    with pytest.raises(InputError, match=r"must not exceed the 4 cores"):
        ways([4], [2], None, batched=True)


def result(way: Way, rate: float, milliseconds: float = 1.0) -> Result:
    return Result(way, [rate / 2, rate, 2 * rate], [milliseconds / 1e3] * 100)


def test_the_way_that_gets_most_done_is_chosen_and_the_simplest_of_equals():
    simple, batched, many = (result(Way(), 100), result(Way(batch=4), 102), result(Way(workers=2), 50))
    assert best([many, batched, simple]) is simple
    simple.rates[:] = [90.0] * 3
    assert best([many, batched, simple]) is batched


def test_a_way_must_be_quick_enough():
    quick, most = result(Way(), 10, 2.0), result(Way(batch=4), 100, 20.0)
    assert best([quick, most]) is most
    assert best([quick, most], p99=0.01) is quick
    with pytest.raises(InputError, match=r"in 1 ms; the quickest takes 2 ms"):
        best([quick, most], p99=0.001)


def test_the_request_is_one_that_the_server_reads(bundles):
    feeds = sample(bundles / "soft", None, batched=True)
    assert [array.shape[0] for array in feeds.values()] == [1]
    body, length = request(feeds)
    signature = open_model("soft", "1", facts(bundles / "soft"), Settings(), together=0).signature
    found = decode(body, str(length), signature)
    assert found.feeds.keys() == feeds.keys()
    assert all(np.array_equal(found.feeds[name], array) for name, array in feeds.items())
    assert found.binary == (True,)


def test_a_refusal_ends_the_measurement(server, bundles):
    good = sample(bundles / "mean", None, batched=True)
    body, length = request(good)
    ask = tuning._asked(server.port, body, length, 2, 0.1)
    with pytest.raises(InputError, match="there is no model 'model'"):
        asyncio.run(ask)


def test_the_choice_is_written_down_and_served(bundles, tmp_path):
    out = tmp_path / "serve.json"
    words = [bundles / "mean", "--seconds", 0.1, "--threads", 1, "--workers", 1, "--batch", 4, "-o", out]
    code, told, errors = asked(*words)
    assert code == 0, errors
    assert told.splitlines()[-1] == f"poolexport serve {bundles / 'mean'} --config {out}"
    held = json.loads(out.read_text())
    assert {name: held[name] for name in ("workers", "threads", "batching", "batch_rows")} == {
        "workers": 1,
        "threads": 1,
        "batching": "on",
        "batch_rows": 4,
    }
    (way,) = held["measured"]["ways"]
    assert way["requests_per_second"] > 0
    assert way["rounds"] == tuning.ROUNDS
    with serving(bundles / "mean", "--config", out, "--slots", "3", cwd=tmp_path) as server:
        config = server.get("/v2/models/mean/config").json
        assert "dynamic_batching" in config
        # what is given on the command line comes first
        assert config["instance_group"][0]["count"] == 3
    code, _, errors = asked(*words)
    assert code == 2
    assert "exists; choose another path, or overwrite a file with --force" in errors
    assert json.loads(out.read_text()) == held


def test_models_that_cannot_be_measured(bundles, tmp_path):
    code, _, errors = asked(bundles / "slow.onnx")
    assert (code, errors.count("\n")) == (2, 1)
    assert "give arrays to ask with as --inputs FILE.npz" in errors
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert "x.npy is no .npz" in asked(bundles / "slow.onnx", "--inputs", tmp_path / "x.npy")[2]
    np.savez(tmp_path / "x.npz", other=np.zeros((1, 3, 4, 5), np.float32))
    words = ["--inputs", tmp_path / "x.npz", "--seconds", 0.1, "--threads", 1, "--workers", 1]
    code, _, errors = asked(models.mean(tmp_path / "mean.onnx"), *words)
    assert code == 2
    assert "the model has no input 'other'" in errors
    assert "1,x: write whole numbers" in asked(bundles / "mean", "--threads", "1,x")[2]
    assert Limits().batch >= 16


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "must be a JSON object"),
        ('{"worker": 2}', "there is no option 'worker'; did you mean workers?"),
        ('{"workers": "many"}', "'many' is not a valid integer range"),
        ('{"workers": 1.7}', "'1.7' is not a valid integer range"),
        ('{"workers": [1]}', "'workers' must be a number or a text, not [1]"),
        ('{"control": 1}', "'control' must be true or false, not 1"),
        ('{"front": "uvicorn"}', "there is no option 'front'"),
        ('{"replicas": 2}', "--replicas is for a cluster: add --ray"),
        ('{"batching": "maybe"}', "'maybe' is not one of"),
    ],
)
def test_files_of_options_that_cannot_be_used(bundles, tmp_path, held, reason):
    file = tmp_path / "serve.json"
    file.write_text(held)
    done = CliRunner().invoke(main, ["serve", str(bundles / "mean"), "--config", str(file)])
    assert done.exit_code == 2
    assert reason in " ".join(done.stderr.split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_server_is_left_where_it_is_told_to_end(bundles, tmp_path, number):
    words = [sys.executable, "-m", "poolexport", "tune", bundles / "soft", "--seconds", "30", "-o", tmp_path / "s.json"]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    found = f"{tuning.NAME}={bundles / 'soft'}".encode()
    until = time.monotonic() + 60
    while not running(found) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(30) == (130 if number == signal.SIGINT else 128 + number)
    assert not running(found)
    assert not (tmp_path / "s.json").exists()


def running(word: bytes) -> list[str]:
    """Processes that have a word in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in file.read_bytes():
                found.append(file.parent.name)
    return found
