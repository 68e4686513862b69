"""What became worse since an earlier report, and reports that tell nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run
from poolexport.report.against import compare
from report.conftest import Place

Report = dict[str, Any]


def kinds(before: Report, now: Report, growth: float = 4.0) -> tuple[set[str], set[str]]:
    found = compare(before, now, Path("old.json"), growth)
    return tuple({change["kind"] for change in found[side]} for side in ("regressions", "improvements"))


def check_of(report: Report, values: str = "normal") -> dict[str, Any]:
    return next(check for check in report["checks"] if check["values"] == values)


def fail(report: Report) -> None:
    check = check_of(report)
    check["passed"] = check["outputs"][0]["passed"] = False


def worse_grade(report: Report) -> None:
    check_of(report)["outputs"][0]["grade"] = "WITHIN TOLERANCE"


def larger_error(report: Report) -> None:
    check_of(report)["outputs"][0]["ulps"] = 17.0


def leave_out(report: Report) -> None:
    report["checks"].remove(check_of(report))


def do_not_count(report: Report) -> None:
    check_of(report)["counts"] = False


def compare_less(report: Report) -> None:
    check_of(report)["outputs"].clear()
    check_of(report)["outputs"].append({**check_of(report, "ties")["outputs"][0], "grade": "WITHIN ROUNDING"})


@pytest.mark.parametrize(
    ("change", "worse", "better"),
    [
        (fail, "failed", "passed"),
        (worse_grade, "grade", "grade"),
        (larger_error, "error", "error"),
        (leave_out, "missing", "new"),
    ],
)
def test_every_kind_of_change_is_told(good: Report, change: Callable[[Report], None], worse: str, better: str):
    changed = copy.deepcopy(good)
    change(changed)
    assert kinds(good, good) == (set(), set())
    assert kinds(good, changed) == ({worse}, set())
    assert kinds(changed, good) == (set(), {better})


def test_what_counts_no_more_is_a_regression(good: Report):
    changed = copy.deepcopy(good)
    do_not_count(changed)
    assert kinds(good, changed) == ({"missing"}, set())


def test_an_output_that_is_not_compared_any_more_is_a_regression(good: Report):
    changed = copy.deepcopy(good)
    changed["random_outputs"] = ["output"]
    assert kinds(good, changed) == ({"missing"}, set())
    check_of(good)["outputs"].append(check_of(good)["outputs"][0])
    assert kinds(good, copy.deepcopy(changed) | {"random_outputs": []}) == ({"missing"}, set())


def test_small_errors_are_no_change_and_the_factor_is_the_users(good: Report):
    changed = copy.deepcopy(good)
    check_of(good)["outputs"][0]["ulps"], check_of(changed)["outputs"][0]["ulps"] = 0.01, 3.9
    assert kinds(good, changed) == (set(), set())
    check_of(good)["outputs"][0]["ulps"], check_of(changed)["outputs"][0]["ulps"] = 10.0, 30.0
    assert kinds(good, changed) == (set(), set())
    assert kinds(good, changed, 2.5) == ({"error"}, set())


def test_a_wrong_file_is_a_regression(place: Place):
    against = place.report("bent")["against"]
    failed = [check["name"] for check in place.report("bent")["checks"] if check["counts"] and not check["passed"]]
    assert [change["check"] for change in against["regressions"]] == failed
    assert against["improvements"] == []


def test_the_same_file_has_none(place: Place, run: Run):
    result = run("verify", "good", "net.py:build", "--against", "good-reports/report.json")
    assert result.exit_code == 0
    assert "nothing became worse or better since good-reports/report.json" in result.stdout
    assert "the file is the same, byte for byte" in result.stdout


def test_a_gate_closes_though_every_check_passes(place: Place, run: Run, good: Report):
    good["checks"].append({**good["checks"][0], "name": "brick at 1x2x12x11", "values": "brick"})
    (place.folder / "edited.json").write_text(json.dumps(good))
    result = run("verify", "good", "net.py:build", "--against", "edited.json", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdict"] == "PASS"
    assert [change["kind"] for change in json.loads(result.stdout)["against"]["regressions"]] == ["missing"]
    assert result.stderr.startswith("error: worse than edited.json: brick at 1x2x12x11: is not checked any more")


def edited(change: Callable[[Report], object]) -> Callable[[Report], str]:
    def text(report: Report) -> str:
        change(report)
        return json.dumps(report)

    return text


BAD = {
    "no JSON": (lambda report: "<html>", "is not a report of poolexport: it holds no JSON"),
    "nothing": (lambda report: "", "it holds no JSON"),
    "bytes": (lambda report: b"\xff\xfe\x00", "it holds no JSON"),
    "a list": (lambda report: "[]", "is not a report of poolexport; give a JSON file that --report has written"),
    "deep": (lambda report: "[" * 100000, "it holds no JSON"),
    "some other JSON": (lambda report: '{"version": 1}', "is not a report of poolexport; give"),
    "a later version": (edited(lambda report: report.update(version=2)), "is a report of version 2, and this"),
    "a field less": (edited(lambda report: report.pop("checks")), "is damaged: .checks is missing"),
    "a field of a check less": (
        edited(lambda report: report["checks"][2].pop("passed")),
        "is damaged: .checks[2].passed is missing",
    ),
    "a text for a number": (
        edited(lambda report: report["checks"][2]["outputs"][0].update(ulps="1")),
        ".checks[2].outputs[0].ulps is a str instead of number or null",
    ),
    "a check twice": (edited(lambda report: report["checks"].append(report["checks"][0])), "holds the check"),
    "nothing compared": (edited(lambda report: report["checks"].clear()), "reports that nothing was compared"),
    "another network": (
        edited(lambda report: report["subject"]["inputs"][0].update(name="image")),
        "is about another network: its inputs are image (FLOAT, 4 axes), those of this file are input (FLOAT",
    ),
    "a comparison with a file": (
        edited(lambda report: report["standard"].update(kind="file")),
        "reports a comparison with a file, this is one with a model",
    ),
}


@pytest.mark.parametrize(("text", "told"), BAD.values(), ids=BAD)
def test_what_is_no_such_report_is_one_sentence(
    place: Place, run: Run, good: Report, text: Callable[[Report], str | bytes], told: str
):
    content = text(good)
    (place.folder / "old.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("verify", "good", "net.py:build", "--against", "old.json")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr
    assert result.stdout == ""


def test_no_report_at_all(run: Run):
    result = run("verify", "good", "net.py:build", "--against", "none.json")
    assert result.exit_code == 2
    assert "the report none.json cannot be read: No such file" in result.stderr
