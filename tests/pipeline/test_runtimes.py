"""The judge of ``make test-runtimes``: every kind of fault that is planted is told, without any environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import processes
from poolexport.nn import SoftPool2d
from poolexport.runtime import kernel_library
from poolexport.runtime.traps import TRAPS, Trap
from runtimes import corpus, inside, run
from runtimes.judging import Job, Outcome, judge_job, judge_traps, outcomes

ANSWER = np.array([1.0, 2.0, np.nan], np.float32)
EXPECTED = ((ANSWER, ANSWER.astype(np.float64), ANSWER.astype(np.float64)),)
JOB = Job("corpus", "net", "net.onnx", "net.npz", True, 20, expected=EXPECTED)
RIGHT = Outcome((ANSWER,))
RELEASE = (1, 22)


def word(job: Job, outcome: Outcome, release: tuple[int, int] = RELEASE) -> str:
    return judge_job(job, outcome, release).word


def test_the_right_answer_is_right():
    assert word(JOB, RIGHT) == "ok"


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome((ANSWER + np.float32(1e-3),)),
        Outcome((np.array([1.0, 2.0, 3.0], np.float32),)),
        Outcome((ANSWER[:2],)),
        Outcome((ANSWER.astype(np.float64),)),
        Outcome(()),
        Outcome((ANSWER, ANSWER)),
        Outcome(failed="load", message="no kernel"),
        Outcome(failed="run", message="bad shape"),
        Outcome(failed="died"),
    ],
    ids=["off", "lost-nan", "shape", "type", "no-output", "two-outputs", "load", "run", "died"],
)
def test_every_fault_is_told_unless_it_is_declared(outcome):
    assert word(JOB, outcome) == "WRONG"
    declared = replace(JOB, faults={RELEASE: ("AveragePool: ceil",)})
    assert word(declared, outcome) == "declared"
    assert word(declared, outcome, (1, 25)) == "WRONG", "declared for another release"


def test_an_opset_is_not_loaded_exactly_where_the_table_says():
    newer = replace(JOB, opset=23)
    assert word(newer, Outcome(failed="load")) == "declared"
    assert word(newer, RIGHT) == "WRONG"
    assert word(newer, Outcome(failed="run")) == "WRONG"
    assert word(newer, RIGHT, (1, 23)) == "ok"
    bare = Job("loads", "IR 11", "bare.onnx", "", True, 18, {"ir_version": 11})
    assert [word(bare, Outcome(failed="load"), release) for release in ((1, 22), (1, 23))] == ["declared", "WRONG"]
    assert [word(bare, Outcome(), release) for release in ((1, 22), (1, 23))] == ["WRONG", "ok"]


@pytest.mark.parametrize(("operator", "lacking"), [("Conv", True), ("MatMul", False)])
def test_a_kernel_is_missing_exactly_where_the_table_says(operator, lacking):
    job = Job("kernel", operator, "k.onnx", "", False, 20, {"operator": operator, "dtype": "DOUBLE"})
    assert word(job, Outcome(failed="load")) == ("declared" if lacking else "WRONG")
    assert word(job, Outcome()) == ("WRONG" if lacking else "ok")


def rows(trap: Trap, *wrong: int, release: tuple[int, int] = RELEASE) -> list[str]:
    """What is said of a row whose graphs fail in the opsets ``wrong``."""
    expected = np.ones(2, np.float32)
    jobs = [Job("trap", trap.name, "", "", True, o, expected=(expected,), rtol=1e-6) for o in (18, 20, 22)]
    pairs = [(job, Outcome((expected * (2 if job.opset in wrong else 1),))) for job in jobs]
    return [line.word for line in judge_traps(pairs, release, [trap])]


def test_a_row_is_true_only_where_the_fault_is_there_and_nowhere_else():
    trap = Trap("row", ("AveragePool",), (((1, 20), (1, 22)), ((1, 25), (1, 25))), "", "", "", opsets=(18, 20))
    assert rows(trap, 18) == rows(trap, 20, release=(1, 25)) == ["declared"]
    assert rows(trap, release=(1, 24)) == ["ok"]
    assert rows(trap) == ["WRONG"], "the fault is gone"
    assert rows(trap, 22) == ["WRONG"], "an opset that the row is not about"
    assert rows(trap, 18, release=(1, 24)) == ["WRONG"], "a release that the row is not about"
    assert [line.word for line in judge_traps([], RELEASE, [trap])] == ["WRONG"], "no graph shows it"


def test_a_fault_planted_in_the_corpus_is_found(tmp_path, monkeypatch, capsys):
    """From the export to the table, in this process instead of environments of their own."""
    monkeypatch.setattr(corpus, "entries", lambda **_: iter(ENTRIES))
    monkeypatch.setattr(run, "environment", lambda folder, packages: Path(folder.name))
    monkeypatch.setattr(run, "refusal", lambda python, library: (True, "too old"))
    library = str(kernel_library())

    def here(python: Path, folder: Path, results: Path, count: int) -> list[int]:
        results.mkdir()
        inside.main(folder, results, 0, library)
        return []

    monkeypatch.setattr(run, "run", here)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), SoftPool2d(2)).eval()
    inputs = ((torch.randn(2, 1, 9, 9),), (torch.randn(1, 1, 11, 8),))
    ENTRIES = [corpus.Entry("net", model, inputs, [{0: "N", 2: "H", 3: "W"}], (False, True), (17,))]
    words = ["--versions", "1.28.0", "--only", "net", "--corpus", str(tmp_path / "corpus")]
    assert run.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["1.28", "12/0/0", "2/0/0"]
    spoilt = tmp_path / "corpus" / "0-17-False.onnx"
    spoilt.write_bytes((tmp_path / "corpus" / "0-20-False.onnx").read_bytes()[:-40])
    assert run.main(words) == 1
    printed = capsys.readouterr().out
    assert "8/0/4" in printed
    assert printed.count("WRONG  1.28  corpus  net, opset 17") == 4
    library = ""
    assert run.main(words) == 1
    assert capsys.readouterr().out.count("SoftmaxPool did not run on native kernels") == 2
    monkeypatch.setattr(run, "judged", lambda *_: [])
    assert run.main(words) == 0
    monkeypatch.setattr(run, "refusal", lambda python, library: (False, "Segmentation fault"))
    assert run.main(words) == 1
    assert "WRONG  1.19.2  Segmentation fault" in capsys.readouterr().out


def test_kernels_are_refused_by_an_error_and_not_by_the_end_of_the_process(monkeypatch):
    def outcome(code: int, text: str) -> None:
        done = run.subprocess.CompletedProcess([], code, "", text)
        monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: done)

    told = "Traceback\nFail: the kernels of poolexport need onnxruntime 1.20 or newer, and this is 1.19.2"
    outcome(1, told)
    assert run.refusal(Path("python"), Path("k.so")) == (True, told.splitlines()[-1])
    for code, text in ((-11, told), (0, ""), (1, "undefined symbol")):
        outcome(code, text)
        assert not run.refusal(Path("python"), Path("k.so"))[0]


def test_a_process_that_ends_is_an_outcome_and_the_rest_is_run(tmp_path, monkeypatch):
    """The jobs after the one that ended the process are run in another."""
    script = tmp_path / "tests/runtimes/inside.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import sys, pathlib, os\n"
        "results, first = pathlib.Path(sys.argv[2]), int(sys.argv[3])\n"
        "for number in range(first, 4):\n"
        "    (results / 'started').write_text(str(number))\n"
        "    if number == 1: os.abort()\n"
        "    (results / f'{number}.json').write_text('{\"run\": \"no\"}')\n"
        "(results / 'started').write_text('4')\n"
    )
    monkeypatch.setattr(run, "ROOT", tmp_path)
    import sys

    died = run.run(Path(sys.executable), tmp_path, tmp_path / "results", 4)
    assert died == [1]
    assert [o.failed for o in outcomes(tmp_path / "results", 4, died)] == ["run", "died", "run", "run"]


def test_a_version_that_cannot_be_installed_is_one_clear_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(processes.venv, "create", lambda *_, **__: None)
    failed = processes.subprocess.CompletedProcess([], 1, "", "WARNING\nERROR: no connection\n")
    monkeypatch.setattr(processes.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"onnxruntime==1\.22\.1 could not be installed .*: ERROR: no connection"):
        processes.environment(tmp_path / "1.22.1", ["onnxruntime==1.22.1"])
    assert not list(tmp_path.iterdir())


def test_every_release_that_is_known_is_tried():
    assert {run.release(version) for version in run.VERSIONS} == set(run.LOADS)
    assert set(run.SOME) <= set(run.VERSIONS)
    assert all(trap.releases for trap in TRAPS)
