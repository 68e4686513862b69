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
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from poolexport.cli import _show
from poolexport.errors import InputError, ModeError

if TYPE_CHECKING:
    import torch
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
    "--weights",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A state dict: .safetensors, or .pt/.pth/.bin/.ckpt/.tar.",
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


def load(spec: str, weights: Path | None, dtype: torch.dtype) -> Loaded:
    """The model that MODULE:FACTORY makes, of this type, with the weights in it, in eval mode.

    Whatever the factory draws from the generators of torch, numpy and Python, it draws the same at every call, so that
    a model without trained weights can be verified.

    Raises:
        InputError: it cannot be imported, made or filled.
    """
    from poolexport.pipeline._state import random_states_kept

    place, name = split(spec)
    with random_states_kept(0):
        model = _made(_found(_imported(place, name), place, name), spec)
    # before the weights come in, which would otherwise pass through the type that the factory chose
    model.to(dtype)
    origin = "as the factory made them"
    if weights is not None:
        state, inside = _state_dict(weights)
        stripped, rounded = _fill(model, state, weights, spec)
        origin = ", ".join(
            (
                str(weights),
                *([f"under {inside!r}"] if inside else []),
                *([f"without {stripped!r}"] if stripped else []),
                *([f"rounded from {rounded}"] if rounded else []),
            )
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


def _imported(place: str, name: str) -> ModuleType:
    path = Path(place)
    is_file = path.suffix == ".py" or place.startswith(".") or len(path.parts) > 1
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
        dotted = _dotted(path) if is_file and "relative import" in str(error) else ""
        hint = f"; it is part of a package, write {dotted}:{name}" if dotted else ""
        raise InputError(f"{place} could not be imported: {_told(error)}{hint}") from error


def _dotted(path: Path) -> str:
    """The name by which a file in a folder below this one is imported; empty where it has none."""
    try:
        parts = path.resolve().relative_to(Path.cwd().resolve()).with_suffix("").parts
    except ValueError:
        return ""
    return ".".join(parts) if len(parts) > 1 and all(part.isidentifier() for part in parts) else ""


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
        return _plain(found, spec)
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
    if inspect.iscoroutine(model):
        model.close()
        raise InputError(f"{spec} is an async function, which nobody awaits here; give a plain one")
    if not isinstance(model, nn.Module):
        hint = "has it no return statement?" if model is None else wanted
        raise InputError(f"{spec} returned {_kind(model)} instead of a torch.nn.Module; {hint}")
    return _plain(model, spec)


def _plain(model: nn.Module, spec: str) -> nn.Module:
    """The model, where it is one that can be looked into and copied."""
    import torch

    scripted = [at or "the model" for at, child in model.named_modules() if isinstance(child, torch.jit.ScriptModule)]
    if scripted:
        raise InputError(
            f"{_show.listed(scripted)} of {spec} is TorchScript, a compiled program that cannot be looked into; give "
            "the Python module that it was made from, without torch.jit"
        )
    lazy = [at for at, weight in model.named_parameters() if torch.nn.parameter.is_lazy(weight)]
    if lazy:
        raise InputError(
            f"{_show.listed(lazy)} of {spec} has no shape before the first input; call the model once in the factory"
        )
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
            f"{path} is not known to hold weights; give a file that ends in "
            f"{', '.join(('.safetensors', *PICKLES[:-1]))} or {PICKLES[-1]}"
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


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as the format says: the length of a JSON object, and that object."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _unpickled(path: Path) -> Any:
    """What torch.save wrote; nothing that the file names is ever run."""
    import torch

    if _is_safetensors(path):
        raise InputError(f"{path} is a safetensors file; give it a name that ends in .safetensors")
    _require_honest(path)
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


def _require_honest(path: Path) -> None:
    """Raise where an archive would unfold to more than it is: torch.save does not compress, and a bomb must."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if re.search(r"(^|/)(data\.pkl$|data/)", entry.filename)]
    except (OSError, zipfile.BadZipFile):
        return
    held, there = sum(entry.file_size for entry in entries), path.stat().st_size
    if held > there:
        raise InputError(f"{path} has {there} bytes and says that {held} are packed in it, which torch.save never does")


def _fill(model: nn.Module, state: Mapping[str, Any], path: Path, spec: str) -> tuple[str, str]:
    """Load the weights, every one and no other.

    Returns:
        The prefix that had to be taken off their names, and the types between which values were rounded.
    """
    import torch

    wanted = model.state_dict()
    unnamed = [key for key in state if not isinstance(key, str)]
    if unnamed:
        raise InputError(f"{path} names a weight {unnamed[0]!r}, {_kind(unnamed[0])}, instead of a string; {SAVE}")
    prefix = next((p for p in PREFIXES if {f"{p}{key}" for key in wanted} == set(state)), "")
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    pairs = {key: (state[key], wanted[key]) for key in wanted if key in state and torch.is_tensor(wanted[key])}
    tensors = {key: pair for key, pair in pairs.items() if torch.is_tensor(pair[0])}
    faults = [
        f"{len(found)} {what}: {_show.listed(found)}"
        for what, found in (
            ("missing", [key for key in wanted if key not in state]),
            ("unexpected", [key for key in state if key not in wanted]),
            ("not a tensor", [f"{key} is {_kind(new)}" for key, (new, _) in pairs.items() if key not in tensors]),
            (
                "of another shape",
                [
                    f"{key} is {_show.shape(new.shape)} instead of {_show.shape(old.shape)}"
                    for key, (new, old) in tensors.items()
                    if new.shape != old.shape
                ],
            ),
            (
                "of another kind",
                [
                    f"{key} holds {_name(new.dtype)} instead of {_name(old.dtype)}"
                    for key, (new, old) in tensors.items()
                    if (new.is_complex(), new.is_floating_point()) != (old.is_complex(), old.is_floating_point())
                ],
            ),
        )
        if found
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
    rounded = dict.fromkeys(
        f"{_name(new.dtype)} to {_name(old.dtype)}"
        for new, old in tensors.values()
        if old.is_floating_point() and _is_finer(new.dtype, old.dtype)
    )
    return prefix, " and ".join(rounded)


def _is_finer(one: torch.dtype, other: torch.dtype) -> bool:
    """Whether a type has numbers that the other one has to round."""
    import torch

    a, b = torch.finfo(one), torch.finfo(other)
    return a.eps < b.eps or a.max > b.max


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
