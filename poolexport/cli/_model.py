"""MODULE:FACTORY and --weights: from what the user typed to a model with its weights, in eval mode."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pickle
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from poolexport.cli import _show
from poolexport.errors import InputError, ModeError

if TYPE_CHECKING:
    from torch import Tensor, nn

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
#: Where training scripts keep the weights inside a checkpoint.
NESTED = ("state_dict", "model_state_dict", "model")
#: What wrappers put before the name of every weight.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: Code that the user did not write.
OURS = ("poolexport", "poolexport_ops", "poolexport_models")
LIBRARIES = (*(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")), "<frozen")
SAVE = "save model.state_dict() with torch.save, or convert it to .safetensors"

argument = click.argument("factory", metavar="MODULE:FACTORY")
weights_option = click.option(
    "--weights", metavar="FILE", type=click.Path(path_type=Path), help="A state dict: .safetensors, or .pt/.pth/.bin."
)


@dataclass(frozen=True)
class Loaded:
    """A model, and where its weights come from."""

    model: nn.Module
    weights: str


def split(spec: str) -> tuple[str, str]:
    """MODULE and FACTORY.

    Raises:
        InputError: one of them is missing.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise InputError(f"{spec!r} does not name a model; write MODULE:FACTORY, as in net.py:build")
    return place, name


def load(spec: str, weights: Path | None) -> Loaded:
    """The model that MODULE:FACTORY makes, with the weights in it, in eval mode.

    Whatever the factory draws, it draws the same at every call, so that a model without trained weights can be
    verified.

    Raises:
        InputError: it cannot be imported, made or filled.
    """
    from poolexport.pipeline._state import random_states_kept

    place, name = split(spec)
    with random_states_kept(0):
        model = _made(_found(_imported(place), place, name), spec)
    origin = "as the factory made them"
    if weights is not None:
        state, inside = _state_dict(weights)
        stripped = _fill(model, state, weights, spec)
        origin = (
            str(weights) + (f", under {inside!r}" if inside else "") + (f", without {stripped!r}" if stripped else "")
        )
    # nobody else could: the model was made a moment ago, in training mode
    model.eval()
    modules = model.named_modules()
    training = [f"{at or 'the model'} ({type(child).__name__})" for at, child in modules if child.training]
    if training:
        raise ModeError(
            f"{_show.listed(training)} of {spec} stays in training mode after eval(), as an overridden train() would "
            "keep it; a file can only hold what the model does in eval mode, so let eval() reach every module"
        )
    return Loaded(model, origin)


def _imported(place: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py" or len(path.parts) > 1
    if is_file and not path.is_file():
        siblings = [str(path.with_name(file.name)) for file in path.parent.glob("*.py")]
        raise InputError(f"there is no file {path}{_show.near(str(path), siblings)}")
    for folder in (os.getcwd(), str(path.parent.resolve())):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        return _executed(path) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        # the module itself, or a package that it should be in, but not one that it imports
        absent = isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}.")
        if absent and not is_file:
            beside = "" if "." in place else _show.near(place, [file.stem for file in Path().glob("*.py")])
            raise InputError(f"there is no module {place!r}, neither in this folder nor installed{beside}") from error
        raise InputError(f"{place} could not be imported: {_told(error)}") from error


def _executed(path: Path) -> ModuleType:
    # a file may have the name of an installed module; it must not take its place
    name = path.stem
    while name in sys.modules:
        name += "_"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; give a .py file or the name of a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _found(module: ModuleType, place: str, name: str) -> Any:
    from torch import nn

    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [
                key
                for key, value in getattr(found, "__dict__", {}).items()
                if not key.startswith("_")
                and (isinstance(value, nn.Module) or getattr(value, "__module__", "") == module.__name__)
            ]
            raise InputError(f"{place} has no {name!r}{_show.near(part, offered)}")
        found = getattr(found, part)
    return found


def _made(found: Any, spec: str) -> nn.Module:
    from torch import nn

    wanted = "FACTORY must be a torch.nn.Module, or a callable without arguments that returns one"
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(f"{spec} is {_kind(found)}; {wanted}")
    needed = _needed(found)
    if needed:
        raise InputError(
            f"{spec} needs arguments ({', '.join(needed)}); give a function without arguments that passes them"
        )
    try:
        model = found()
    except (Exception, SystemExit) as error:
        raise InputError(f"{spec} raised {_told(error)}") from error
    if not isinstance(model, nn.Module):
        hint = "has it no return statement?" if model is None else wanted
        raise InputError(f"{spec} returned {_kind(model)} instead of a torch.nn.Module; {hint}")
    return model


def _needed(factory: Any) -> list[str]:
    """Names of the arguments that have no default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    count = f" of {len(value)} entries" if isinstance(value, (dict, list, tuple)) else ""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}{count}"


def _told(error: BaseException) -> str:
    """The error's type and first line, with the line of the user's own code that it comes from."""
    if isinstance(error, SystemExit):
        told = f"SystemExit: it calls exit({'' if error.code is None else repr(error.code)})"
    elif isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or '').name}, line {error.lineno})"
    else:
        lines = str(error).strip().splitlines()
        told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    own = [
        (file, line) for file, line, package in _frames(error) if package not in OURS and not file.startswith(LIBRARIES)
    ]
    return f"{told} ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else told


def _frames(error: BaseException) -> Iterator[tuple[str, int, str]]:
    """File, line and top-level package of every frame that the error passed through."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield frame.f_code.co_filename, line, str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _state_dict(path: Path) -> tuple[Mapping[str, Any], str]:
    """The state dict in a file, and the key it was found under."""
    if not path.is_file():
        siblings = [str(path.with_name(file.name)) for file in path.parent.glob(f"*{path.suffix}") if path.suffix]
        raise InputError(f"there is no file of weights at {path}{_show.near(str(path), siblings)}")
    if path.suffix == ".safetensors":
        return _safetensors(path), ""
    if path.suffix not in PICKLES:
        raise InputError(
            f"{path} is not known to hold weights; give a file that ends in .safetensors, .pt, .pth or .bin"
        )
    content = _unpickled(path)
    inside = next((key for key in NESTED if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)), "")
    state = content[inside] if inside else content
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds {_kind(state)} instead of a state dict; {SAVE}")
    if not any(hasattr(value, "shape") for value in state.values()):
        raise InputError(
            f"{path} holds no weights, only {_show.listed([str(key) for key in state]) or 'nothing'}; {SAVE}"
        )
    return state, inside


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file: {_show.one_line(str(error))}; copy it again"
        ) from error


def _unpickled(path: Path) -> Any:
    """What torch.save wrote; nothing that the file names is ever run."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"run code that it names ({named[1]})" if named else "run code that it names"
        raise InputError(
            f"{path} holds Python objects, not only weights: reading it would {what}, so it is refused; {SAVE}"
        ) from error
    except Exception as error:
        if "TorchScript" in str(error):
            raise InputError(f"{path} is a TorchScript archive, a program and not only weights; {SAVE}") from error
        reason = str(error).partition(". ")[0].splitlines()[:1]
        detail = f": {reason[0]}" if isinstance(error, RuntimeError) and reason else ""
        raise InputError(f"{path} is damaged, or torch.save did not write it{detail}; copy it again") from error


def _fill(model: nn.Module, state: Mapping[str, Any], path: Path, spec: str) -> str:
    """Load the weights, every one and no other; returns the prefix that had to be taken off their names."""
    wanted = model.state_dict()
    prefix = next((p for p in PREFIXES if {f"{p}{key}" for key in wanted} == set(state)), "")
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    reshaped = [
        f"{key} is {_show.shape(state[key].shape)} instead of {_show.shape(wanted[key].shape)}"
        for key in wanted
        if key in state and hasattr(wanted[key], "shape") and getattr(state[key], "shape", None) != wanted[key].shape
    ]
    faults = [
        f"{len(keys)} {what}: {_show.listed(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if faults:
        raise InputError(
            f"the weights in {path} do not fit {spec}, which takes every weight it has and no other: "
            f"{'; '.join(faults)}"
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit {spec}: {_show.one_line(str(error))}") from error
    return prefix
