"""Which module made an axis that is called dynamic a constant, and in which line.

Two ways lead there. A tracer gives up the symbol of an axis: then the symbol is watched while the model is traced
again. Or a graph comes out whose axes have names but whose numbers are those of one length: then graph and model are
compared value by value, at a length the trace never saw.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from poolexport import catalog
from poolexport.errors import InputError
from poolexport.graph import module_path
from poolexport.pipeline._run import run, trace
from poolexport.pipeline._source import LineWatch, calling_line
from poolexport.pipeline._state import random_states_kept, tensors_of
from poolexport.runtime import plain_session

#: A value of a graph is that of the model where they are this close, relative to the largest magnitude.
CLOSE = {"float16": 2e-2, "float32": 1e-4, "float64": 1e-6}


@dataclass(frozen=True)
class Freezer:
    """What froze an axis.

    Args:
        path: dotted path of the module; empty for the model itself.
        layer: class of that module.
        source: ``file:line`` of the user's code; empty where there is none.
        remedy: what to put in its place.
        found: how its answer differs at another length; empty where the tracer gave up.
    """

    path: str
    layer: str
    source: str
    remedy: str
    found: str = ""

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'} ({self.layer}){f' at {self.source}' if self.source else ''}"


def _remedy(module: nn.Module) -> str:
    name = type(module).__name__
    if type(module).__module__.startswith("torch.") and name in catalog.layers():
        return f"replace it by poolexport.nn.{name}"
    if type(module).__module__.startswith("torch."):
        return "give it an input of one size, which poolexport.nn.AdaptiveAvgPool2d makes of any"
    return "let it compute its lengths from x.shape, without int(), lists or tensors of a fixed size"


def freezers(
    model: nn.Module, args: Sequence[Tensor], shapes: Any, axes: Sequence[Mapping[int, str]]
) -> dict[tuple[int, int], Freezer]:
    """The module that takes away the symbol of an axis, by input and axis; those that nobody takes are left out."""
    watch = _SymbolWatch(model, axes)
    with random_states_kept(), watch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trace(model, args, shapes)
        except Exception:
            # It fails for the reason that is looked for.
            return watch.found
    return watch.found


class _SymbolWatch:
    """Looks, after every line of the user's and every module, whether the symbols of the inputs are still symbols."""

    def __init__(self, model: nn.Module, axes: Sequence[Mapping[int, str]]) -> None:
        self.found: dict[tuple[int, int], Freezer] = {}
        self._model = model
        self._axes = axes
        self._symbols: dict[tuple[int, int], torch.SymInt] = {}
        self._entered: list[tuple[str, nn.Module]] = []
        self._lines = LineWatch(self._look)
        self._stack = ExitStack()

    def __enter__(self) -> _SymbolWatch:
        with ExitStack() as stack:
            for path, module in self._model.named_modules():
                self._hook(stack, path, module)
            stack.enter_context(self._lines)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _hook(self, stack: ExitStack, path: str, module: nn.Module) -> None:
        def enter(_: nn.Module, inputs: Any) -> None:
            self._look(self._lines.last)
            if not path and not self._symbols:
                for position, (x, named) in enumerate(zip(inputs, self._axes)):
                    lengths = {axis: x.shape[axis] for axis in named}
                    self._symbols |= {(position, axis): n for axis, n in lengths.items() if isinstance(n, torch.SymInt)}
            self._entered.append((path, module))

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            self._look(self._lines.last)
            self._entered.pop()

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)

    def _look(self, line: str) -> None:
        if not self._entered:
            return
        path, module = self._entered[-1]
        for key, symbol in self._symbols.items():
            if key not in self.found and symbol.node.expr.is_number:
                self.found[key] = Freezer(path, type(module).__name__, line, _remedy(module))


#: What stands for the operator where the answer is a module's.
MODULE = "module"


@dataclass(frozen=True)
class _Event:
    """An operator of torch that ran: in which module and line, and its answer."""

    path: str
    source: str
    value: np.ndarray


class _Events(TorchDispatchMode):
    """Takes down the answer of every operator of a run, by module, line, operator and repetition."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.taken: dict[tuple[str, str, str, int], _Event] = {}
        self._model = model
        self._entered: list[str] = []
        self._seen: Counter[tuple[str, str, str]] = Counter()

    def of(self, args: Sequence[Tensor]) -> dict[tuple[str, str, str, int], _Event]:
        """The events of a run of the model."""
        hooks = []
        for path, module in self._model.named_modules():

            def enter(_: nn.Module, __: Any, path: str = path) -> None:
                self._entered.append(path)

            def leave(_: nn.Module, __: Any, output: Any) -> None:
                self._take(MODULE, output, "")
                self._entered.pop()

            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            with self:
                run(self._model, args)
        finally:
            for hook in hooks:
                hook.remove()
        return self.taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._take(str(func), result, calling_line())
        return result

    def _take(self, name: str, result: Any, line: str) -> None:
        path = self._entered[-1] if self._entered else ""
        for value in tensors_of(result):
            if value.is_floating_point() and value.numel():
                key = (path, line, name)
                event = _Event(path, line, value.detach().clone().numpy())
                self.taken[(*key, self._seen[key])] = event
                self._seen[key] += 1


def freezer_in(content: bytes, model: nn.Module, seen: Sequence[Tensor], unseen: Sequence[Tensor]) -> Freezer | None:
    """The first module whose answers a graph gives at the lengths it was traced with and not at others.

    Args:
        content: the file.
        model: a copy of the model it was made from.
        seen, unseen: inputs of the traced lengths, and of others.
    """
    try:
        with random_states_kept(0):
            before, after = _Events(model).of(seen), _Events(model).of(unseen)
    except InputError:
        return None
    right = _values(content, seen)
    wrong = _values(content, unseen)
    for key, event in before.items():
        other = after.get(key)
        matching = [name for name, (_, value) in right.items() if _is_close(value, event.value)]
        own = [name for name in matching if _is_in(right[name][0], event.path)]
        if other is None or not own:
            continue
        if key[2] == MODULE:
            # Of equal values, the last is what the module returns.
            own = own[-1:]
        if not any(name in wrong and _is_close(wrong[name][1], other.value) for name in own):
            found = next((wrong[name][1] for name in own if name in wrong), None)
            module = model.get_submodule(event.path)
            difference = _difference(found, other.value)
            return Freezer(event.path, type(module).__name__, event.source, _remedy(module), difference)
    return None


def _is_in(scope: str | None, path: str) -> bool:
    """Whether a node is of a module or of one inside it; nodes that do not say where they are from may be."""
    return scope is None or not path or scope == path or scope.startswith(f"{path}.")


def _is_close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape or not np.issubdtype(a.dtype, np.floating):
        return False
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    bound = CLOSE.get(b.dtype.name, 1e-4) * scale
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=0.0, atol=bound, equal_nan=True))


def _difference(found: np.ndarray | None, wanted: np.ndarray) -> str:
    if found is None:
        return "onnxruntime cannot compute its answer"
    if found.shape != wanted.shape:
        return f"its answer is {_shown(found)} instead of {_shown(wanted)}"
    return f"its answer is off by {np.abs(found.astype(np.float64) - wanted).max():.3g}"


def _shown(value: np.ndarray) -> str:
    return "x".join(map(str, value.shape)) or "a number"


def _values(content: bytes, inputs: Sequence[Tensor]) -> dict[str, tuple[str | None, np.ndarray]]:
    """Every value of the graph that can be computed, with the module that its node is from."""
    few, many = 0, len(ir.from_proto(onnx.load_from_string(content)).graph)
    best = _first_values(content, inputs, many)
    while best is None and many - few > 1:
        middle = (few + many) // 2
        if _first_values(content, inputs, middle) is None:
            many = middle
        else:
            few = middle
        if many - few <= 1:
            best = _first_values(content, inputs, few) if few else {}
    return best or {}


def _first_values(
    content: bytes, inputs: Sequence[Tensor], count: int
) -> dict[str, tuple[str | None, np.ndarray]] | None:
    """The values of the first nodes of a graph; None where onnxruntime cannot compute them."""
    model = ir.from_proto(onnx.load_from_string(content))
    nodes = list(model.graph)
    shown = {str(value.name): node for node in nodes[:count] for value in node.outputs if value.name}
    model.graph.outputs.clear()
    model.graph.remove(nodes[count:])
    for node in nodes[:count]:
        model.graph.outputs.extend(value for value in node.outputs if value.name)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    feed = {str(value.name): x.numpy() for value, x in zip(model.graph.inputs, inputs)}
    try:
        answers = plain_session(ir.to_proto(model).SerializeToString(), options=options).run(list(shown), feed)
    except Exception:
        return None
    scopes = {name: module_path(node) if node.metadata_props else None for name, node in shown.items()}
    return {name: (scopes[name], answer) for name, answer in zip(shown, answers) if isinstance(answer, np.ndarray)}
