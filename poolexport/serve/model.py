"""One version of a model, open and ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from poolexport.errors import InputError, RequestError
from poolexport.runtime import session
from poolexport.serve.config import Settings
from poolexport.serve.datatypes import spec
from poolexport.serve.facts import Facts, digests, run_options, said, session_options, stamps
from poolexport.serve.metrics import Meter
from poolexport.serve.protocol import Array, Signature

#: Runs shorter than this are made on the event loop: handing them to a thread would cost more than they do.
QUICK = 2e-4


class Model:
    """A version of a model that can be run.

    Args:
        name, version: of it.
        facts: about its file.
        session: of onnxruntime.
        settings: of the server.
        together: numbers in the inputs of requests that may be run together; 0 where each is run alone.
    """

    def __init__(
        self, name: str, version: str, facts: Facts, session: ort.InferenceSession, settings: Settings, *, together: int
    ) -> None:
        self.name = name
        self.version = version
        self.facts = facts
        self.together = together if facts.batched else 0
        #: Rows that are run together at most.
        self.rows = min(settings.batch_rows or settings.limits.batch, settings.limits.batch)
        self.signature = Signature(
            {tensor.name: tensor for tensor in map(spec, session.get_inputs())},
            {tensor.name: tensor for tensor in map(spec, session.get_outputs())},
            settings.limits,
            facts.batched,
        )
        self.meter = Meter(name, version)
        self._session = session
        #: Largest number of elements for which a run is known to be quick; 0 where none is.
        self._quick = facts.elements if facts.steady and facts.seconds < QUICK else 0

    def quick(self, feeds: Mapping[str, Array]) -> bool:
        """Whether a run on these arrays is short enough for the event loop."""
        if not self._quick:
            return False
        size = 0
        for array in feeds.values():
            size += array.size
        return size <= self._quick

    def not_quick(self) -> None:
        """Leave the event loop alone from now on: a run took longer than was measured."""
        self._quick = 0

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None, options: ort.RunOptions | None = None
    ) -> list[Array]:
        """The outputs of these names, or all of them.

        Raises:
            RequestError: the model cannot compute an answer for these arrays.
            MemoryError: there is no room for one.
        """
        try:
            answers = self._session.run(outputs, feeds, options or run_options())
        except MemoryError:
            raise
        except Exception as error:
            if options is not None and options.terminate:
                raise RequestError(504, "the run took too long and was stopped") from None
            raise RequestError(400, f"the model has no answer for this input: {said(error)}") from error
        for answer in answers:
            if not isinstance(answer, np.ndarray):
                raise RequestError(400, "the model gives something that is no tensor")
        return answers


def open_model(name: str, version: str, facts: Facts, settings: Settings, *, together: int) -> Model:
    """Open a file that was tried before.

    Raises:
        InputError: it is not the file that was tried, or onnxruntime cannot load it.
    """
    path = Path(facts.path)
    before = stamps(path)
    opened = session(path, options=session_options(settings.threads))
    # a file that is changed and changed back has its hash again, but not its times
    if digests(path) != dict(facts.digests) or stamps(path) != before:
        raise InputError(f"{facts.path} changed while it was loaded; load it again")
    return Model(name, version, facts, opened, settings, together=together)
