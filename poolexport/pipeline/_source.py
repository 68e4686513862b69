"""Where in the user's code something happens."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch import nn

from poolexport.pipeline import _run
from poolexport.source import is_users, place

#: What asks the operating system for random bits; seeds that nobody gives come from there.
ASKING = (random.SystemRandom.random.__code__, random.SystemRandom.getrandbits.__code__)
#: What a model is called from: frames further out are no part of it.
BORDERS = (_run.run.__code__, _run.trace.__code__)


def line_of(frame: FrameType) -> str:
    """``file:line`` of a frame, the file relative to the current folder where it is below it."""
    return place(frame.f_code.co_filename, frame.f_lineno)


def calling_line() -> str:
    """The innermost line of the user's code inside the model that is being run; empty where there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in BORDERS:
        if is_users(frame.f_code.co_filename):
            return line_of(frame)
        frame = frame.f_back
    return ""


def forward_of(module: nn.Module) -> str:
    """Where the forward of a module is written; empty where it has no source."""
    forward: Any = inspect.unwrap(type(module).forward)
    try:
        return place(inspect.getsourcefile(forward) or "", inspect.getsourcelines(forward)[1])
    except (OSError, TypeError):
        return ""


class LineWatch:
    """Calls ``look(line)`` whenever a line of the user's code has run, with the line that ran last.

    Args:
        look: called with ``file:line``, or with "" before the first line of the user's.
        enter: called with every frame of the user's that is entered.
        asked: called whenever the operating system is asked for random bits.
    """

    def __init__(
        self,
        look: Callable[[str], None],
        enter: Callable[[FrameType], None] = lambda _: None,
        asked: Callable[[], None] = lambda: None,
    ) -> None:
        self.last = ""
        self._look = look
        self._enter = enter
        self._asked = asked
        self._before: Any = None

    def __enter__(self) -> LineWatch:
        self.last = ""
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code in ASKING:
            self._asked()
        if not is_users(frame.f_code.co_filename):
            return None
        self._enter(frame)
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        self._look(self.last)
        if event == "line":
            self.last = line_of(frame)
        elif event == "return":
            caller = frame.f_back
            while caller is not None and caller.f_code not in BORDERS and not is_users(caller.f_code.co_filename):
                caller = caller.f_back
            self.last = line_of(caller) if caller is not None and caller.f_code not in BORDERS else ""
        return self._step
