"""The loop: read, run, write, on as many threads as there are processors, with a bounded number of files in memory."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from poolexport.bundle import files, model_path, sha256
from poolexport.errors import InputError, OutputError, PoolExportError
from poolexport.offline.items import Item, items
from poolexport.offline.reading import DTYPES, Feed, Picture, read
from poolexport.offline.writing import Answers, Writer, require_names
from poolexport.runtime import session
from poolexport.runtime.rows import batch_axis, mixed_rows

Progress = Callable[[str, int, int], None]
#: Rows of one run, unless told otherwise: more of them gain nothing on a processor.
BATCH = 8


@dataclass(frozen=True)
class Failure:
    """A file that has no answer, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Report:
    """What became of every file: ``written`` now, ``found`` from an earlier run, or among the ``failures``."""

    written: int
    found: int
    failures: tuple[Failure, ...] = ()


def run(
    model: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    batch: int = BATCH,
    threads: int | None = None,
    picture: Picture = Picture(),  # noqa: B008
    keep_going: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Run a model over files and folders of arrays (``.npy``, ``.npz``) and images.

    Every file gives one ``.npz`` under ``out``, with the outputs under their names. A run that was cut off goes on
    where it was when it is started again.

    Args:
        model: a bundle or an .onnx file.
        inputs: files, or folders to search.
        out: a folder.
        batch: rows of a stacked array, or images, of one run; more than one only where the model was seen to answer
            rows independently.
        threads: files that are worked on at a time; the number of processors by default.
        picture: how pixels become numbers.
        keep_going: go on after a file that cannot be read or run; it is among the failures of the report.
        force: run everything anew.
        progress: called with (stage, done, total).

    Raises:
        InputError: an input cannot be used and ``keep_going`` is not set, or the model cannot be loaded.
        OutputError: an answer cannot be written.
    """
    threads = os.cpu_count() or 1 if threads is None else threads
    job = Job(model, inputs, out, batch, threads, picture, keep_going=keep_going, force=force, progress=progress)
    # Files are handed out in groups, and no more than two groups a thread are in memory.
    waiting: deque[tuple[Future[list[Failure]], int]] = deque()

    def collect() -> None:
        done, count = waiting.popleft()
        job.collect(done.result(), count)

    with ThreadPoolExecutor(threads) as pool:
        try:
            for group in _groups(job.todo, batch):
                if len(waiting) >= 2 * threads:
                    collect()
                waiting.append((pool.submit(job.worker.answer, group, job.answers), len(group)))
            while waiting:
                collect()
        except BaseException:
            job.worker.stop.set()
            for future, _ in waiting:
                future.cancel()
            raise
    return job.report()


class Job:
    """The files that there are, those that are to be run, and what became of them; see ``run`` for the arguments."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        inputs: Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        batch: int,
        threads: int,
        picture: Picture,
        *,
        keep_going: bool,
        force: bool,
        progress: Progress | None,
    ) -> None:
        if batch < 1:
            raise InputError(f"at least one row makes a batch, not {batch}")
        if threads < 1:
            raise InputError(f"it takes at least one thread, not {threads}")
        found = items(inputs, Path(out))
        self.worker = Worker(model, batch, picture)
        self.answers = Answers(Path(out), {"model": _digest(model), "picture": asdict(picture)}, force=force)
        self.todo = [item for item in found if not self.answers.has(item)]
        self._found = len(found) - len(self.todo)
        self._keep_going = keep_going
        self._progress = progress
        self._written = 0
        self._failures: list[Failure] = []

    def collect(self, failed: Sequence[Failure], count: int) -> None:
        """Count files that are done.

        Args:
            failed: those of them that have no answer.
            count: of all of them.

        Raises:
            InputError: one failed, and that ends everything.
        """
        if failed and not self._keep_going:
            raise InputError(failed[0].reason)
        self._failures.extend(failed)
        self._written += count - len(failed)
        if self._progress is not None:
            self._progress("run", self._written + len(self._failures), len(self.todo))

    def report(self) -> Report:
        """What became of every file, which is also kept beside the answers."""
        failures = sorted(self._failures, key=lambda failure: failure.path)
        self.answers.failures({os.fspath(failure.path): failure.reason for failure in failures})
        return Report(self._written, self._found, tuple(failures))


def _groups(todo: Sequence[Item], batch: int) -> list[list[Item]]:
    """Images by the batch, arrays one by one: they may be stacks already."""
    images = [item for item in todo if item.is_image]
    return [[item] for item in todo if not item.is_image] + [
        images[start : start + batch] for start in range(0, len(images), batch)
    ]


def _digest(model: str | os.PathLike[str]) -> str:
    """Of the model and the weights beside it."""
    return hashlib.sha256("".join(map(sha256, files(model_path(model)))).encode()).hexdigest()


class Worker:
    """Answers groups of files; used by several threads."""

    def __init__(self, model: str | os.PathLike[str], batch: int, picture: Picture) -> None:
        self.session = session(model, threads=1)  # files are what is done at the same time
        self.ports = self.session.get_inputs()
        self.names = [port.name for port in self.session.get_outputs()]
        require_names(self.names)
        self.batch = batch
        self.picture = picture
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._independent: bool | None = None if batch_axis(self.session) else False

    def answer(self, group: Sequence[Item], answers: Writer) -> list[Failure]:
        """Read, run and write; what could not be done is told, but a disk that is full ends everything."""
        failures = []
        feeds: list[tuple[Item, Feed]] = []
        for item in group:
            if self.stop.is_set():
                break
            try:
                feeds.append((item, read(item, self.ports, self.picture)))
            except PoolExportError as error:
                failures.append(Failure(item.path, str(error)))
        for same in self._alike(feeds):
            try:
                results = self._run(same)
            except OutputError:
                raise
            except PoolExportError as error:
                failures += [Failure(item.path, f"{item.path}: {error}") for item, _ in same]
                continue
            for (item, _), result in zip(same, results):
                answers.write(item.answer, dict(zip(self.names, result)))
        return failures

    def _alike(self, feeds: Sequence[tuple[Item, Feed]]) -> list[list[tuple[Item, Feed]]]:
        """Feeds that can be run at once: one row each, of the same shapes, answered independently."""
        groups: dict[object, list[tuple[Item, Feed]]] = {}
        for place, (item, feed) in enumerate(feeds):
            single = all(x.shape[:1] == (1,) for x in feed.values())
            together = self.batch > 1 and len(feeds) > 1 and single and self._rows_are_independent(feed)
            key = tuple(x.shape for x in feed.values()) if together else place
            groups.setdefault(key, []).append((item, feed))
        return list(groups.values())

    def _run(self, same: Sequence[tuple[Item, Feed]]) -> list[list[np.ndarray]]:
        if len(same) > 1:
            joined = {port.name: np.concatenate([feed[port.name] for _, feed in same]) for port in self.ports}
            together = self._answers(joined)
            return [[y[k : k + 1] for y in together] for k in range(len(same))]
        [(_, feed)] = same
        rows = {x.shape[0] for x in feed.values() if x.ndim}
        if len(rows) == 1 and (count := rows.pop()) > self.batch and self._rows_are_independent(feed):
            starts = range(0, count, self.batch)
            parts = [self._answers({n: x[start : start + self.batch] for n, x in feed.items()}) for start in starts]
            return [[np.concatenate(columns) for columns in zip(*parts)]]
        return [self._answers(feed)]

    def _answers(self, feed: Feed) -> list[np.ndarray]:
        if self.stop.is_set():
            raise InputError("stopped")
        try:
            return self.session.run(None, self._as_taken(feed))
        except Exception as error:
            raise InputError(f"the model has no answer: {str(error).strip().splitlines()[0]}") from error

    def _as_taken(self, feed: Feed) -> Feed:
        """Arrays of the types that the model takes, in one piece."""
        return {port.name: np.ascontiguousarray(feed[port.name], DTYPES[port.type]) for port in self.ports}

    def _rows_are_independent(self, feed: Feed) -> bool:
        with self._lock:
            if self._independent is None:
                first = self._as_taken({name: x[:1] for name, x in feed.items()})
                self._independent = not mixed_rows(self.session, first)
            return self._independent
