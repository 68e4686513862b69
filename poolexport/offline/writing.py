"""Answers on disk: each written aside and renamed, beside a note of which model and options they came from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np

from poolexport.disk import replace
from poolexport.errors import InputError, OutputError
from poolexport.offline.items import Item

#: Says which run the answers in a folder belong to.
NOTE = "run.json"
FAILED = "failed.json"


class Writer(Protocol):
    """What takes answers."""

    def write(self, answer: PurePosixPath, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the arrays that answer a file."""


class Answers:
    """A folder with one ``.npz`` for every input file.

    Args:
        folder: created where there is none.
        origin: what the answers depend on; a folder of answers with another origin is refused.
        force: forget the answers of an earlier run instead.

    Raises:
        OutputError: the folder holds something else, or answers of another origin, or cannot be written.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], *, force: bool) -> None:
        self.folder = folder
        self._fresh = force
        note = folder / NOTE
        text = json.dumps(origin, indent=1, sort_keys=True) + "\n"
        try:
            if folder.exists() and not folder.is_dir():
                raise OutputError(f"{folder} is a file; name a folder for the answers")
            if folder.is_dir() and any(folder.iterdir()):
                if not note.is_file():
                    raise OutputError(f"{folder} holds something else than answers; name another folder")
                if note.read_text() != text and not force:
                    raise OutputError(
                        f"{folder} holds answers of another model or other options; name another folder, or replace "
                        "them with --force (force=True)"
                    )
            folder.mkdir(parents=True, exist_ok=True)
            replace(note, text.encode())
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error

    def place(self, answer: PurePosixPath) -> Path:
        return self.folder / f"{answer}.npz"

    def has(self, item: Item) -> bool:
        """Whether an earlier run with the same origin wrote this answer, and its input is no newer."""
        place = self.place(item.answer)
        return not self._fresh and place.is_file() and place.stat().st_mtime_ns >= item.path.stat().st_mtime_ns

    def write(self, answer: PurePosixPath, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises OutputError where the disk is full or the folder is gone."""
        self._replace(answer, lambda file: archive(file, arrays))

    def keep(self, answer: PurePosixPath, content: bytes) -> None:
        """Write an archive that was made elsewhere; raises as ``write`` does."""
        self._replace(answer, lambda file: file.write(content))

    def _replace(self, answer: PurePosixPath, write: Callable[[BinaryIO], Any]) -> None:
        place = self.place(answer)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            aside = place.with_name(f".{place.name}.{os.getpid()}.partial")
            try:
                with aside.open("wb") as file:
                    write(file)
                aside.replace(place)
            finally:
                aside.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{place} cannot be written: {error.strerror or error}") from error

    def failures(self, found: Mapping[str, str]) -> None:
        """Keep the reasons of what was skipped beside the answers; an empty list removes an older one."""
        if found:
            replace(self.folder / FAILED, (json.dumps(dict(found), indent=1) + "\n").encode())
        else:
            (self.folder / FAILED).unlink(missing_ok=True)


def archive(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an ``.npz``."""
    np.savez(file, allow_pickle=False, **arrays)


def require_names(names: list[str]) -> None:
    """Outputs go into archives under their names; numpy takes a parameter of its own for one of these."""
    taken = {"file", "allow_pickle"} & set(names)
    if taken:
        raise InputError(
            f"an output is called {taken.pop()!r}, which no archive can hold; export it under another name"
        )
