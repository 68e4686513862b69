"""A bar on stderr while something takes longer than a second; it leaves no trace."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator

STAGES = {
    "load": "loading the model",
    "prepare": "judging the model",
    "export": "tracing",
    "lower": "writing operators",
    "environment": "setting up runtimes",
    "verify": "verifying",
    "package": "writing to disk",
    "run": "running",
    "tune": "measuring",
    "locate": "looking for the layer to blame",
}


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A callback ``(stage, done, total)``; what the user's code prints meanwhile goes to stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with _printing_to_stderr(), bar:
        task = bar.add_task(STAGES["load"], total=None)

        def report(stage: str, done: int, total: int) -> None:
            counted = total > 1
            words = STAGES.get(stage, stage) + (f" {done} of {total}" if counted else "")
            # a bar without a total pulses; update() cannot take a total back
            bar.tasks[0].total = total if counted else None
            bar.update(task, description=words, completed=done)

        yield report


@contextlib.contextmanager
def _printing_to_stderr() -> Iterator[None]:
    """What Python code prints, what C code prints, and what other programs print."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            kept = os.dup(1)
        except OSError:
            yield
            return
        try:
            with contextlib.suppress(OSError):
                os.dup2(2, 1)
            yield
        finally:
            _flush_c()
            os.dup2(kept, 1)
            os.close(kept)


def _flush_c() -> None:
    """Let go of what C code printed; where nobody looks at a terminal, it would come out when the process ends."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)
