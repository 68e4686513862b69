"""The page about the command line shows what the program prints."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NUMBER = re.compile(r"\d[\d.]*(e[+-]?\d+)?")


def regenerate(page: str) -> str:
    spec = importlib.util.spec_from_file_location("regenerate", DOCS / "regenerate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.regenerate(page)


def without_figures(page: str) -> list[list[str]]:
    """The page as words, because rounding differs between machines, and the width of a column with it."""
    return [NUMBER.sub("#", line).replace("─", "").split() for line in page.splitlines()]


def test_every_command_in_the_docs_prints_what_they_show():
    page = (DOCS / "cli.md").read_text()
    assert page.count("<!-- run: ") > 5
    told = "docs/cli.md is stale; run: python docs/regenerate.py"
    assert without_figures(regenerate(page)) == without_figures(page), told


@pytest.mark.parametrize("verb", ["export", "verify", "inspect", "methods"])
def test_the_docs_show_every_verb(verb: str):
    assert f"<!-- run: poolexport {verb} " in (DOCS / "cli.md").read_text()
