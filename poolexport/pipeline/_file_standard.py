"""What another file answers, as the standard, where there is no model to ask.

A file cannot be run in float64, so its own answers are the truth. They are rounded, too: how far rounding moves them is
seen by running it without optimisation, with every step rounded by lot, and on inputs and weights that are moved by one
unit of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from poolexport.errors import InputError
from poolexport.graph import random_outputs
from poolexport.pipeline._by_lot import by_lot
from poolexport.pipeline._forms import read
from poolexport.pipeline._rounding import SAMPLES
from poolexport.pipeline._standard import accepted, rounded_anew, shake, unit_of
from poolexport.pipeline._trials import Port
from poolexport.runtime import Source, Variant, patience, plain_session

#: Bytes of weights in a file that is changed so; one that has more is run as it is, because protobuf holds no more.
MOST = 3 << 29
#: How the standard runs where it is to round otherwise.
OTHERWISE = Variant("none", 1)


class FileStandard:
    """A file that is asked for the right answers.

    Args:
        source: a bundle, an .onnx file, or its bytes.
        judged: the session of the file that is judged by it.
        example: one input per input of the latter, in its order.
        seed: of everything that is drawn.

    Raises:
        InputError: the two files do not belong together.
    """

    #: What is called the truth.
    truth = "the second file"

    def __init__(self, source: Source, judged: ort.InferenceSession, example: Sequence[Tensor], seed: int) -> None:
        self.source, self.example, self.seed = source, tuple(example), seed
        self.session = plain_session(source)
        theirs, ours = self.session.get_inputs(), judged.get_inputs()
        order = matched([port.name for port in ours], [port.name for port in theirs], "inputs")
        self.names = [theirs[k].name for k in order]
        self.ports = [_common(port, theirs[k]) for port, k in zip(ours, order)]
        outputs = [port.name for port in judged.get_outputs()], [port.name for port in self.session.get_outputs()]
        self._outputs = matched(*outputs, "outputs")
        self.random = self._drawn(outputs[0])

    def asked(self, inputs: tuple[Tensor, ...]) -> FileAsked:
        """The answers to these inputs.

        Raises:
            InputError: the file refuses them.
        """
        taken, peers = accepted(lambda given: self.answers(self.session, given), inputs, self.example)
        return FileAsked(self, taken, peers)

    def answers(self, opened: ort.InferenceSession, inputs: Sequence[Tensor]) -> list[np.ndarray]:
        """What a session on the file answers, in the order of the outputs of the file that is judged.

        Raises:
            InputError: it refuses the inputs.
            TimeoutError: it is waited for in vain.
        """
        try:
            results = patience.answers(opened, {name: x.numpy() for name, x in zip(self.names, inputs)})
        except TimeoutError as error:
            raise TimeoutError(f"the second file {error}") from error
        except Exception as error:
            shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"the second file failed on an input of shape {shapes}: {reason}") from error
        return [results[k] for k in self._outputs]

    @cached_property
    def plain(self) -> ort.InferenceSession:
        """The file run as it is written, which rounds otherwise than the file that onnxruntime makes of it."""
        return OTHERWISE.open(self.source)

    @cached_property
    def shaken(self) -> ort.InferenceSession:
        """The file with its weights moved by one unit of rounding."""
        model = self._light()
        if model is None:
            return self.session
        for position, value in enumerate(model.graph.initializers.values()):
            weight = value.const_value
            # vectors may be sizes or scales, and whole numbers indices or signs, which are exact
            if weight is not None and len(weight.shape) > 1 and weight.dtype.name in ("FLOAT", "DOUBLE", "FLOAT16"):
                numbers = torch.from_numpy(np.array(weight.numpy()))
                moved = numbers.double() * shake(numbers, unit_of([numbers]), self.seed + position)
                moved = torch.where(numbers == numbers.round(), numbers.double(), moved)
                value.const_value = ir.tensor(moved.to(numbers.dtype).numpy(), name=value.name)
        return plain_session(ir.to_proto(model).SerializeToString())

    @cached_property
    def by_lot(self) -> ort.InferenceSession:
        """The file rounding every step another way at every run."""
        model = self._light()
        if model is None:
            return self.plain
        try:
            return plain_session(ir.to_proto(by_lot(model, self.seed)).SerializeToString())
        except Exception:
            # operators that nobody here knows, or an old opset; without this the bound is only narrower
            return self.plain

    def _light(self) -> ir.Model | None:
        """The file to be changed, with its weights inside; None where they are too many for that."""
        model = read(self.source)
        if sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value) > MOST:
            return None
        ir.external_data.load_to_model(model)
        return model

    def _drawn(self, names: Sequence[str]) -> list[str]:
        """The outputs that the file draws, by the names that they have in the file that is judged."""
        drawn = drawn_outputs(self.source)
        theirs = [port.name for port in self.session.get_outputs()]
        return [name for name, k in zip(names, self._outputs) if theirs[k] in drawn]


class FileAsked:
    """A file's answers to some inputs.

    Args:
        standard: the file.
        inputs: that it took.
        peers: what it answers.
    """

    def __init__(self, standard: FileStandard, inputs: tuple[Tensor, ...], peers: list[np.ndarray]) -> None:
        self._standard = standard
        self.inputs = inputs
        self.peers = self.truths = peers

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(x.shape) for x in self.inputs)

    @cached_property
    def moved(self) -> list[np.ndarray]:
        """What it answers where every input and weight is moved by one unit of rounding."""
        moved = rounded_anew(self.inputs, self._standard.seed)
        given = [x.to(like.dtype) for x, like in zip(moved, self.inputs)]
        return self._standard.answers(self._standard.shaken, given)

    @cached_property
    def others(self) -> list[list[np.ndarray]]:
        """What it might answer as well, rounding otherwise."""
        answers = []
        for opened in (self._standard.plain, *[self._standard.by_lot] * SAMPLES):
            try:
                answers.append(self._standard.answers(opened, self.inputs))
            except (InputError, TimeoutError):
                # The file refuses what its own rounding led to; the others still tell.
                continue
        return answers


def matched(names: Sequence[str], others: Sequence[str], kind: str) -> list[int]:
    """Where each of some names is among others: by name where they are the same ones, else in their order.

    Raises:
        InputError: there are more of one than of the other.

    Example:
        >>> matched(["a", "b"], ["b", "a"], "inputs"), matched(["a", "b"], ["x", "y"], "inputs")
        ([1, 0], [0, 1])
    """
    if len(names) != len(others):
        raise InputError(
            f"the files do not belong together: the first has {len(names)} {kind} ({', '.join(names)}), "
            f"the second {len(others)} ({', '.join(others)})"
        )
    return [others.index(name) for name in names] if set(names) == set(others) else list(range(len(names)))


def _common(port: ort.NodeArg, other: ort.NodeArg) -> Port:
    """What two files take for one input.

    Raises:
        InputError: there is nothing that both take.
    """
    fitting = port.type == other.type and len(port.shape) == len(other.shape)
    lengths = [b if isinstance(b, int) else a for a, b in zip(port.shape, other.shape)]
    if not fitting or any(isinstance(a, int) and a != n for a, n in zip(port.shape, lengths)):
        raise InputError(
            f"the files do not belong together: input {port.name!r} of the first is {port.type} of shape {port.shape}, "
            f"{other.name!r} of the second {other.type} of {other.shape}"
        )
    return Port(port.name, port.type, tuple(lengths))


def drawn_outputs(source: Source) -> list[str]:
    """The outputs that a file draws."""
    return random_outputs(read(source))
