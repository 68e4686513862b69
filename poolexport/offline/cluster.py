"""The same on a Ray cluster: files are read and answers written where the command runs, models run everywhere.

So machines of the cluster need neither the files nor the model, and what is in the folder of answers is as it would be
without a cluster. Ray Data does what was lost with a machine once more; an answer that came twice is written once.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from math import ceil
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from poolexport.bundle import model_path
from poolexport.cluster import Parcel, joined, packed, require, unpacked
from poolexport.errors import PoolExportError
from poolexport.offline.items import Item
from poolexport.offline.reading import Picture
from poolexport.offline.running import BATCH, Failure, Job, Progress, Report, Worker
from poolexport.offline.writing import archive

#: Batches in a piece of work that is lost together with a machine, and most pieces.
BATCHES, PIECES = 4, 2000
Rows = dict[str, Any]


def run(
    model: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    address: str = "",
    batch: int = BATCH,
    threads: int | None = None,
    picture: Picture = Picture(),  # noqa: B008
    keep_going: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Run a model over files and folders with all processors of a cluster; ``offline.run`` tells the rest.

    Args:
        address: of the cluster; see ``poolexport.cluster.joined``.
        threads: processes that run the model, each on one processor; all processors of the cluster by default.
        model, inputs, out, batch, picture, keep_going, force, progress: as there.

    Raises:
        InputError: as there.
        OutputError: an answer cannot be written.
        StartError: there is no cluster to join.
        PoolExportError: the cluster gave up.
    """
    require("running on a cluster", "pyarrow")
    least = 1 if threads is None else threads
    job = Job(model, inputs, out, batch, least, picture, keep_going=keep_going, force=force, progress=progress)
    if not job.todo:
        return job.report()
    with joined(address):
        left = dict(enumerate(job.todo))
        for row in _answers(packed(model_path(model), sys.maxsize), job.todo, batch, threads, picture):
            item = left.pop(int(row["number"]), None)
            if item is None:
                continue
            if not row["reason"]:
                job.answers.keep(item.answer, row["answer"])
            job.collect([Failure(item.path, row["reason"])] if row["reason"] else [], 1)
    if left:
        raise PoolExportError(f"the cluster lost {len(left)} files, {left.popitem()[1].path} among them; run it again")
    return job.report()


def _answers(
    parcel: Parcel, todo: Sequence[Item], batch: int, threads: int | None, picture: Picture
) -> Iterator[Mapping[str, Any]]:
    """The answer to every file, or why there is none, in any order."""
    import ray
    from ray.exceptions import RayError

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    most = threads or max(1, int(ray.cluster_resources().get("CPU", 1)))
    rows = [{"number": number, "path": os.fsencode(item.path)} for number, item in enumerate(todo)]
    files = ray.data.from_items(rows, override_num_blocks=min(PIECES, ceil(len(rows) / (batch * BATCHES))))
    read = files.map_batches(_read, batch_size=batch, num_cpus=0, label_selector=here)
    arguments = {"parcel": ray.put(parcel), "batch": batch, "picture": picture}
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most)
    answered = read.map_batches(_Runner, batch_size=batch, num_cpus=1, compute=pool, fn_constructor_kwargs=arguments)
    try:
        yield from answered.iter_rows()
    except RayError as error:
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), str(error))
        raise PoolExportError(f"the cluster gave up: {reason}; run it again, and it goes on where it was") from error


def _read(rows: Rows) -> Rows:
    """Files of the machine where the command runs; what cannot be read has a reason."""
    contents, reasons = [], []
    for path in rows["path"]:
        try:
            contents.append(Path(os.fsdecode(path)).read_bytes())
            reasons.append("")
        except OSError as error:
            contents.append(b"")
            reasons.append(f"{os.fsdecode(path)} cannot be read: {error.strerror or error}")
    return {**rows, "content": np.array(contents, object), "reason": np.array(reasons, object)}


class _Runner:
    """A model on a processor of the cluster."""

    def __init__(self, parcel: Any, batch: int, picture: Picture) -> None:
        import ray

        with tempfile.TemporaryDirectory(prefix="poolexport-run-") as folder:
            self._worker = Worker(unpacked(ray.get(parcel), Path(folder)), batch, picture)

    def __call__(self, rows: Rows) -> Rows:
        reasons = [str(reason) for reason in rows["reason"]]
        group = [
            Item(Path(os.fsdecode(path)), PurePosixPath(str(place)), content)
            for place, (path, content) in enumerate(zip(rows["path"], rows["content"]))
            if not reasons[place]
        ]
        kept = _Kept()
        failed = {failure.path: failure.reason for failure in self._worker.answer(group, kept)}
        for item in group:
            reasons[int(item.answer.name)] = failed.get(item.path, "")
        answers = [kept.archives.get(place, b"") for place in range(len(reasons))]
        return {"number": rows["number"], "answer": np.array(answers, object), "reason": np.array(reasons, object)}


class _Kept:
    """Answers as the bytes of their archives, by the place of their file in a batch."""

    def __init__(self) -> None:
        self.archives: dict[int, bytes] = {}

    def write(self, answer: PurePosixPath, arrays: Mapping[str, np.ndarray]) -> None:
        """Make the archive."""
        file = BytesIO()
        archive(file, arrays)
        self.archives[int(answer.name)] = file.getvalue()
