"""What a method is: plain frozen data that feeds tests, tables, the command line and benchmarks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from poolexport_ops import Operator

Reference = Callable[..., Any]


@dataclass(frozen=True)
class Paper:
    """Where a method was published: title, authors, year, and an identifier a reader can look up."""

    title: str
    authors: str
    year: int
    link: str


@dataclass(frozen=True, eq=False)
class Case:
    """One configuration of a layer on one input shape.

    Args:
        name: short and unique within the method.
        options: constructor arguments.
        shape: (N, C, *spatial) of the input; its rank picks the layer.
        singular_at_zero: whether the formula itself has no finite gradient where a cell is 0.
        state: buffers or parameters to set after construction, as a trained layer would hold them.
        layer: one of the method's variants, in place of the layer for the rank of ``shape``.
        slack: how many times wider than the tolerance table's the bounds on the error against the reference are, or
        condition: how many times the formula magnifies rounding in float64, in which the layer computes it ...
        why: ... and the reason for it.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = (2, 3, 9, 11)
    state: Mapping[str, Any] = field(default_factory=dict)
    layer: type[nn.Module] | None = None
    singular_at_zero: bool = False
    slack: float = 1.0
    condition: float = 0.0
    why: str = ""

    def __post_init__(self) -> None:
        if (self.slack != 1.0 or self.condition) and not self.why:
            raise ValueError(f"case {self.name!r} widens a tolerance without saying why")

    @property
    def rank(self) -> int:
        return len(self.shape) - 2


@dataclass(frozen=True)
class Limit:
    """What a layer refuses, and what an exported file does with the same input.

    A graph cannot raise an error of its own, so where sizes are dynamic a file may accept what the layer refuses.

    Args:
        options: constructor arguments.
        error: the type of the error that the layer raises ...
        message: ... and a part of what it says.
        shape: of the refused input; None where the constructor refuses.
        rank: number of spatial axes of the layer.
        file: "refuses" where onnxruntime raises an error too; "nothing" where a file gives an empty answer; "numbers"
            where it gives some, which mean nothing.
    """

    options: Mapping[str, Any]
    error: type[Exception]
    message: str
    shape: tuple[int, ...] | None = None
    rank: int = 2
    file: Literal["refuses", "nothing", "numbers"] = "refuses"


@dataclass(frozen=True, eq=False)
class Method:
    """A pooling method of the literature, complete.

    Args:
        layers: the torch layers, one per number of spatial axes, each with its number as ``rank``.
        summary: the method in one sentence.
        paper: where it was published.
        reference: ``(x, **options, **state) -> array`` in float64, independent of the layer.
        training: the training rule in a few words.
        inference: the inference rule in a few words.
        operators: the ``poolexport`` operators an export may leave; none for standard operators only.
        cases: configurations to test; the first is the one that demonstrations use.
        limits: what is refused.
        space: for every option its sensible values; tests draw configurations from their product.
        variants: further layers of the method.
        companions: ``(x, **options) -> arrays``, the inputs after the first of every layer that takes several.
        companion_axes: names of the axes of those inputs, a letter each, ``_`` for a fixed length; by default those
            of an input of that rank. One letter is one length, in all inputs, which may depend on ``x`` alone.
        illustration: ``(image) -> image``, what pages show of a method whose layer does not simply take an image.
        graph_dtypes: types in which onnxruntime can run an export; float64 is missing where a layer has convolutions.
        dynamic_channels: whether one file takes any number of channels; where layers hold numbers for each of them, or
            mix them with weights, it does not.
        random: whether two training passes over one input differ.
        notes: known divergences between sources or runtimes, a sentence each.
    """

    layers: tuple[type[nn.Module], ...]
    summary: str
    paper: Paper
    reference: Reference
    training: str
    inference: str
    operators: tuple[Operator, ...]
    cases: tuple[Case, ...]
    limits: tuple[Limit, ...]
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    variants: tuple[type[nn.Module], ...] = ()
    companions: Callable[..., tuple[np.ndarray, ...]] | None = None
    companion_axes: tuple[str, ...] = ()
    illustration: Callable[[torch.Tensor], torch.Tensor] | None = None
    graph_dtypes: tuple[str, ...] = ("float32", "float64", "float16")
    dynamic_channels: bool = True
    random: bool = False
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The literature's short name: the name of the file the method is written in."""
        return self.layers[0].__module__.rpartition(".")[2]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Numbers of spatial axes there are layers for."""
        return tuple(int(getattr(layer, "rank")) for layer in self.layers)  # noqa: B009

    def layer(self, rank: int) -> type[nn.Module]:
        """The layer for inputs with ``rank`` spatial axes."""
        return self.layers[self.ranks.index(rank)]

    def layer_of(self, case: Case) -> type[nn.Module]:
        """The layer class that a case is about."""
        return case.layer or self.layer(case.rank)

    def inputs(self, case: Case, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """All inputs of a case's layer, from the first."""
        if self.companions is None or not takes_several(self.layer_of(case)):
            return (x,)
        return (x, *self.companions(x, **case.options))

    def build(self, case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The layer of a case, holding the case's state, in eval mode."""
        layer = self.layer_of(case)(**case.options).to(dtype)
        layer.load_state_dict({**layer.state_dict(), **_state(case, dtype)})
        return layer.eval()

    def truth(self, case: Case, x: np.ndarray, dtype: torch.dtype = torch.float32) -> tuple[np.ndarray, ...]:
        """What the reference answers to ``x`` for a layer whose state is held in ``dtype``."""
        state = {name: value.double().numpy() for name, value in _state(case, dtype).items()}
        inputs = [a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a for a in self.inputs(case, x)]
        answer = self.reference(*inputs, **case.options, **state)
        return answer if isinstance(answer, tuple) else (answer,)

    def inference_rule(self, layer: nn.Module) -> str:
        """The fixed rule a layer of this method follows in ``eval()``."""
        described = getattr(layer, "inference_rule", None)
        rule = getattr(layer, "inference", None)
        return described or (f"{rule}: {self.inference}" if rule else self.inference)


def inputs_of(layer: type[nn.Module]) -> int:
    """How many inputs a layer needs."""
    _, *inputs = inspect.signature(layer.forward).parameters.values()
    return sum(parameter.default is parameter.empty for parameter in inputs)


def takes_several(layer: type[nn.Module]) -> bool:
    """Whether a layer needs more inputs than one."""
    return inputs_of(layer) > 1


def _state(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    tensors = {name: torch.as_tensor(value) for name, value in case.state.items()}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
