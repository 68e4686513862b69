"""Running a model that belongs to somebody else: on a copy, without gradients, with errors that name a module."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from poolexport.errors import InputError


def run(model: nn.Module, args: Sequence[Tensor]) -> Any:
    """Run the model without gradients; an error names the dotted path of the module that raised it."""
    entered: list[str] = []
    try:
        with torch.no_grad(), entering(model) as entered:
            return model(*args)
    except InputError:
        raise
    except Exception as error:
        where = (
            f"{entered[-1]} ({type(model.get_submodule(entered[-1])).__name__})" if any(entered[-1:]) else "the model"
        )
        shapes = ", ".join("x".join(map(str, x.shape)) for x in args)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{where} failed on an input of shape {shapes}: {reason}") from error


@contextmanager
def entering(model: nn.Module) -> Iterator[list[str]]:
    """Dotted paths of the modules that are being run, outermost first; they stay where one of them fails."""
    entered: list[str] = []
    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, __, path=path: entered.append(path)))
        hooks.append(module.register_forward_hook(lambda _, __, ___: entered.__delitem__(-1)))
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def trace(model: nn.Module, args: Sequence[Tensor], shapes: Any) -> None:
    """Let torch trace the model as it does for an export, for those who watch."""
    with torch.no_grad():
        torch.export.export(model, tuple(args), dynamic_shapes=shapes, strict=False)


def computed_weights(model: nn.Module) -> dict[int, Any]:
    """What ``copy.deepcopy`` is to take for weights that it refuses to copy, by their ``id``.

    Weights that a hook computes anew at every call, as torch.nn.utils.weight_norm keeps them, know their history.
    """
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(value): value.detach().clone() for value in held if not value.is_leaf}


def copy_of(model: nn.Module, *, sharing: bool = False) -> nn.Module:
    """A copy that may be run, traced and changed without touching the model.

    Args:
        model: what is copied.
        sharing: the copy has the model's own parameters, which takes no memory; for a model that was seen to leave
            them alone, and a copy that is only run.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()} if sharing else {}
    try:
        return copy.deepcopy(model, computed_weights(model) | shared)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied, which keeps the export from changing it: {error}; clear what it caches, or "
            "load its state into a fresh model"
        ) from error
