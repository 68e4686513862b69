"""The committed baseline: with our table and with our exporter every case is right, or refused with the reason."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/baseline.json"
ROWS = json.loads(RESULTS.read_text())["rows"]
OURS = ("torch + table", "poolexport")


@pytest.fixture(scope="module")
def program():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import baseline

        yield baseline
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_every_case_was_measured_in_every_mode(program):
    cases = program.cases.CASES
    assert list(ROWS) == [case.name for case in cases]
    for case in cases:
        expected = [mode for mode in program.MODES if program.axes_of(case, mode) is not None]
        assert list(ROWS[case.name]["modes"]) == expected
        assert all(set(columns) == set(program.COLUMNS) for columns in ROWS[case.name]["modes"].values())


@pytest.mark.parametrize("column", OURS)
def test_nothing_of_ours_is_wrong_or_missing(column):
    found = [(name, mode, columns[column]) for name, row in ROWS.items() for mode, columns in row["modes"].items()]
    assert [entry for entry in found if entry[2]["word"] not in ("ok", "REFUSED")] == []
    assert all(result["why"] for _, _, result in found if result["word"] == "REFUSED")


def test_only_what_has_no_one_answer_is_refused():
    """All of these draw in eval mode, are in training mode, or loop over the values of boxes."""
    refused = {
        name
        for name, row in ROWS.items()
        for columns in row["modes"].values()
        for column in OURS
        if columns[column]["word"] == "REFUSED"
    }
    named = re.compile(
        r"TRAIN|every mode|no training branch|RoI pool python loop|FractionalMaxPool(?!.*_random_samples)"
    )
    assert {name for name in refused if not named.search(name)} == set()


def test_no_reason_names_a_folder_of_a_machine():
    reasons = [r.get("why", "") for row in ROWS.values() for columns in row["modes"].values() for r in columns.values()]
    assert [why for why in reasons if re.search(r"(^|[ :])/?(tmp|home|work|root|mp)/", why)] == []
