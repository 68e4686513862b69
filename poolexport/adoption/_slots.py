"""Where the modules of a model sit, and putting others in their places."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from poolexport.errors import InputError
from poolexport.pipeline._run import computed_weights

#: Where a module keeps what is to be called before and after it.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


COMPILED = "compiled TorchScript, in which nothing can be replaced; give the module it was made from"


def duplicate(model: nn.Module, others: Mapping[str, nn.Module] | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Copies of a model and of further modules; what they share is shared among the copies.

    Raises:
        InputError: the model is no module, is compiled, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"the model is {COMPILED}")
    try:
        return copy.deepcopy((model, dict(others or {})), computed_weights(model))
    except Exception as error:
        raise InputError(
            f"the model cannot be copied, which keeps it from being changed: {error}; clear what it caches, or load "
            "its state into a fresh model"
        ) from error


def paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every path to every module, so that one that sits in two places comes twice; loops are walked once."""

    def walk(module: nn.Module, path: str, above: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
        yield path, module
        for name, child in module._modules.items():
            if child is not None and id(child) not in above:
                yield from walk(child, f"{path}.{name}" if path else name, (*above, id(child)))

    yield from walk(model, "", (id(model),))


def put(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The model with one module in the place, or in all the places, of another; mode and hooks are carried over."""
    new.train(old.training)
    for name in HOOKS:
        if getattr(old, name, None):
            getattr(new, name).update(getattr(old, name))
    if new._is_full_backward_hook is None:
        new._is_full_backward_hook = old._is_full_backward_hook
    if old is model:
        return new
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return model


def require_only_in_the_tree(model: nn.Module, path: str, module: nn.Module) -> None:
    """Raise an InputError where something besides the tree of modules holds the module, and would go on using it."""
    for where, holder in model.named_modules():
        for name, value in vars(holder).items():
            if name in ("_modules", "_parameters", "_buffers") or name in HOOKS or value is None:
                continue
            if _holds(value, module, set()):
                place = f"{where}.{name}" if where else name
                raise InputError(
                    f"{path} ({type(module).__name__}) is also held by the plain attribute {place}, which would go on "
                    "using it; use nn.ModuleList or nn.ModuleDict there, or take it out"
                )


def _holds(value: Any, module: nn.Module, seen: set[int]) -> bool:
    """Whether a module is to be reached through lists, mappings, plain objects, methods and partial calls."""
    if value is module:
        return True
    if id(value) in seen or isinstance(value, (nn.Module, type, torch.Tensor, str, bytes, int, float)):
        return False
    seen.add(id(value))
    if isinstance(value, Mapping):
        inner = [*value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        inner = [*value]
    elif isinstance(value, MethodType):
        inner = [value.__self__]
    elif isinstance(value, partial):
        inner = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, (ModuleType, FunctionType)):
        return False
    else:
        inner = [*getattr(value, "__dict__", {}).values()]
    return any(_holds(entry, module, seen) for entry in inner)


def require_no_inner_hooks(path: str, module: nn.Module) -> None:
    """Raise an InputError where a module inside of the module has hooks, which would be lost with it."""
    for inner, part in module.named_modules():
        if inner and any(getattr(part, name, None) for name in HOOKS):
            raise InputError(
                f"{path}.{inner} has hooks, which would be lost: {path} ({type(module).__name__}) is replaced as a "
                f"whole; remove them, or leave the layer alone"
            )


def require_weights_of_its_own(model: nn.Module, path: str, old: nn.Module, new: nn.Module) -> None:
    """Raise an InputError where a weight that another module shares would be copied, and no longer be shared."""
    lost = {id(p) for p in old.parameters()} - {id(p) for p in new.parameters()}
    inside = {id(part) for part in old.modules()}
    for where, other in model.named_modules():
        tied = [name for name, p in other._parameters.items() if id(p) in lost]
        if id(other) not in inside and tied:
            raise InputError(
                f"{path} ({type(old).__name__}) shares a weight with {where or 'the model'}.{tied[0]}, and cannot do "
                "so as our layer, which holds it in another form; leave the layer alone"
            )
