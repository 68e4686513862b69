"""A file run by another release of onnxruntime, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from poolexport.bundle import model_path
from poolexport.runtime import _inside
from poolexport.runtime.environments import Environment
from poolexport.runtime.opening import Source
from poolexport.runtime.patience import PATIENCE
from poolexport.runtime.traps import Release
from poolexport.runtime.ways import Form

#: Processes that may be lost, by a crash or for lack of patience, before a file is not tried any more.
LIVES = 2
#: Seconds that a process has to end by itself.
GRACE = 2.0


@dataclass(frozen=True)
class OtherRelease:
    """A release of onnxruntime other than the installed one, on its own defaults.

    Args:
        environment: that it runs in; ``runtimes`` makes one.
        patience: seconds that an answer may take.
    """

    form: ClassVar[Form] = "function"
    environment: Environment
    patience: float = field(default=PATIENCE, compare=False)

    def __str__(self) -> str:
        return f"onnxruntime {self.environment.version}"

    @property
    def runtime(self) -> str:
        return str(self)

    @property
    def release(self) -> Release:
        major, minor = self.environment.version.split(".")[:2]
        return int(major), int(minor)

    @contextmanager
    def running(self, source: Source) -> Iterator[Child]:
        """The file, opened in a process that is gone afterwards."""
        child = Child(self.environment.packages, source, self.patience)
        try:
            yield child
        finally:
            child.close()


class Child:
    """A process that has a file open; where it dies or hangs, the next input is given to a new one.

    Args:
        packages: the folder with its onnxruntime.
        source: the file.
        patience: seconds that an answer may take.

    Raises:
        RuntimeError: it does not load the file, with its reason.
    """

    def __init__(self, packages: Path, source: Source, patience: float) -> None:
        self._packages, self._source, self._patience = packages, source, patience
        self._lost: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by close
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def run(self, output_names: None, input_feed: Mapping[str, np.ndarray], /) -> list[np.ndarray]:
        """Every output, in order.

        Raises:
            RuntimeError: it fails, dies or hangs, with its reason.
        """
        if self._process is None:
            if len(self._lost) >= LIVES:
                raise RuntimeError(f"{self._lost[-1]}; it was not tried again")
            self._start()
        return self._asked({"names": list(input_feed)}, list(input_feed.values()))

    def close(self) -> None:
        """End the process."""
        self._end(GRACE)
        self._said.close()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(_inside.__file__)), str(self._packages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        if isinstance(self._source, bytes):
            self._asked({}, [np.frombuffer(self._source, np.uint8)])
        else:
            self._asked({"path": os.fspath(model_path(self._source).absolute())}, [])

    def _asked(self, head: Mapping[str, Any], arrays: list[np.ndarray]) -> list[np.ndarray]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(self._patience, stop)
        clock.daemon = True
        clock.start()
        try:
            _inside.send(process.stdin, head, arrays)
            told, answers = _inside.receive(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            self._end(GRACE)
            self._lost.append(self._death(process.returncode, late.is_set()))
            raise RuntimeError(self._lost[-1]) from error
        finally:
            clock.cancel()
        if "error" in told:
            raise RuntimeError(told["error"])
        return answers

    def _death(self, code: int, late: bool) -> str:
        if late:
            return f"its process gave no answer within {self._patience:g} s and was ended"
        if code < 0:
            with suppress(ValueError):
                return f"its process died of {signal.Signals(-code).name}"
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with code {code}" + (f": {lines[-1]}" if lines else "")

    def _end(self, grace: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                # what was not read any more breaks the pipe when it is closed
                with suppress(OSError):
                    pipe.close()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
