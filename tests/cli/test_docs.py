"""The page about the command line shows what the program prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from poolexport.cli import BROKEN_PIPE, FAULT, INTERRUPTED
from poolexport.cli._model import NESTED, PICKLES, PREFIXES
from poolexport.tolerance import FACTOR, FLOOR_ULPS

DOCS = Path(__file__).parents[2] / "docs"
#: Errors, bounds and sizes of files, which differ between machines and versions.
FIGURE = re.compile(r"\d[\d.]*e[+-]?\d+|(?<= )0(?= )|[\d.]+ kB")


def regenerate(page: str) -> str:
    spec = importlib.util.spec_from_file_location("regenerate", DOCS / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.regenerate(page)


def without_figures(page: str) -> list[list[str]]:
    """The page as words, without what rounding decides; the width of a column depends on it, too."""
    return [FIGURE.sub("#", line).replace("─", "").split() for line in page.splitlines()]


def test_every_command_in_the_docs_prints_what_they_show():
    page = (DOCS / "cli.md").read_text()
    assert page.count("<!-- run: ") > 5
    told = "docs/cli.md is stale; run: python docs/regenerate.py"
    assert without_figures(regenerate(page)) == without_figures(page), told


@pytest.mark.parametrize("verb", ["export", "verify", "inspect", "methods"])
def test_the_docs_show_every_verb(verb: str):
    assert f"<!-- run: poolexport {verb} " in (DOCS / "cli.md").read_text()


@pytest.mark.parametrize(
    ("shown", "printed", "differs"),
    [
        ("normal  1x3x32x32  1  1.5e-07", "normal  2x3x32x32  1  1.5e-07", True),
        ("PASS  39 checks", "PASS  40 checks", True),
        ("opset  20", "opset  21", True),
        ("zeros  2x3x32x32  1  0  1.9e-06  PASS", "zeros  2x3x32x32  1  2.1e-09  1.8e-06  PASS", False),
        ("model.onnx (16.2 kB)", "model.onnx (16.4 kB)", False),
    ],
)
def test_only_what_differs_between_machines_is_left_out(shown: str, printed: str, differs: bool):
    assert (without_figures(shown) != without_figures(printed)) == differs


def test_the_docs_state_the_bounds_that_are_applied():
    text = " ".join((DOCS / "cli.md").read_text().split())
    assert FLOOR_ULPS["float32"] == FLOOR_ULPS["float64"]
    told = f"{FLOOR_ULPS['float32']:g} units of rounding in float32 and float64, {FLOOR_ULPS['float16']:g} in float16"
    assert told in text
    assert FACTOR == 4
    assert "four times torch's own error" in text


def test_the_docs_name_every_ending_and_prefix_and_exit_code():
    text = (DOCS / "cli.md").read_text()
    for word in (*PICKLES, *PREFIXES, *NESTED):
        assert f"`{word}`" in text
    for code in (FAULT, INTERRUPTED, BROKEN_PIPE):
        assert re.search(rf"\b{code}  \w", text)
