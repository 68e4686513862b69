"""Stage 1: judge the model, copy it, and settle what its inputs are.

Nothing that is random, half-trained or unable to run goes any further.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poolexport import catalog
from poolexport.errors import InputError, ModeError, RandomnessError
from poolexport.pipeline._state import random_states, random_states_kept, tensors_of

#: Versions of the standard operators that can be asked for, and those that torch's exporter writes by itself.
OPSETS = range(17, 29)
WRITTEN = range(18, 24)
DEFAULT_OPSET = 20

#: Inputs and outputs of every module call by dotted path, in the order in which the calls end.
Record = dict[str, tuple[list[Tensor], list[Tensor]]]
DynamicShapes = Mapping[Any, Any] | Sequence[Any] | None


@dataclass(frozen=True)
class Prepared:
    """A model ready for export.

    Args:
        model: a copy, in eval mode, safe to trace.
        original: the model as it was given.
        args: example inputs; axes that are to be dynamic have length 2 or more.
        input_names: one per input.
        output_names: one per output.
        axes: for every input, the names of its dynamic axes by axis number.
        opset: version of the standard operators.
        inference_rules: for every layer that is random in training, the fixed rule it follows, by dotted path.
        layers: method name of every pooling layer of ours, by dotted path.
    """

    model: nn.Module
    original: nn.Module
    args: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    axes: tuple[Mapping[int, str], ...]
    opset: int
    inference_rules: Mapping[str, str]
    layers: Mapping[str, str]


def prepare(
    model: nn.Module,
    args: Tensor | Sequence[Tensor],
    *,
    dynamic_shapes: DynamicShapes = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Prepared:
    """Check that a model can be exported, and copy it.

    Raises:
        ModeError: a module is in training mode.
        RandomnessError: two runs of the model on one input differ.
        InputError: anything else that cannot be used.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is compiled TorchScript, which cannot be examined; give the module it was made from"
        )
    examples = _examples(args)
    opset = _opset(opset)
    require_eval(model)
    names = _input_names(model, examples, input_names)
    axes = _axes(names, examples, dynamic_shapes)
    duplicate = copy_of(model)
    called = require_repeatable(duplicate, examples)
    examples = tuple(_traceable(x, named) for x, named in zip(examples, axes))
    count = len(tensors_of(run(duplicate, examples)))
    if count == 0:
        raise InputError("the model returns no tensor; its forward must return a tensor or a structure of tensors")
    outputs = tuple(output_names or (["output"] if count == 1 else [f"output_{i}" for i in range(count)]))
    if len(outputs) != count:
        raise InputError(f"the model has {count} outputs, but {len(outputs)} output names were given: {list(outputs)}")
    taken = [*names, *outputs]
    if len(set(taken)) != len(taken):
        raise InputError(f"input and output names must differ, got {taken}")
    found = {path: catalog.method_of(module) for path, module in model.named_modules() if path in called}
    ours = {path or "(the model itself)": method for path, method in found.items() if method}
    modules = dict(model.named_modules())
    return Prepared(
        model=duplicate,
        original=model,
        args=examples,
        input_names=names,
        output_names=outputs,
        axes=axes,
        opset=opset,
        inference_rules={
            path: method.inference_rule(modules[path if path in modules else ""])
            for path, method in ours.items()
            if method.random
        },
        layers={path: method.name for path, method in ours.items()},
    )


def written(opset: int) -> int:
    """The opset to let torch write where ``opset`` is wanted."""
    return min(max(opset, WRITTEN.start), WRITTEN.stop - 1)


def require_eval(model: nn.Module) -> None:
    """Raise a ModeError naming every module that is in training mode."""
    training = [path for path, module in model.named_modules() if module.training]
    if not training:
        return
    if model.training:
        raise ModeError("the model is in training mode; call model.eval() before exporting it")
    kinds = dict(model.named_modules())
    listed = ", ".join(f"{path} ({type(kinds[path]).__name__})" for path in training[:5])
    more = f" and {len(training) - 5} more" if len(training) > 5 else ""
    raise ModeError(
        f"submodules in training mode although the model is in eval mode: {listed}{more}; "
        "call model.eval() on the whole model"
    )


def require_repeatable(model: nn.Module, args: Sequence[Tensor]) -> set[str]:
    """The dotted paths of the modules that are called.

    Raises:
        RandomnessError: a module answers one input in two ways; the first such module is named.
    """
    records = []
    for seed in (1, 1, 2, 3):
        with random_states_kept(seed), _recorded(model) as record:
            before = random_states()
            record[OUTPUT] = ([], _snapshot(run(model, args)))
            drawn = before != random_states()
        records.append(record)
    for other, cause, advice in (
        (records[1], "its answer depends on earlier calls", "a buffer must not change in eval mode"),
        (records[2], "it draws random numbers in eval mode", RANDOM_ADVICE),
        (records[3], "it draws random numbers in eval mode", RANDOM_ADVICE),
    ):
        culprit = _first_difference(records[0], other)
        if culprit is not None:
            kind = dict(model.named_modules()).get(culprit.partition(" (")[0])
            who = f"{culprit} ({type(kind).__name__})" if kind is not None and culprit else culprit
            raise RandomnessError(
                f"two eval() runs on the same input differ, first in {who or 'the model itself'}: {cause}; {advice}"
            )
    if drawn:
        raise RandomnessError(
            f"{_first_that_draws(model, args)} draws random numbers in eval mode, though these runs happened to agree; "
            f"{RANDOM_ADVICE}"
        )
    return {path.partition(" (")[0] for path in records[0]} - {OUTPUT}


OUTPUT = "the model's output"
RANDOM_ADVICE = "give the layer a fixed inference rule, or pass training=self.training"


def _first_that_draws(model: nn.Module, args: Sequence[Tensor]) -> str:
    """The innermost module during whose first call a random state moves."""
    entered: list[tuple[int, ...]] = []
    found: list[str] = []
    hooks = []
    for path, module in model.named_modules():

        def leave(module: nn.Module, _: Any, __: Any, path: str = path) -> None:
            if entered.pop() != random_states():
                found.append(f"{path} ({type(module).__name__})" if path else "the model itself")

        hooks.append(module.register_forward_pre_hook(lambda _, __: entered.append(random_states())))
        hooks.append(module.register_forward_hook(leave))
    try:
        with random_states_kept(1):
            run(model, args)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "the model itself"


def _first_difference(first: Record, other: Record) -> str | None:
    """The first module that answers the same input differently."""
    for path, (inputs, outputs) in first.items():
        if path in other and _same(inputs, other[path][0]) and not _same(outputs, other[path][1]):
            return path
    return None


def run(model: nn.Module, args: Sequence[Tensor]) -> Any:
    """Run the model without gradients; an error names the dotted path of the module that raised it."""
    entered: list[str] = []
    hooks = []
    for path, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, __, path=path: entered.append(path)))
        hooks.append(module.register_forward_hook(lambda _, __, ___: entered.__delitem__(-1)))
    try:
        with torch.no_grad():
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
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _recorded(model: nn.Module) -> Iterator[Record]:
    """Inputs and outputs of every module call, in the order in which the calls end."""
    record: Record = {}
    hooks = []
    for path, module in model.named_modules():

        def remember(_: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
            call = sum(1 for known in record if known.partition(" (")[0] == path)
            record[f"{path} (call {call + 1})" if call else path] = (_snapshot(inputs), _snapshot(output))

        hooks.append(module.register_forward_hook(remember))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def _snapshot(values: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tensors_of(values)]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x, y) if not x.is_floating_point() else _same_values(x, y)
        for x, y in zip(a, b)
    )


def _same_values(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all())


def copy_of(model: nn.Module) -> nn.Module:
    """A copy that may be run, traced and changed without touching the model."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise InputError(
            f"the model cannot be copied, which keeps the export from changing it: {error}; clear what it caches, or "
            "load its state into a fresh model"
        ) from error


def _examples(args: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    examples = (args,) if isinstance(args, Tensor) else tuple(args)
    if not examples or not all(isinstance(x, Tensor) for x in examples):
        found = [type(x).__name__ for x in examples]
        raise InputError(f"args must be a tensor or a sequence of tensors, got {found or 'nothing'}")
    return tuple(x.detach().clone() for x in examples)


def _opset(opset: int | None) -> int:
    chosen = DEFAULT_OPSET if opset is None else opset
    if chosen not in OPSETS:
        raise InputError(f"opset {chosen} is not supported; choose one from {OPSETS.start} to {OPSETS.stop - 1}")
    return chosen


def _input_names(model: nn.Module, args: Sequence[Tensor], given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        if len(given) != len(args):
            raise InputError(f"{len(args)} inputs, but {len(given)} input names were given: {list(given)}")
        return tuple(given)
    parameters = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(parameters) < len(args):
        parameters += [f"input_{i}" for i in range(len(parameters), len(args))]
    return tuple(parameters[: len(args)])


def _axes(names: Sequence[str], args: Sequence[Tensor], dynamic_shapes: DynamicShapes) -> tuple[Mapping[int, str], ...]:
    """The dynamic axes of every input, from any of the forms that torch.onnx.export takes."""
    if dynamic_shapes is None:
        return tuple({} for _ in args)
    if isinstance(dynamic_shapes, Mapping) and all(isinstance(key, int) for key in dynamic_shapes):
        dynamic_shapes = [dynamic_shapes]
    if isinstance(dynamic_shapes, Mapping):
        unknown = set(dynamic_shapes) - set(names)
        if unknown:
            raise InputError(f"dynamic_shapes names unknown inputs {sorted(unknown)}; the inputs are {list(names)}")
        dynamic_shapes = [dynamic_shapes.get(name) for name in names]
    if len(dynamic_shapes) != len(args):
        raise InputError(f"dynamic_shapes has {len(dynamic_shapes)} entries for {len(args)} inputs")
    result = []
    for name, x, shape in zip(names, args, dynamic_shapes):
        pairs = dict(enumerate(shape)) if isinstance(shape, (list, tuple)) else dict(shape or {})
        named = {int(axis): _axis_name(dim, name, axis) for axis, dim in pairs.items() if dim is not None}
        named = {axis: label for axis, label in named.items() if label}
        outside = [axis for axis in named if not 0 <= axis < x.dim()]
        if outside:
            raise InputError(
                f"input {name!r} has {x.dim()} axes of shape {tuple(x.shape)}; there is no axis {outside[0]}"
            )
        result.append(named)
    return tuple(result)


def _axis_name(dim: Any, name: str, axis: int) -> str:
    if isinstance(dim, str):
        return dim
    if isinstance(dim, int):
        return ""
    label = getattr(dim, "__name__", None)
    return label if isinstance(label, str) else f"{name}_{axis}"


def _traceable(x: Tensor, named: Mapping[int, str]) -> Tensor:
    """``x`` with every dynamic axis of length 1 doubled: the tracer takes a length of 1 for a constant."""
    for axis in named:
        if x.shape[axis] == 1:
            x = torch.cat([x, x], dim=axis)
        elif x.shape[axis] == 0:
            raise InputError(f"a dynamic axis needs an example length of at least 1, but axis {axis} has length 0")
    return x
