"""Where reports go; nothing is overwritten or half-written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Run
from poolexport import disk
from poolexport.errors import InputError, OutputError
from poolexport.report.writing import targets, write
from report.conftest import Place


def test_endings_say_what_is_written(tmp_path: Path, good: dict[str, Any]):
    wanted = [tmp_path / name for name in ("a.json", "b.XML", "c.html", "folder.v1")]
    written = write(targets(wanted, force=False), good)
    assert [file.read_text()[:5] for file in written[:3]] == ['{\n  "', "<?xml", "<!doc"]
    assert {file.name for file in wanted[3].iterdir()} == {"report.html", "report.json", "report.xml"}
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("report.txt", "a report cannot end in .txt; choose .html, .json, .xml, or a folder"),
        ("file", "is a file; give a folder"),
        ("nowhere/a.json", "does not exist; create it first"),
        ("nowhere/folder", "does not exist; create it first"),
        ("there.json", "there.json: there already; choose another name, or replace it with --force"),
        ("full", "there already"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_verified(tmp_path: Path, name: str, told: str):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.xml").write_text("mine")
    with pytest.raises(InputError, match=told):
        targets([tmp_path / name], force=False)
    assert (tmp_path / "there.json").read_text() == "mine"


def test_force_replaces(tmp_path: Path, good: dict[str, Any]):
    (tmp_path / "a.json").write_text("mine")
    write(targets([tmp_path / "a.json"], force=True), good)
    assert (tmp_path / "a.json").read_text().startswith("{")


def test_one_name_twice(tmp_path: Path):
    with pytest.raises(InputError, match="is to be written twice"):
        targets([tmp_path / "a.json", tmp_path / "a.json"], force=False)


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.json").write_text("mine")
    found = targets([tmp_path / "a.json"], force=True)

    def full(place: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "replace", full)
    with pytest.raises(OutputError, match=r"a.json could not be written: No space left on device"):
        write(found, good)
    assert (tmp_path / "a.json").read_text() == "mine"


@pytest.mark.parametrize(("package", "module"), [("jinja2", "jinja2"), ("pillow", "PIL")])
def test_a_missing_package_is_named(
    place: Place, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, module: str
):
    monkeypatch.setitem(sys.modules, module, None)
    result = run("verify", "good", "net.py:build", "--report", tmp_path / "a.html", "--no-extremes")
    assert result.exit_code == 2
    assert f"needs the package '{package}'; install it with: pip install 'poolexport[report]'" in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_line_does_not_overwrite(place: Place, run: Run):
    before = place.page("good").read_bytes()
    result = run("verify", "good", "net.py:build", "--report", "good-reports")
    assert result.exit_code == 2
    assert "there already" in result.stderr
    assert place.page("good").read_bytes() == before
