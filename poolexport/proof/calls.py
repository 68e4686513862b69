"""The original model, one operator of torch at a time: which module called it, from what, and what came out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from poolexport.pipeline._run import entering, run
from poolexport.pipeline._source import calling_line
from poolexport.pipeline._state import random_states_kept, tensors_of
from poolexport.proof.prints import Print


@dataclass(frozen=True)
class Event:
    """One tensor that an operator of torch made.

    Args:
        path: dotted path of the innermost module that called the operator; empty for the model itself.
        operator: torch's name of it, as in ``convolution``.
        source: ``file:line`` of the user's code that called it; empty where there is none.
        print: what is kept of the values.
        origins: the events that it was made from; inputs of the model are -1, -2 and so on.
        first: number of the first event of the operator's call.
        live: whether it depends on an input of the model.
    """

    path: str
    operator: str
    source: str
    print: Print
    origins: tuple[int, ...]
    first: int
    live: bool


@dataclass(frozen=True)
class Recording:
    """Everything that happened in a run of the model.

    Args:
        events: in the order of the run; the same inputs make the same events, so that a number stands for one.
        returned: numbers of the events that a module returned.
        outputs: the event of every output of the model; None where an output was not made by an operator.
    """

    events: tuple[Event, ...]
    returned: frozenset[int]
    outputs: tuple[int | None, ...]

    def between(self, event: int, cuts: frozenset[int]) -> tuple[list[int], set[int]]:
        """The events that one is made of, itself included, back to those of ``cuts`` (and to inputs); and those."""
        inside, border, todo = {event}, set(), list(self.events[event].origins)
        while todo:
            origin = todo.pop()
            if origin < 0 or origin in cuts:
                border.add(origin)
            elif origin not in inside:
                inside.add(origin)
                todo += self.events[origin].origins
        return sorted(inside), border


class Calls(TorchDispatchMode):
    """Numbers every tensor that an operator makes while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.path: list[str] = []
        self.count = 0

    def walk(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the model; its outputs."""
        with random_states_kept(0), entering(self.model) as self.path, self:
            return tensors_of(run(self.model, inputs))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = self.count
        self.before(first, func, args, kwargs)
        results = func(*args, **kwargs)
        made = tensors_of(results)
        self.count += len(made)
        self.after(first, func, args, kwargs, made)
        return results

    def before(self, first: int, func: Any, args: Any, kwargs: Any) -> None:
        """Called before an operator runs that will make event ``first`` and those after it."""

    def after(self, first: int, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        """Called when it has run."""


class _Recorder(Calls):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.events: list[Event] = []
        self.numbers = WeakTensorKeyDictionary()
        self._writers: dict[int, int] = {}

    def number_of(self, x: Tensor) -> int | None:
        """The event that a tensor holds now: the one that made it, or that wrote to its storage later."""
        made = self.numbers.get(x)
        written = self._writers.get(x.untyped_storage()._cdata) if made is not None else None
        return made if written is None or made is None else max(made, written)

    def after(self, first: int, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        given = [self.number_of(x) for x in tensors_of((args, kwargs))]
        origins = tuple(dict.fromkeys(n for n in given if n is not None))
        live = any(n < 0 or self.events[n].live for n in origins)
        name = func._schema.name.partition("::")[2]
        path = self.path[-1] if self.path else ""
        line = calling_line()
        for position, x in enumerate(made):
            self.events.append(Event(path, name, line, Print.of(x.detach().numpy()), origins, first, live))
            self.numbers[x] = first + position
            if func._schema.is_mutable:
                self._writers[x.untyped_storage()._cdata] = first + position


def record(model: nn.Module, inputs: Sequence[Tensor]) -> Recording:
    """Run the model once and take down what every operator makes.

    Raises:
        InputError: the model fails on these inputs.
    """
    recorder = _Recorder(model)
    for position, x in enumerate(inputs):
        recorder.numbers[x] = -1 - position
    returned: set[int] = set()

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        numbers = [recorder.number_of(x) for x in tensors_of(output)]
        returned.update(n for n in numbers if n is not None and n >= 0)

    hooks = [module.register_forward_hook(leave) for module in model.modules()]
    try:
        outputs = [recorder.number_of(x) for x in recorder.walk(inputs)]
    finally:
        for hook in hooks:
            hook.remove()
    made = tuple(n if n is not None and n >= 0 else None for n in outputs)
    return Recording(tuple(recorder.events), frozenset(returned), made)


class _Keeper(Calls):
    def __init__(self, model: nn.Module, wanted: Collection[int]) -> None:
        super().__init__(model)
        self.kept: dict[int, np.ndarray] = {}
        self._wanted = wanted

    def after(self, first: int, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        for number, x in enumerate(made, first):
            if number in self._wanted:
                self.kept[number] = x.detach().clone().numpy()


def values(model: nn.Module, inputs: Sequence[Tensor], wanted: Collection[int]) -> dict[int, np.ndarray]:
    """The values of some events, by their numbers."""
    keeper = _Keeper(model, wanted)
    keeper.walk(inputs)
    return keeper.kept
