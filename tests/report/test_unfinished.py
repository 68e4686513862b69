"""What a report says of checks that were not made, and of runtimes that were asked for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest

from cli.conftest import Run, invoke, working_in
from poolexport.cli.verify import verify
from poolexport.report.against import compare
from poolexport.report.schema import faults
from report.conftest import Place

WORDS = ("verify", "good", "net.py:build")


@pytest.fixture(scope="module")
def unfinished(place: Place) -> dict[str, Any]:
    """The report of a verification without any time."""
    with working_in(place.folder):
        result = invoke(*WORDS, "--budget", "0", "--report", "unfinished-reports", "--runtimes", "reference")
    assert result.exit_code == 0, result.output
    return place.report("unfinished")


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    """A report without when and by which words it was made."""
    environment = {name: value for name, value in report["environment"].items() if name != "date"}
    return {name: value for name, value in report.items() if name != "command"} | {"environment": environment}


def test_an_unfinished_verification_does_not_look_like_a_finished_one(
    place: Place, unfinished: dict[str, Any], run: Run
):
    good = place.report("good")
    assert list(faults(unfinished)) == []
    assert (unfinished["verdict"], unfinished["grade"]) == ("UNVERIFIED", "WITHIN ROUNDING")
    counts = unfinished["counts"]
    assert (counts["checks"], counts["left_out"]) == (2, len(good["checks"]) + 4 - 2)
    assert counts["planned"] == counts["checks"] + counts["left_out"]
    assert f"only 2 of {counts['planned']} checks were made" in unfinished["summary"]
    assert {check["name"] for check in good["checks"]} <= {
        *unfinished["left_out"],
        *(check["name"] for check in unfinished["checks"]),
    }
    assert (unfinished["settings"]["budget"], unfinished["settings"]["runtimes"]) == (0, ["reference"])
    told = run(*WORDS, "--budget", "0")
    assert told.exit_code == 0
    assert "left out, because the time was over: " in told.stdout
    assert told.stdout.splitlines()[-1].startswith("UNVERIFIED  2 of ")
    found = json.loads(run(*WORDS, "--budget", "0", "--json").stdout)
    assert (found["verdict"], len(found["left_out"])) == ("UNVERIFIED", len(good["checks"]) - 2)


def test_junit_and_the_page_tell_what_was_left_out(place: Place, unfinished: dict[str, Any]):
    root = xml.parse(place.folder / "unfinished-reports" / "report.xml").getroot()
    [suite] = [suite for suite in root if suite.get("name") == "left out, because the time was over"]
    assert suite.get("tests") == suite.get("skipped") == str(unfinished["counts"]["left_out"])
    assert root.get("failures") == root.get("errors") == "0"
    page = place.page("unfinished").read_text()
    counts = unfinished["counts"]
    assert f"Unfinished: {counts['left_out']} of {counts['planned']} checks were left out" in page
    assert f"<b>{unfinished['left_out'][0]}</b>: the time was over" in page
    assert "Unfinished" not in place.page("good").read_text()


def test_what_was_left_out_is_no_regression_and_is_told(place: Place, unfinished: dict[str, Any], run: Run):
    good = place.report("good")
    found = compare(good, unfinished, Path("old.json"))
    assert found["regressions"] == []
    assert any(note.startswith("not made this time, because the time was over: ") for note in found["notes"])
    # a check that is neither made nor left out is one all the same
    gone = unfinished["left_out"].index("ties at 2x2x12x11")
    cut = {**unfinished, "left_out": [*unfinished["left_out"][:gone], *unfinished["left_out"][gone + 1 :]]}
    assert [entry["check"] for entry in compare(good, cut, Path("old.json"))["regressions"]] == ["ties at 2x2x12x11"]
    result = run(*WORDS, "--budget", "0", "--against", "good-reports/report.json")
    assert result.exit_code == 0
    assert "since good-reports/report.json: not made this time" in " ".join(result.stdout.split())
    # and what is made again later is new
    assert compare(unfinished, good, Path("old.json"))["regressions"] == []


def test_inputs_that_nobody_looked_at_are_left_out_by_their_name(unfinished: dict[str, Any], good: dict[str, Any]):
    good["checks"][3]["name"] = "photo.png at 1x2x30x40"
    unfinished = {**unfinished, "left_out": [*unfinished["left_out"], "photo.png"]}
    assert compare(good, unfinished, Path("old.json"))["regressions"] == []


def test_reports_made_before_there_were_budgets_are_read(place: Place, good: dict[str, Any], run: Run):
    for path, names in (([], ("left_out", "untried")), (["counts"], ("planned", "left_out"))):
        for name in names:
            (good[path[0]] if path else good).pop(name)
    for name in ("runtimes", "budget"):
        good["settings"].pop(name)
    (place.folder / "older.json").write_text(json.dumps(good))
    assert run(*WORDS, "--budget", "0", "--against", "older.json").exit_code == 0


def test_the_same_seed_gives_the_same_document(place: Place, run: Run):
    assert run(*WORDS, "--report", "again.json").exit_code == 0
    assert timeless(json.loads((place.folder / "again.json").read_text())) == timeless(place.report("good"))


def test_a_verification_that_goes_on_ends_with_the_document_of_one_that_was_not_cut_off(place: Place, run: Run):
    kept = place.folder / "checks"
    assert run(*WORDS, "--resume", kept).exit_code == 0
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:30]))
    assert run(*WORDS, "--resume", kept, "--report", "resumed.json").exit_code == 0
    assert kept.read_text().splitlines(keepends=True) == lines
    assert timeless(json.loads((place.folder / "resumed.json").read_text())) == timeless(place.report("good"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--runtimes", "tflite"), "'tflite' is no runtime"),
        (("--runtimes", "openvino,1.2.3.4"), "openvino"),
        (("--budget", "-1"), "-1.0 is not in the range"),
        (("--resume", "net.py"), "net.py holds no checks of poolexport"),
        (("--resume", "checks", "--seed", "3"), "checks holds checks with another settings"),
        (("--resume", "."), "is a directory"),
    ],
)
def test_bad_input_is_one_sentence(place: Place, run: Run, words: tuple[str, ...], told: str):
    run(*WORDS, "--resume", "checks", "--budget", "0")
    result = run(*WORDS, *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert told in result.stderr


def test_data_that_changed_is_not_resumed(place: Place, run: Run):
    import numpy as np

    np.save(place.folder / "rows.npy", np.ones((1, 2, 12, 11), np.float32))
    words = (*WORDS, "--data", "rows.npy", "--resume", "with-data", "--budget", "0")
    assert run(*words).exit_code == 0
    np.save(place.folder / "rows.npy", np.zeros((1, 2, 12, 11), np.float32))
    assert "another settings" in run(*words).stderr


def test_the_page_about_verification_shows_commands_that_are_understood():
    page = (Path(__file__).parents[2] / "docs" / "verification.md").read_text()
    commands = re.findall(r"^poolexport verify (.*?)(?: +#.*)?$", page, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        assert verify.make_context("verify", shlex.split(command)).params["path"] == "net"
