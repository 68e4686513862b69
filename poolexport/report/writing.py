"""Where reports go: a folder for all of them, or a file whose ending says which one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poolexport import disk
from poolexport.errors import InputError, OutputError
from poolexport.report.junit import junit
from poolexport.report.page import page, require
from poolexport.report.worst import Case

#: Names of the files in a folder, by their ending.
NAMES = {".html": "report.html", ".json": "report.json", ".xml": "report.xml"}


@dataclass(frozen=True)
class Target:
    """A file to write."""

    place: Path
    ending: str
    folder: bool


def targets(paths: Sequence[Path], *, force: bool) -> list[Target]:
    """The files that were asked for.

    Raises:
        InputError: an ending is not known.
        MissingExtraError: a page is asked for, and jinja2 is not installed.
        OutputError: a file is there already, or cannot be written.
    """
    found: list[Target] = []
    for path in paths:
        if path.suffix.lower() in NAMES and not path.is_dir():
            disk.require_folder(path)
            found.append(Target(path, path.suffix.lower(), False))
        elif re.fullmatch(r"\.[A-Za-z]{1,5}", path.suffix) and not path.is_dir():
            raise InputError(f"a report cannot end in {path.suffix}; choose {', '.join(NAMES)}, or a folder for all")
        elif path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file; give a folder, or a name that ends in {', '.join(NAMES)}")
        else:
            disk.require_folder(path / "report" if path.is_dir() else path)
            found += [Target(path / name, ending, True) for ending, name in NAMES.items()]
    taken = [str(target.place) for target in found if target.place.exists()]
    if taken and not force:
        raise OutputError(f"{', '.join(taken)}: there already; choose another name, or replace it with --force")
    places = [target.place.absolute() for target in found]
    twice = next((str(place) for place in places if places.count(place) > 1), None)
    if twice:
        raise InputError(f"{twice} is to be written twice; name every report once")
    if any(target.ending == ".html" for target in found):
        require()
    return found


def write(found: Sequence[Target], document: Mapping[str, Any], case: Case | None = None) -> list[Path]:
    """Write the report in every form that was asked for, each file whole or not at all.

    Raises:
        OutputError: a file cannot be written.
    """
    made = {ending: _made(ending, document, case) for ending in {target.ending for target in found}}
    for target in found:
        try:
            if target.folder:
                target.place.parent.mkdir(exist_ok=True)
            disk.replace(target.place, made[target.ending].encode())
        except OSError as error:
            raise OutputError(f"{target.place} could not be written: {error.strerror or error}") from error
    return [target.place for target in found]


def _made(ending: str, document: Mapping[str, Any], case: Case | None) -> str:
    if ending == ".html":
        return page(document, case)
    if ending == ".xml":
        return junit(document)
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
