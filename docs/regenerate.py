"""Rewrite what the pages in this folder paste from the program: ``python docs/regenerate.py``.

A page marks a file that its reader is to write, and commands whose output follows:

    <!-- file: net.py -->            before a fenced block: the file is written before any command runs
    <!-- run: poolexport ... -->     before a fenced block: the block becomes the command and its output
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner

from poolexport.cli import main

FILE = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```\n", re.DOTALL)
RUN = re.compile(r"(<!-- run: poolexport (.*?) -->\n```text\n).*?(```\n)", re.DOTALL)
WIDTH = "100"


def regenerate(page: str) -> str:
    """The page with every command run again, in a folder of its own."""
    here, paths, modules = Path.cwd(), sys.path[:], set(sys.modules)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, text in FILE.findall(page):
                Path(name).write_text(text)
            return RUN.sub(_ran, page)
        finally:
            os.chdir(here)
            sys.path[:] = paths
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
                    del sys.modules[name]


def _ran(block: re.Match[str]) -> str:
    result = CliRunner(env={"COLUMNS": WIDTH}).invoke(main, shlex.split(block[2]))
    return f"{block[1]}$ poolexport {block[2]}\n{result.output}{block[3]}"


if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.md")):
        path.write_text(regenerate(path.read_text()))
