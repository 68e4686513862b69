"""What there is to serve, as all processes of a server see it.

They share a folder. In it, ``state.json`` says what is to be served, with what was found out about it; each worker
opens that and writes the number of the state that it has reached.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from poolexport.bundle import MANIFEST, MODEL
from poolexport.disk import replace
from poolexport.errors import InputError
from poolexport.serve.check import tried
from poolexport.serve.config import Settings, cores
from poolexport.serve.facts import Facts

#: What models and versions may be called; they stand in addresses.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[0-9]{1,18}")
#: Seconds that the other workers may take to follow.
FOLLOWED = 10.0


@dataclass(frozen=True)
class Place:
    """Where a version of a model is on disk."""

    name: str
    version: str
    path: str


@dataclass(frozen=True)
class Entry:
    """What the state says about a version: whether it is served, why not, and what was found out about it."""

    place: Place
    ready: bool
    reason: str = ""
    facts: Facts | None = None
    #: How often it was loaded, so that a load of a changed file is a change.
    loads: int = 0


@dataclass(frozen=True)
class State:
    """Everything that there is to serve; ``number`` grows with every change."""

    number: int
    entries: tuple[Entry, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> State:
        fields = json.loads(text)
        entries = tuple(
            Entry(**{**e, "place": Place(**e["place"]), "facts": Facts(**e["facts"]) if e["facts"] else None})
            for e in fields["entries"]
        )
        return cls(fields["number"], entries)


def places(words: Sequence[str], repository: Path | None = None) -> list[Place]:
    """The models that were named on a command line and those in a repository folder.

    Args:
        words: each ``PATH``, ``NAME=PATH`` or ``NAME:VERSION=PATH``.
        repository: a folder of ``NAME/VERSION/model.onnx``, where each VERSION may be a bundle.

    Raises:
        InputError: a name cannot stand in an address, or is there twice.
    """
    found = []
    for word in words:
        title, equals, path = word.rpartition("=")
        name, _, version = title.partition(":")
        found.append(_place(name if equals else _stem(Path(path)), version or "1", path))
    found.extend(in_repository(repository) if repository else ())
    seen = set()
    for place in found:
        if (place.name, place.version) in seen:
            raise InputError(f"two models are {place.name}, version {place.version}; write NAME:VERSION=PATH for one")
        seen.add((place.name, place.version))
    return found


def _stem(path: Path) -> str:
    path = Path(os.path.abspath(path))
    return path.stem if path.suffix == ".onnx" else path.name


def _place(name: str, version: str, path: str | Path) -> Place:
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot be the name of a model: letters, digits, '.', '_' and '-'; write NAME={path}"
        )
    if not VERSION.fullmatch(version):
        raise InputError(f"{version!r} cannot be the version of a model; versions are whole numbers")
    return Place(name, version, os.path.abspath(path))


def in_repository(folder: Path) -> Iterator[Place]:
    """The models in a folder of ``NAME/VERSION/model.onnx``.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"there is no repository folder {folder}")
    for model in sorted(folder.iterdir()):
        for version in sorted(model.iterdir()) if model.is_dir() else ():
            if VERSION.fullmatch(version.name) and (version / MODEL).is_file():
                bundle = (version / MANIFEST).is_file()
                yield _place(model.name, version.name, version if bundle else version / MODEL)


class Store:
    """The folder that the processes of a server share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "state.json"

    def read(self) -> State:
        return State.from_json(self._file.read_text())

    def write(self, state: State) -> None:
        """Change the state.

        Raises:
            OSError: there is no room for it; it is as it was.
        """
        replace(self._file, state.to_json().encode())

    @property
    def stamp(self) -> tuple[int, int]:
        """Changes when the state does, also where clocks are coarse or set back."""
        found = self._file.stat()
        return found.st_ino, found.st_mtime_ns

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other processes from changing the state."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def reached(self, number: int) -> None:
        """Tell the others that this process serves the state of this number."""
        # on a full disk they are not told, and wait for as long as they do for a process that is busy
        with suppress(OSError):
            replace(self.folder / f"worker-{os.getpid()}", str(number).encode())

    def left(self) -> None:
        """Tell the others that this process serves nothing any more."""
        (self.folder / f"worker-{os.getpid()}").unlink(missing_ok=True)

    def wait(self, number: int) -> None:
        """Wait until all processes that live have reached a state."""
        until = time.monotonic() + FOLLOWED
        while time.monotonic() < until and any(self._behind(number)):
            time.sleep(0.02)

    def _behind(self, number: int) -> Iterator[bool]:
        for file in self.folder.glob("worker-*"):
            try:
                os.kill(int(file.name.rpartition("-")[2]), 0)
                yield int(file.read_text()) < number
            except ProcessLookupError:
                file.unlink(missing_ok=True)
            except (OSError, ValueError):
                continue


class Still(Store):
    """A state that nobody changes, of one process; it needs no folder."""

    stamp = (0, 1)

    def __init__(self, state: State) -> None:
        self._state = state

    def read(self) -> State:
        return self._state

    def reached(self, number: int) -> None:
        """There is nobody to tell."""


def first_state(found: Sequence[Place], settings: Settings) -> State:
    """Try every model, some of them at a time.

    Raises:
        InputError: one of them is refused.
    """
    with ThreadPoolExecutor(cores()) as pool:
        facts = list(pool.map(lambda place: tried(Path(place.path), settings.limits), found))
    return State(1, tuple(Entry(place, True, facts=fact, loads=1) for place, fact in zip(found, facts)))
