"""What a way of running a file is: this onnxruntime with some options, another release of it, or another runtime."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import numpy as np

from poolexport.runtime.functions import Source
from poolexport.runtime.traps import Release

#: How a file is given to a runtime: as it is, with its functions written out where they are called, or with native
#: kernels in place of them.
Form = Literal["function", "inlined", "native"]


class LacksError(Exception):
    """A runtime cannot be given the file, or lacks what it needs, which tells nothing about the file."""


class Running(Protocol):
    """A file that is open in a runtime."""

    def run(self, output_names: None, input_feed: Mapping[str, np.ndarray], /) -> Any:
        """Every output, in order.

        Raises:
            Exception: whatever the runtime raises where it fails.
        """


class Way(Protocol):
    """A way of running a file; ``str`` of it is its name in reports."""

    @property
    def runtime(self) -> str:
        """The name of what runs it, without options."""

    @property
    def form(self) -> Form:
        """The form in which it takes the file."""

    @property
    def release(self) -> Release | None:
        """Of onnxruntime; None where it is the installed one, or another runtime."""

    def running(self, source: Source) -> AbstractContextManager[Running]:
        """The file, opened; it is closed afterwards.

        Raises:
            LacksError: the runtime lacks what the file needs.
            Exception: whatever the runtime raises where it does not load the file.
        """
