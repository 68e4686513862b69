"""Everything that poolexport raises on purpose.

    PoolExportError
    ├── InputError            what was given cannot be used                     (exit code 2)
    │   ├── RandomnessError   the answer would differ from run to run
    │   │   └── ModeError     a module is in training mode
    │   ├── OutputError       the target cannot be written
    │   ├── MissingExtraError an optional package is not installed
    │   └── MissingKernelsError  there are no native kernels
    ├── ExportError           torch could not turn the model into a graph       (exit code 2)
    │   └── ValueDependentError  the model decides by the values of a tensor
    ├── RequestError          a server refuses a request, or cannot answer it   (an HTTP status)
    ├── StartError            a server cannot start                             (exit code 1)
    └── ParityError           the file does not compute what the model computes (exit code 1)
        └── FrozenAxisError   ... at lengths of a dynamic axis other than the traced one

Messages say what is wrong, where (the dotted path of the module, or the node), what was found and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolexport.pipeline.audit import Audit
    from poolexport.pipeline.verify import Verdict


def first_line(error: BaseException) -> str:
    """What somebody else's error says, without the rest of its story; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class PoolExportError(Exception):
    """Base of all errors below."""

    exit_code = 2


class InputError(PoolExportError, ValueError):
    """What was given cannot be used."""


class RandomnessError(InputError):
    """The answer would differ from run to run; ``audit`` holds everything that makes it differ, where that is known."""

    def __init__(self, message: str, audit: Audit | None = None) -> None:
        super().__init__(message)
        self.audit = audit


class ModeError(RandomnessError):
    """A module is in training mode."""


class OutputError(InputError):
    """The target cannot be written."""


class MissingExtraError(InputError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}; install it with: pip install 'poolexport[{extra}]'")


class MissingKernelsError(InputError):
    """There are no native kernels, or onnxruntime cannot load them."""


class ExportError(PoolExportError):
    """torch could not turn the model into a graph."""


class ValueDependentError(ExportError):
    """The model decides by the values of a tensor, of which a graph holds one decision only."""


class RequestError(PoolExportError):
    """A server refuses a request, or cannot answer it.

    ``status`` is the HTTP status code that says why; a client has 0 where nobody answered.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StartError(PoolExportError):
    """A server cannot start."""

    exit_code = 1


class ParityError(PoolExportError):
    """The file does not compute what the model computes; ``verdict`` holds every check that was made."""

    exit_code = 1

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


class FrozenAxisError(ParityError):
    """An axis is dynamic in name only; ``axes`` are such axes, ``path`` and ``source`` tell the module that did it."""

    def __init__(self, message: str, verdict: Verdict, axes: tuple[str, ...], path: str, source: str) -> None:
        super().__init__(message, verdict)
        self.axes = axes
        self.path = path
        self.source = source
