"""Ways of running a file by the names that people give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from poolexport.errors import InputError
from poolexport.runtime.environments import NEWEST, environment
from poolexport.runtime.others import OpenVINO, Reference, is_installed
from poolexport.runtime.releases import OtherRelease
from poolexport.runtime.ways import Way

INSTALLED = "installed"


def runtimes(names: str | Sequence[str], progress: Callable[[str, int, int], None] | None = None) -> tuple[Way, ...]:
    """Further ways of running a file, for the ``variants`` of ``poolexport.verify``.

    Args:
        names: in a list, or in one string with commas. Releases of onnxruntime ("1.25", "1.25.1" or "newest"), each of
            which gets an environment in the user's cache; "reference" for ``onnx.reference``; "openvino"; "installed"
            for those of these two that are.
        progress: called with ("environment", done, total).

    Returns:
        The ways, without those that are named twice.

    Raises:
        InputError: a name is not known, a package is not installed, or a release cannot be had.

    Example:
        >>> [way.runtime for way in runtimes("reference")]
        ['onnx.reference']
    """
    words = [word.strip() for word in (names.split(",") if isinstance(names, str) else names)]
    found: list[Way] = []
    for done, word in enumerate(words):
        if progress is not None:
            progress("environment", done, len(words))
        found += _named(word)
    return tuple(dict.fromkeys(found))


def _named(word: str) -> list[Way]:
    if word == INSTALLED:
        return [Reference(), *([OpenVINO()] if is_installed("openvino") else [])]
    if word == "reference":
        return [Reference()]
    if word == "openvino":
        if not is_installed("openvino"):
            raise InputError("running the file with OpenVINO needs the package 'openvino': pip install openvino")
        return [OpenVINO()]
    if word == NEWEST or word[:1].isdigit():
        return [OtherRelease(environment(word))]
    raise InputError(
        f"{word!r} is no runtime; give releases of onnxruntime, as 1.25 or {NEWEST}, reference, openvino or {INSTALLED}"
    )
