"""Who runs when: a bounded queue before a few threads, and a deadline for everything.

A request that finds the queue full is refused at once. One whose time is up is told so, and its run is ended from
outside; so is the run of a client that left.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import onnxruntime as ort

from poolexport.errors import RequestError
from poolexport.serve import batching
from poolexport.serve.config import Settings
from poolexport.serve.facts import run_options
from poolexport.serve.model import Model
from poolexport.serve.protocol import Array

#: Seconds that a run on the event loop may take before its model has to use the threads.
HELD_UP = 0.02
#: Seconds between two looks at the deadlines.
TICK = 0.05


class Run:
    """One request on its way through a model."""

    __slots__ = (
        *("arrived", "deadline", "elements", "ended", "feeds", "future", "group", "model", "options", "outputs"),
        *("over", "rows", "started"),
    )

    def __init__(self, model: Model, feeds: Mapping[str, Array], outputs: Sequence[str], seconds: float) -> None:
        self.model = model
        self.feeds = feeds
        self.outputs = outputs
        self.arrived = self.started = self.ended = time.perf_counter()
        self.deadline = self.arrived + seconds
        self.rows = batching.rows(feeds)
        self.elements = sum(array.size for array in feeds.values())
        self.options: ort.RunOptions | None = None
        self.future: asyncio.Future[list[Array]] | None = None
        #: All that are made together, itself among them; empty where it is alone.
        self.group: Sequence[Run] = ()
        #: Whether nobody waits for the answer any more.
        self.over = False

    def stop(self) -> None:
        """End it, whether it runs or not; from any thread."""
        self.over = True
        options = self.options
        if options is not None and all(run.over for run in self.group):
            options.terminate = True


class Deadlines:
    """Stops runs whose time is up; a thread, because a run on the event loop holds the loop up."""

    def __init__(self) -> None:
        self._runs: dict[Run, None] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
        self._thread.start()

    def add(self, run: Run) -> None:
        self._runs[run] = None

    def discard(self, run: Run) -> None:
        self._runs.pop(run, None)

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(TICK):
            now = time.perf_counter()
            for run in list(self._runs):
                if now >= run.deadline and not run.over:
                    run.stop()
                    future = run.future
                    if future is not None:
                        future.get_loop().call_soon_threadsafe(_too_late, future)


def _too_late(future: asyncio.Future[list[Array]]) -> None:
    if not future.done():
        future.set_exception(RequestError(504, "the answer took longer than the request may take; it was stopped"))


class Engine:
    """Runs models for one event loop.

    Args:
        settings: how many runs at a time, how many may wait, and for how long.
    """

    def __init__(self, settings: Settings) -> None:
        self.slots = settings.runs_at_a_time
        self._settings = settings
        self._room = settings.limits.queue * self.slots
        self._waiting: deque[Run] = deque()
        self._active = 0
        #: How often something was run in a thread.
        self.runs = 0
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(self.slots, thread_name_prefix="run")
        self._deadlines = Deadlines()

    @property
    def waiting(self) -> int:
        """Requests in the queue, and those that a thread takes next."""
        return len(self._waiting) + max(0, self._active - self.slots)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._active and not self._waiting

    async def infer(
        self, model: Model, feeds: Mapping[str, Array], outputs: Sequence[str], seconds: float = 0.0
    ) -> tuple[list[Array], Run]:
        """Run a model, and what is known about the run.

        Args:
            model: to run.
            feeds: its inputs.
            outputs: to give.
            seconds: the client's time-out, if shorter than the server's; 0 for none.

        Raises:
            RequestError: the queue is full (503), time is up (504), or the model has no answer (400).
        """
        most = self._settings.limits.run_seconds
        run = Run(model, feeds, outputs, min(seconds, most) if seconds else most)
        if model.quick(feeds):
            return self._at_once(run), run
        if self._active >= self.slots and self.waiting >= self._room:
            raise RequestError(503, f"the queue of {self._room} requests is full; try again")
        run.future = asyncio.get_running_loop().create_future()
        self._waiting.append(run)
        self._deadlines.add(run)
        self._dispatch()
        try:
            return await run.future, run
        except BaseException:
            run.stop()
            if run in self._waiting:
                self._waiting.remove(run)
            raise
        finally:
            self._deadlines.discard(run)

    def close(self) -> None:
        """End its threads; runs in progress are finished."""
        self._deadlines.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _at_once(self, run: Run) -> list[Array]:
        run.options = run_options()
        self._deadlines.add(run)
        try:
            answers = run.model.run(run.feeds, run.outputs, run.options)
        finally:
            self._deadlines.discard(run)
            run.ended = time.perf_counter()
            if run.ended - run.started > HELD_UP:
                run.model.not_quick()
        run.model.meter.runs += 1
        return answers

    def _dispatch(self) -> None:
        # a thread that finds the next run need not wait for the event loop; only what may be batched waits for others
        while self._waiting and self._active < self.slots * (1 if self._waiting[0].model.together else 2):
            first = self._waiting[0]
            if self._settings.batch_delay and first.model.together and self._waits_for_others(first):
                return
            group = batching.take(self._waiting)
            self._active += 1
            loop = asyncio.get_running_loop()
            self._threads.submit(self._execute, group, loop)

    def _waits_for_others(self, first: Run) -> bool:
        """Whether a run should wait on for others to be made with; a timer comes back to it."""
        left = first.arrived + self._settings.batch_delay - time.perf_counter()
        rows = sum(run.rows for run in self._waiting if run.model is first.model)
        if left <= 0 or rows >= first.model.rows:
            return False
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left, self._timer_ends)
        return True

    def _timer_ends(self) -> None:
        self._timer = None
        self._dispatch()

    def _execute(self, group: list[Run], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: run a group and hand the answers back to the loop."""
        results: list[list[Array] | BaseException]
        group = [run for run in group if not run.over]
        try:
            results = _answers(group)
        except BaseException as error:
            results = [error] * len(group)
        loop.call_soon_threadsafe(self._finish, group, results)

    def _finish(self, group: list[Run], results: list[list[Array] | BaseException]) -> None:
        self._active -= 1
        self.runs += 1
        if group:
            group[0].model.meter.runs += 1
        for run, result in zip(group, results):
            # groups are circles, which would keep the bodies of their requests until the next collection
            run.group = ()
            future = run.future
            if future is None or future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        self._dispatch()


def _answers(group: list[Run]) -> list[list[Array] | BaseException]:
    """What every run of a group gets: answers, or an error."""
    started = time.perf_counter()
    for run in group:
        run.started = started
    if len(group) > 1:
        try:
            feeds, outputs = batching.merged(group)
            options = run_options()
            for run in group:
                run.group, run.options = group, options
            results = batching.split(group, outputs, group[0].model.run(feeds, outputs, options))
        except RequestError:
            # one of them may be to blame: each on its own
            return [_answer(run) for run in group]
        ended = time.perf_counter()
        for run in group:
            run.ended = ended
        return list(results)
    return [_answer(run) for run in group]


def _answer(run: Run) -> list[Array] | BaseException:
    run.group, run.options = (), (options := run_options())
    if run.over:
        options.terminate = True
    try:
        answers = run.model.run(run.feeds, run.outputs, options)
    except RequestError as error:
        return error
    run.ended = time.perf_counter()
    return answers
