"""How the verbs speak: tables for people, one JSON document for programs, one sentence for errors."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from poolexport.report.data import checks, left_out
from poolexport.report.plain import plain

if TYPE_CHECKING:
    from poolexport.pipeline.verify import Verdict

#: Columns of a table where nobody is looking at a terminal.
WIDTH = 110

COLOURS = {"PASS": "bold green", "FAIL": "bold red", "UNVERIFIED": "bold yellow"}


def out(*parts: RenderableType) -> None:
    """Print for people, on stdout."""
    console = _console()
    with console.capture() as captured:
        for part in parts:
            console.print(_harmless(part))
    # tables are padded to their width, which is of no use in a file
    _write("\n".join(line.rstrip() for line in captured.get().split("\n")))


def line(text: str) -> None:
    """Print something to be copied on stdout, on one line however long."""
    _write(harmless(one_line(text)) + "\n")


def document(value: Any) -> None:
    """Print one JSON document on stdout; a number that JSON cannot hold becomes null."""
    _write(json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def error(sentence: str) -> None:
    """Print an error on stderr, on one line."""
    word = "error:" if os.environ.get("NO_COLOR") else click.style("error:", fg="red", bold=True)
    click.echo(f"{word} {harmless(one_line(sentence))}", err=True)


def warning(sentence: str) -> None:
    """Print a warning on stderr, on one line."""
    word = "warning:" if os.environ.get("NO_COLOR") else click.style("warning:", fg="yellow", bold=True)
    click.echo(f"{word} {harmless(one_line(sentence))}", err=True)


def note(sentence: str) -> None:
    """Print what people should know on stderr, on one line."""
    click.echo(harmless(one_line(sentence)), err=True)


def _write(text: str) -> None:
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    click.echo(text, nl=False)


def discard() -> None:
    """Give up on stdout, so that the interpreter does not fail on what is left in it when it ends."""
    with contextlib.suppress(AttributeError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def harmless(text: str) -> str:
    """The text with every character escaped that a terminal would obey instead of showing it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _harmless(part: RenderableType) -> RenderableType:
    if isinstance(part, str):
        return harmless(part)
    if isinstance(part, Text) and not part.plain.isprintable():
        return Text(harmless(part.plain), style=part.style)
    return part


def failure(raised: BaseException, sentence: str, code: int) -> dict[str, Any]:
    """The JSON document of an error; where a verification failed, with every check."""
    found = {"error": {"type": type(raised).__name__, "message": one_line(sentence), "exit_code": code}}
    judged = getattr(raised, "verdict", None)
    return found | (verdict(judged) if judged is not None else {})


def verdict(value: Verdict) -> dict[str, Any]:
    """A verdict and every check of it, as data."""
    return {
        "verdict": value.word,
        "grade": value.grade,
        "truth": value.truth,
        "worst_error": value.worst_error,
        "checks": checks(value.checks),
        "left_out": left_out(value),
        "untried": value.untried,
        "skipped": value.skipped,
        "random_outputs": value.random,
    }


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Two columns: what it is, what was found; a row without a label goes on with the one above."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(label, _harmless(value))
    return grid


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[RenderableType]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Table:
    """A table with a rule under its head; columns in ``right`` are flush right, those in ``whole`` are never folded."""
    result = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for header in headers:
        result.add_column(
            header, overflow="fold", justify="right" if header in right else "left", no_wrap=header in whole
        )
    for row in rows:
        result.add_row(*map(_harmless, row))
    return result


def word(text: str) -> Text:
    """A verdict in its colour."""
    return Text(text, style=COLOURS.get(text, ""))


def shape(lengths: Sequence[int | str] | None) -> str:
    """``1x3x32x32``, or ``Nx3xHxW``; a length that is an expression stands in brackets."""
    if lengths is None:
        return "unknown shape"
    texts = [str(length) for length in lengths]
    return "x".join(text if text.isalnum() else f"({text})" for text in texts) or "scalar"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def dtype(name: str) -> str:
    """``float32`` for what ONNX calls FLOAT."""
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def near(name: str, known: Iterable[str]) -> str:
    """``"; did you mean ...?"`` with the known names that look like ``name``, else all of them, else nothing."""
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, 3, 0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there is {listed(sorted(names), 8)}" if names else ""


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def width() -> int:
    """Columns that a table may take."""
    return _console().width


def _console() -> Console:
    has_width = "COLUMNS" in os.environ or (sys.stdout is not None and sys.stdout.isatty())
    return Console(highlight=False, markup=False, emoji=False, width=None if has_width else WIDTH)
