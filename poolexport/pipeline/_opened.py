"""A file, open in one way of running it, asked for its answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import onnxruntime as ort
from torch import Tensor

from poolexport.errors import InputError, first_line
from poolexport.pipeline._forms import Forms
from poolexport.runtime import LacksError, Running, Way, patience


class Opened:
    """A file in one way of running it, which opens it when the first answer is asked for.

    Args:
        session: the file in the installed onnxruntime, which knows the names of inputs and outputs.
        way: of running it; None for that session.
        forms: of the file.
    """

    def __init__(self, session: ort.InferenceSession, way: Way | None = None, forms: Forms | None = None) -> None:
        self.outputs = [port.name for port in session.get_outputs()]
        self._inputs = [port.name for port in session.get_inputs()]
        self._way, self._forms = way, forms
        self._running: Running | str | None = session if way is None else None
        self._open = ExitStack()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def answers(self, inputs: Sequence[Tensor]) -> list[np.ndarray] | str:
        """What the file answers, or why it does not.

        Raises:
            LacksError: the runtime says that it lacks something, or the file has not got the form that it takes.
            InputError: the installed onnxruntime waits for the file in vain.
        """
        if self._running is None:
            self._running = self._opened()
        if isinstance(self._running, str):
            return self._running
        name = "onnxruntime" if self._way is None else self._way.runtime
        feed = {name: x.numpy() for name, x in zip(self._inputs, inputs)}
        try:
            if isinstance(self._running, ort.InferenceSession):
                return patience.answers(self._running, feed)
            return list(self._running.run(None, feed))
        except LacksError:
            raise
        except TimeoutError as error:
            if self._way is None:
                raise InputError(f"the file {error}") from error
            # it is not waited for again
            self._running = f"{name} {error}"
            return self._running
        except Exception as error:
            return f"{name} failed: {first_line(error)}"

    def _opened(self) -> Running | str:
        assert self._way is not None
        assert self._forms is not None
        try:
            source = self._forms.get(self._way.form)
        except InputError as error:
            raise LacksError(str(error)) from error
        try:
            return self._open.enter_context(self._way.running(source))
        except LacksError:
            raise
        except InputError as error:
            return str(error)
        except Exception as error:
            return f"{self._way.runtime} cannot load the file: {first_line(error)}"
