"""Writing whole or not at all: everything is made beside its target and renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poolexport.errors import OutputError

__all__ = ["move", "replace", "require_folder", "staged"]


def require_folder(target: Path) -> None:
    """Raise an OutputError where the folder that ``target`` is to lie in is not there or cannot be written."""
    folder = target.absolute().parent
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder; choose another path")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {folder} cannot be written; check its permissions")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder next to the target that is gone afterwards, whatever happens."""
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
        yield staging
    except OSError as error:
        raise OutputError(
            f"{target} could not be written: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename into place; an older target is set aside first and comes back if the rename fails."""
    if source.is_dir():
        source.chmod(0o755)
    if not target.exists() or target.is_file():
        source.replace(target)
        return
    aside = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        aside.rename(target)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def replace(place: Path, content: bytes) -> None:
    """Write one small file; where there is no room for it, what was there stays, and the OSError is passed on."""
    aside = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        aside.write_bytes(content)
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)
