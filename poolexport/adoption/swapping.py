"""Modules of a model replaced by others, named by their paths."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import nn

from poolexport.adoption import _slots
from poolexport.errors import InputError


def swap(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a model with the named modules replaced.

    A replacement takes over the training or eval mode and the hooks of what was there. Everything else in the copy is
    as it was: weights, buffers, and what is shared.

    Args:
        model: it is not changed.
        replacements: by dotted path, the new module; it is copied, and keeps its type and device. A module that sits
            at several paths is replaced at all of them, by one module given for each.

    Returns:
        The copy.

    Raises:
        InputError: there is no module of that name, what is given is no module, or the module is shared with another
            path or held by something besides the tree of modules.

    Example:
        >>> import torch, poolexport
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2)).eval()
        >>> type(poolexport.swap(model, {"1": poolexport.nn.SoftPool2d(2)})[1]).__name__
        'SoftPool2d'
    """
    if not isinstance(replacements, Mapping):
        raise InputError(f"replacements must be a mapping of paths to modules, got {type(replacements).__name__}")
    for path, new in replacements.items():
        if not isinstance(new, nn.Module):
            raise InputError(f"{path!r} must be replaced by a torch.nn.Module, got {_kind(new)}")
    copied, others = _slots.duplicate(model, replacements)
    found = list(_slots.paths(copied))
    known = dict(found)
    for path in replacements:
        _require_path(path, known)
    for path in replacements:
        _require_open(path, known)
        above = [other for other in replacements if path.startswith(f"{other}.")]
        if above:
            raise InputError(f"{path} lies inside of {above[0]}, which is replaced as well; name one of them")
        _require_all_places(path, [other for other, module in found if module is known[path]], others)
        _slots.require_only_in_the_tree(copied, path, known[path])
    for path, new in others.items():
        copied = _slots.put(copied, known[path], new)
    return copied


def _require_path(path: object, known: Mapping[str, nn.Module]) -> None:
    if path == "":
        raise InputError("'' is the model itself; use the new module in its place")
    if path not in known:
        names = [name for name in known if name]
        near = difflib.get_close_matches(str(path), names, 3, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there is {', '.join(names[:8]) or 'none at all'}"
        raise InputError(f"the model has no module at {path!r}; {hint}")


def _require_open(path: str, known: Mapping[str, nn.Module]) -> None:
    for place, module in known.items():
        if isinstance(module, torch.jit.ScriptModule) and path.startswith(f"{place}."):
            raise InputError(f"{path} lies inside of {place}, which is {_slots.COMPILED}")


def _require_all_places(path: str, places: list[str], others: Mapping[str, nn.Module]) -> None:
    """A module in several places is one module, and has to stay one."""
    for place in places:
        if others.get(place) is not others[path]:
            raise InputError(
                f"the module at {path} is also the one at {place}: it is shared, or lies in a shared module; give one "
                f"and the same replacement for {' and '.join(places)}"
            )


def _kind(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}; make one, as in {value.__name__}(2)"
    return type(value).__name__
