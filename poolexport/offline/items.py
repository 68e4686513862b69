"""Which files there are to run, and where their answers go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from poolexport.errors import InputError

ARRAYS = frozenset({".npy", ".npz"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True)
class Item:
    """A file to run, and what its answer is called, relative to the folder of answers and without an ending.

    ``content`` is what is in it, where it came from another machine.
    """

    path: Path
    answer: PurePosixPath
    content: bytes | None = None

    @property
    def source(self) -> Path | BytesIO:
        """What to read it from."""
        return self.path if self.content is None else BytesIO(self.content)

    @property
    def is_image(self) -> bool:
        return self.path.suffix.lower() in IMAGES


def items(inputs: Sequence[str | os.PathLike[str]], out: Path) -> list[Item]:
    """Every file in the order of its answer's name; folders are searched for arrays and images, ``out`` is not.

    Raises:
        InputError: there is no such file, it is of an unknown kind, or two answers would have one name.
    """
    found = [item for given in inputs for item in _of(Path(given), out.resolve())]
    if not found:
        raise InputError(f"there is nothing to run in {', '.join(str(given) for given in inputs)}")
    seen: dict[PurePosixPath, Path] = {}
    for item in found:
        other = seen.setdefault(item.answer, item.path)
        if other != item.path:
            raise InputError(f"the answers to {other} and {item.path} would have one name; run them into two folders")
    return sorted({item.answer: item for item in found}.values(), key=lambda item: str(item.answer))


def _of(path: Path, out: Path) -> Iterator[Item]:
    if path.is_dir():
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if (Path(folder) / name).resolve() != out)
            for name in files:
                file = Path(folder) / name
                if file.suffix.lower() in ARRAYS | IMAGES:
                    yield Item(file, PurePosixPath(file.relative_to(path).with_suffix("").as_posix()))
    elif not path.exists():
        raise InputError(f"there is no file at {path}")
    elif path.suffix.lower() not in ARRAYS | IMAGES:
        raise InputError(
            f"{path} is neither an array ({', '.join(sorted(ARRAYS))}) nor an image ({', '.join(sorted(IMAGES))})"
        )
    else:
        yield Item(path, PurePosixPath(path.stem))
