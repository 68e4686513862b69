"""Which functions a model carries, read without its weights: a file of many gigabytes takes no longer than a small one.

An .onnx file is a protobuf message: fields of (number, type, content). The graph, where the weights are, is stepped
over by its length; functions are field 25, with their names in fields 1 and 10.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import BinaryIO, TypeAlias

from poolexport.bundle import model_path

Source: TypeAlias = "str | os.PathLike[str] | bytes"

#: Fields of ModelProto and FunctionProto.
FUNCTIONS, NAME, DOMAIN = 25, 1, 10


def functions(source: Source) -> list[tuple[str, str]]:
    """Domain and name of every function; what is no protobuf message has none.

    Args:
        source: a bundle folder, an .onnx file, or the bytes of a model.

    Raises:
        InputError: there is no such file.
    """
    if isinstance(source, bytes):
        return _functions(io.BytesIO(source))
    with model_path(source).open("rb") as file:
        return _functions(file)


def _functions(file: BinaryIO) -> list[tuple[str, str]]:
    found = []
    try:
        for body in _fields(file, FUNCTIONS):
            names = {NAME: "", DOMAIN: ""}
            for number in names:
                for text in _fields(io.BytesIO(body), number):
                    names[number] = text.decode()
            found.append((names[DOMAIN], names[NAME]))
    except (ValueError, EOFError):
        return []  # whoever opens the model says what is wrong with it
    return found


def _fields(file: BinaryIO, wanted: int) -> Iterator[bytes]:
    """The contents of all fields of a number that have a length."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    while file.tell() < end:
        number, kind = divmod(_varint(file), 8)
        if kind == 0:
            _varint(file)
        elif kind == 2:
            length = _varint(file)
            if length > end - file.tell():
                raise EOFError
            if number == wanted:
                yield file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
        elif kind in (1, 5):
            file.seek(8 if kind == 1 else 4, os.SEEK_CUR)
        else:
            raise ValueError(kind)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number of more than 64 bits")
