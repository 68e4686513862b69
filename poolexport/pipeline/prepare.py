"""Stage 1: judge the model, copy it, and settle what its inputs are.

Nothing that is random, half-trained or unable to run goes any further.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from poolexport import catalog
from poolexport.errors import InputError
from poolexport.pipeline._run import copy_of, run
from poolexport.pipeline._state import random_states_kept, tensors_of
from poolexport.pipeline.randomness import Policies, settle

#: Versions of the standard operators that can be asked for, and those that torch's exporter writes by itself.
OPSETS = range(17, 29)
WRITTEN = range(18, 24)
DEFAULT_OPSET = 20

#: What a layer does in the file whose draws were kept or fixed, in place of its inference rule.
DRAWS = {"keep": "its training rule, drawn anew at every run", "fixed": "its training rule, drawn once"}
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
        randomness: what became of the layers that a policy decided about, by dotted path.
        constant: runs draw nothing and leave the weights as they are; ``model`` has the weights of ``original`` then.
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
    randomness: Mapping[str, str] = field(default_factory=dict)
    constant: bool = False


def prepare(
    model: nn.Module,
    args: Tensor | Sequence[Tensor],
    *,
    dynamic_shapes: DynamicShapes = None,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    randomness: Policies | None = None,
) -> Prepared:
    """Check that a model can be exported, and copy it.

    Raises:
        ModeError: a module is in training mode; with it, everything else that is random is named.
        RandomnessError: the answer would differ from run to run; everything that makes it differ is named.
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
    names = _input_names(model, examples, input_names)
    axes = _axes(names, examples, dynamic_shapes)
    _require_weights(model)
    duplicate = copy_of(model)
    given, examples = examples, tuple(_traceable(x, named) for x, named in zip(examples, axes))
    if any(x.shape != y.shape for x, y in zip(given, examples)):
        # What fails on the input that was given is told with that input.
        with random_states_kept():
            run(copy_of(model), given)
    settled = settle(duplicate, examples, randomness)
    constant = not settled.policies and _same_weights(model, duplicate)
    if constant:
        # The copy that was run has shown that one with the model's own weights may be traced, which takes no memory.
        duplicate = copy_of(model, sharing=True)
    if output_names is not None:
        _require_names("output_names", output_names)
    with random_states_kept():
        count = len(tensors_of(run(duplicate, examples)))
    if count == 0:
        raise InputError("the model returns no tensor; its forward must return a tensor or a structure of tensors")
    outputs = tuple(output_names or (["output"] if count == 1 else [f"output_{i}" for i in range(count)]))
    if len(outputs) != count:
        raise InputError(f"the model has {count} outputs, but {len(outputs)} output names were given: {list(outputs)}")
    taken = [*names, *outputs]
    if len(set(taken)) != len(taken):
        raise InputError(f"input and output names must differ, got {taken}")
    found = {path: catalog.method_of(module) for path, module in model.named_modules() if path in settled.called}
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
            path: DRAWS.get(settled.policies.get(path, "").partition("(")[0])
            or method.inference_rule(modules[path if path in modules else ""])
            for path, method in ours.items()
            if method.random
        },
        layers={path: method.name for path, method in ours.items()},
        randomness=settled.policies,
        constant=constant,
    )


def _same_weights(model: nn.Module, used: nn.Module) -> bool:
    """Whether a copy that was run still has the weights of its model; some layers change theirs whenever they run."""
    pairs = zip(model.parameters(), used.parameters(), strict=True)
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def written(opset: int) -> int:
    """The opset to let torch write where ``opset`` is wanted."""
    return min(max(opset, WRITTEN.start), WRITTEN.stop - 1)


def _examples(args: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    examples = (args,) if isinstance(args, Tensor) else tuple(args)
    if not examples or not all(isinstance(x, Tensor) for x in examples):
        found = [type(x).__name__ for x in examples]
        raise InputError(f"args must be a tensor or a sequence of tensors, got {found or 'nothing'}")
    return tuple(x.detach().clone() for x in examples)


def _opset(opset: int | None) -> int:
    chosen = DEFAULT_OPSET if opset is None else opset
    if not isinstance(chosen, int) or chosen not in OPSETS:
        raise InputError(f"opset {chosen!r} is not supported; choose one from {OPSETS.start} to {OPSETS.stop - 1}")
    return chosen


def _input_names(model: nn.Module, args: Sequence[Tensor], given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        _require_names("input_names", given)
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


def _require_weights(model: nn.Module) -> None:
    for path, weight in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(weight):
            raise InputError(f"{path} has no shape before the first input; call the model once")
        if weight.is_meta:
            raise InputError(f"{path} is on the device 'meta' and holds no numbers; load the weights")


def _require_names(what: str, given: object) -> None:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(f"{what} must be a sequence of names, got {given!r}")
    for name in given:
        if not isinstance(name, str) or not name:
            raise InputError(f"{what}: a name must be a string that is not empty, got {name!r}")


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
    if isinstance(dynamic_shapes, str) or not isinstance(dynamic_shapes, Sequence):
        raise InputError(f"dynamic_shapes must be a mapping of axes to names, or one per input, got {dynamic_shapes!r}")
    if len(dynamic_shapes) != len(args):
        raise InputError(f"dynamic_shapes has {len(dynamic_shapes)} entries for {len(args)} inputs")
    result = []
    for name, x, shape in zip(names, args, dynamic_shapes):
        if isinstance(shape, str) or not isinstance(shape, (Mapping, Sequence, type(None))):
            raise InputError(f"the axes of input {name!r} must be a mapping or a sequence, got {shape!r}")
        pairs = dict(enumerate(shape)) if isinstance(shape, (list, tuple)) else dict(shape or {})
        named = {int(axis): _axis_name(dim, name, axis) for axis, dim in pairs.items() if dim is not None}
        named = {axis: label for axis, label in named.items() if label}
        outside = [axis for axis in named if not 0 <= axis < x.dim()]
        if outside:
            raise InputError(
                f"input {name!r} has {x.dim()} axes of shape {tuple(x.shape)}; there is no axis {outside[0]}"
            )
        result.append(named)
    lengths: dict[str, int] = {}
    for x, named in zip(args, result):
        for axis, label in named.items():
            if lengths.setdefault(label, x.shape[axis]) != x.shape[axis]:
                raise InputError(
                    f"two axes are called {label}, which says that they are equal, but their lengths are "
                    f"{lengths[label]} and {x.shape[axis]}; give each its own name"
                )
    return tuple(result)


def _axis_name(dim: Any, name: str, axis: int) -> str:
    if isinstance(dim, str):
        return dim
    if isinstance(dim, bool):
        raise InputError(f"axis {axis} of input {name!r} is given {dim}; name it, as in 'N', or leave it out")
    if isinstance(dim, int) or dim == torch.export.Dim.STATIC:
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
