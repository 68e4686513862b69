"""Stage 0: find everything in a model that would make its answer differ from run to run, and where it is written.

Draws of torch are seen where they reach torch's operators; those of Python and numpy by the line of the user's code
after which a generator is in another state. A tracer would freeze the latter into the graph without a word.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from poolexport.errors import InputError
from poolexport.pipeline._run import copy_of, run
from poolexport.pipeline._source import LineWatch, calling_line, forward_of
from poolexport.pipeline._state import random_states_kept, tensors_of

TRAINING, TORCH, TORCH_OWN, PYTHON, NUMPY, GENERATOR, SYSTEM, MEMORY, UNKNOWN = (
    "training mode",
    "torch",
    "torch generator",
    "python",
    "numpy",
    "generator",
    "system",
    "memory",
    "unknown",
)
FIXED = "give the layer a fixed inference rule, or pass training=self.training"
FROZEN = (
    "the tracer would freeze one value of it into the graph; draw only where self.training is set, or once, when the "
    "layer is made"
)
ADVICE = {
    TRAINING: "call model.eval() on the whole model",
    TORCH: FIXED,
    TORCH_OWN: FROZEN,
    PYTHON: FROZEN,
    NUMPY: FROZEN,
    GENERATOR: FROZEN,
    SYSTEM: FROZEN,
    MEMORY: "a buffer must not change in eval mode",
    UNKNOWN: FIXED,
}
#: The runs of an audit: two alike, which only something that remembers can tell apart, and two with other draws.
SEEDS = (1, 1, 2, 3)

#: Shape, type and checksum of a tensor.
Digest = tuple[tuple[int, ...], str, int]
#: Inputs and outputs of every module call by dotted path, in the order in which the calls end.
Record = dict[str, tuple[list[Digest], list[Digest]]]
OUTPUT = "the model's output"


@dataclass(frozen=True)
class Culprit:
    """One thing that makes the answer differ from run to run.

    Args:
        path: dotted path of the module; empty for the model itself.
        layer: class of that module.
        kind: "training mode" (a module is in it), "torch", "python" or "numpy" (it draws from their generators),
            "torch generator" or "generator" (from another one, of torch or of Python and numpy), "system" (from the
            operating system), "memory" (its answer depends on earlier calls), or "unknown" (its answers differ, and
            nothing that is watched was drawn from).
        source: ``file:line`` of the user's code that did it; empty where there is none.
        drawn: what is drawn, in a few words.
        advice: what to do about it.
        draws: what a module in training mode draws.
    """

    path: str
    layer: str
    kind: str
    source: str
    drawn: str
    advice: str
    draws: tuple[Culprit, ...] = ()

    def __str__(self) -> str:
        who = f"{self.path} ({self.layer})" if self.path else f"the model itself ({self.layer})"
        return f"{who}: {self.drawn}{f' at {self.source}' if self.source else ''}; {self.advice}"


@dataclass(frozen=True)
class Audit:
    """Everything that makes a model's answer differ from run to run.

    Args:
        culprits: modules in training mode first, then the others in the order in which they draw.
        called: dotted paths of the modules that a run calls.
    """

    culprits: tuple[Culprit, ...]
    called: frozenset[str] = frozenset()

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.culprits

    def __str__(self) -> str:
        return "\n".join(map(str, self.culprits)) or "nothing is random"


def audit(model: nn.Module, args: Tensor | Sequence[Tensor]) -> Audit:
    """Find every source of randomness in a model, with the module and the line of code that draws.

    A model that is in training mode as a whole is one culprit; the rest is what would be left after ``model.eval()``.

    Args:
        model: it is left as it is, and so is every random state.
        args: one example input, or a sequence of them, on the CPU.

    Returns:
        The audit: one record per culprit, none for a model that can be exported as it is.

    Raises:
        InputError: the model cannot be copied, or does not run on the inputs.

    Example:
        >>> import torch, poolexport
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Dropout()).eval()
        >>> poolexport.audit(model, torch.randn(1, 1, 8, 8)).clean
        True
        >>> _ = model[1].train()
        >>> [(c.path, c.kind) for c in poolexport.audit(model, torch.randn(1, 1, 8, 8)).culprits]
        [('1', 'training mode')]
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    examples = (args,) if isinstance(args, Tensor) else tuple(args)
    if not examples or not all(isinstance(x, Tensor) for x in examples):
        found = [type(x).__name__ for x in examples]
        raise InputError(f"args must be a tensor or a sequence of tensors, got {found or 'nothing'}")
    duplicate = copy_of(model)
    culprits: list[Culprit] = []
    if duplicate.training:
        advice = "call model.eval() before exporting it"
        culprits.append(Culprit("", type(model).__name__, TRAINING, "", "the model is in training mode", advice))
        duplicate.eval()
    rest = examine(duplicate, [x.detach().clone() for x in examples])
    return replace(rest, culprits=(*culprits, *rest.culprits))


def examine(model: nn.Module, args: Sequence[Tensor], seeds: Sequence[int] = SEEDS) -> Audit:
    """The audit of a model that may be worn: a copy, as it is, whatever mode its modules are in."""
    watch = _Watch(model)
    records = []
    for seed in seeds:
        with random_states_kept(seed), watch, _recorded(model) as record:
            record[OUTPUT] = ([], _snapshot(run(model, args)))
        records.append(record)
    called = frozenset(path.partition(" (")[0] for path in records[0]) - {OUTPUT}
    drawn = tuple(watch.culprits())
    modes = tuple(_in_training(model, watch, drawn))
    culprits = (*modes, *(c for c in drawn if c.path not in {mode.path for mode in modes}))
    known = {c.path for c in drawn if c.kind in (GENERATOR, SYSTEM)}
    for other in records[1:2]:
        text = "its answer depends on earlier calls"
        culprits += tuple(_of_differences(model, records[0], other, known, MEMORY, text))
    known = {c.path for c in culprits}
    for other in records[2:]:
        text = "two runs on the same input differ, though no generator that is known was drawn from"
        culprits += tuple(_of_differences(model, records[0], other, known, UNKNOWN, text))
        known = {c.path for c in culprits}
    return Audit(culprits, called)


def _of_differences(
    model: nn.Module, first: Record, other: Record, known: Collection[str], kind: str, text: str
) -> Iterator[Culprit]:
    """The innermost modules that answer one input in two ways, other than those that are known to."""
    found = set(known)
    for call, (inputs, outputs) in first.items():
        path = "" if call == OUTPUT else call.partition(" (")[0]
        inside = any(not path or culprit == path or culprit.startswith(f"{path}.") for culprit in found)
        if inside or call not in other or inputs != other[call][0] or outputs == other[call][1]:
            continue
        found.add(path)
        module = model.get_submodule(path)
        yield Culprit(path, type(module).__name__, kind, forward_of(module), text, ADVICE[kind])


def _in_training(model: nn.Module, watch: _Watch, drawn: Collection[Culprit]) -> Iterator[Culprit]:
    """Modules in training mode; what they draw is told with them."""
    for path, module in model.named_modules():
        if not module.training:
            continue
        theirs = tuple(c for c in drawn if c.path == path)
        text = " and ".join(["is in training mode", *(c.drawn for c in theirs)])
        source = theirs[0].source if theirs else watch.called_at.get(path, "")
        yield Culprit(path, type(module).__name__, TRAINING, source, text, ADVICE[TRAINING], theirs)


@dataclass
class _Watched:
    """A generator that is no part of torch: how it is called, its kind, and how to read and to restore it."""

    name: str
    kind: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]
    state: Any
    first: Any


class _Watch(TorchDispatchMode):
    """Notices every draw, and the module and line that made it; may be entered again and again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.called_at: dict[str, str] = {}
        self._model = model
        self._found: dict[tuple[str, str, str, str], Culprit] = {}
        self._entered: list[tuple[str, nn.Module]] = []
        self._watched: dict[int, _Watched] = {}
        self._met: set[int] = set()
        self._lines = LineWatch(self._look, self._meet, self._asked)
        self._torch = b""
        self._own: dict[int, tuple[torch.Generator, Tensor]] = {}
        self._stack = ExitStack()

    def culprits(self) -> list[Culprit]:
        """What was found so far, in the order in which it was drawn."""
        return list(self._found.values())

    def __enter__(self) -> _Watch:
        with ExitStack() as stack:
            self._watched.clear()
            self._met.clear()
            self._watch(random._inst, "Python's random", PYTHON)
            self._watch(np.random.mtrand._rand, "numpy.random", NUMPY)
            for path, module in self._model.named_modules():
                for name, held in held_generators(module):
                    self._watch(held, ".".join(filter(None, (path, name))))
                self._hook(stack, path, module)
            stack.callback(self._restore)
            super().__enter__()
            stack.callback(super().__exit__, None, None, None)
            # The first operator under a mode makes torch import its compiler, which takes long where lines are watched.
            torch.empty(0)
            stack.enter_context(self._lines)
            self._torch = _torch_state()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
        self._entered.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        own = generator is not None
        if generator is not None:
            self._own.setdefault(id(generator), (generator, generator.get_state()))
        before = _torch_state()
        result = func(*args, **(kwargs or {}))
        self._torch = _torch_state()
        # Some operators that may draw do so in training only.
        if own or self._torch != before:
            shapes = [tuple(t.shape) for t in tensors_of(result)]
            shown = ", ".join("x".join(map(str, shape)) or "a number" for shape in shapes)
            text = f"draws {func.overloadpacket.__name__} of {shown}{' from a generator of its own' if own else ''}"
            self._add(TORCH_OWN if own else TORCH, text, calling_line())
        return result

    def _hook(self, stack: ExitStack, path: str, module: nn.Module) -> None:
        def enter(_: nn.Module, __: Any) -> None:
            self._look(self._lines.last)
            self.called_at.setdefault(path, self._lines.last)
            self._entered.append((path, module))

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            self._look(self._lines.last)
            state = _torch_state()
            if state != self._torch:
                self._torch = state
                self._add(TORCH, "draws from torch's generator", self._lines.last)
            self._entered.pop()

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)

    def _look(self, line: str) -> None:
        """Tell which generators moved while ``line`` ran."""
        for watched in self._watched.values():
            state = _comparable(watched.read())
            if state != watched.state:
                watched.state = state
                self._add(watched.kind, f"draws from {watched.name}", line)

    def _add(self, kind: str, drawn: str, line: str) -> None:
        path, module = self._entered[-1] if self._entered else ("", self._model)
        source = line or forward_of(module)
        key = (path, kind, source, drawn.partition(" of ")[0])
        self._found.setdefault(key, Culprit(path, type(module).__name__, kind, source, drawn, ADVICE[kind]))

    def _meet(self, frame: FrameType) -> None:
        """Watch the generators that a function can reach: its globals, its arguments, and what it closes over."""
        if id(frame.f_globals) not in self._met:
            self._met.add(id(frame.f_globals))
            for name, value in list(frame.f_globals.items()):
                self._watch(value, name)
        for name, value in frame.f_locals.items():
            self._watch(value, name)

    def _asked(self) -> None:
        self._add(SYSTEM, "draws from the operating system", calling_line())

    def _watch(self, value: Any, name: str, kind: str = GENERATOR) -> None:
        read: Callable[[], Any]
        restore: Callable[[Any], None]
        if id(value) in self._watched or isinstance(value, random.SystemRandom):
            return
        if isinstance(value, random.Random):
            read, restore = value.getstate, value.setstate
        elif isinstance(value, np.random.RandomState):
            read, restore = (lambda: value.get_state(legacy=False)), value.set_state
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            read, restore = (lambda: bits.state), (lambda state: setattr(bits, "state", state))
        else:
            return
        first = read()
        self._watched[id(value)] = _Watched(name, kind, read, restore, _comparable(first), first)

    def _restore(self) -> None:
        for watched in self._watched.values():
            if watched.kind == GENERATOR:
                watched.restore(watched.first)
        for generator, state in self._own.values():
            generator.set_state(state)
        self._own.clear()


def _comparable(state: Any) -> Any:
    """A generator's state without arrays, which have no single answer to whether they are equal."""
    if isinstance(state, dict):
        return {name: _comparable(value) for name, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Values that a module holds, by the name of the attribute; lists and dicts are looked into."""
    for name, value in vars(module).items():
        if name.startswith("_") and name in vars(nn.Module()):
            continue
        if isinstance(value, dict):
            yield from ((f"{name}[{key!r}]", entry) for key, entry in value.items())
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{position}]", entry) for position, entry in enumerate(value))
        else:
            yield name, value


def held_generators(module: nn.Module) -> list[tuple[str, Any]]:
    """Generators of Python and numpy that a module holds, by the name of the attribute."""
    kinds = (random.Random, np.random.RandomState, np.random.Generator)
    return [(name, value) for name, value in _held(module) if isinstance(value, kinds)]


def _torch_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


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


def _snapshot(values: Any) -> list[Digest]:
    return [_digest(t) for t in tensors_of(values)]


def _digest(x: Tensor) -> Digest:
    """What tells two tensors apart, in a few bytes: the maps of a whole network, run four times, would be gigabytes."""
    x = x.detach()
    if x.layout != torch.strided:
        x = x.to_dense()
    if x.is_quantized:
        x = x.dequantize()
    content = x.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tuple(x.shape), str(x.dtype), zlib.crc32(content.data)
