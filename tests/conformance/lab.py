"""Where methods are tried: cached exports, inputs, and the layers under test.

Nothing in this folder names a method; all of them come from the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from poolexport import stress
from poolexport.method import Case, Method
from poolexport.pipeline.export import export
from poolexport.pipeline.lower import lower
from poolexport.pipeline.optimise import optimise
from poolexport.pipeline.prepare import prepare
from poolexport.runtime import session

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}
AXES = {2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}

Arrays = tuple[np.ndarray, ...]
#: As bodies of standard operators, the same written out where they are called, or as native kernels.
Form = Literal["function", "inlined", "native"]


class Specimen:
    """One case of one method in one dtype: its layer, its reference, and its exported forms; ``fixed`` axes of inputs
    are not dynamic in those."""

    def __init__(self, method: Method, case: Case, dtype: str = "float32", fixed: str = "C") -> None:
        self.fixed = fixed
        self.method = method
        self.case = case
        self.dtype = dtype
        self.layer = method.build(case, DTYPES[dtype])
        self._truths: dict[tuple[tuple[int, ...], bytes], Arrays] = {}

    def draw(self, pattern: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        return stress.draw(pattern, shape or self.case.shape, self.dtype)

    def torch(self, x: np.ndarray) -> Arrays:
        """What the layer answers in eval mode."""
        with torch.no_grad():
            return _arrays(self.layer(*self.tensors(x)))

    def tensors(self, x: np.ndarray) -> tuple[torch.Tensor, ...]:
        """All inputs of the layer, from the first."""
        return tuple(torch.from_numpy(a) for a in self.method.inputs(self.case, x))

    def truth(self, x: np.ndarray) -> Arrays:
        """What the reference answers, in float64; references are slow, so every answer is kept."""
        key = (x.shape, x.tobytes())
        if key not in self._truths:
            with np.errstate(all="ignore"):
                self._truths[key] = self.method.truth(self.case, x, DTYPES[self.dtype])
        return self._truths[key]

    def onnx(self, x: np.ndarray, form: Form = "function") -> Arrays:
        """What onnxruntime answers from the exported graph."""
        feed = {f"x{i}": a for i, a in enumerate(self.method.inputs(self.case, x))}
        return tuple(self.session(form).run(None, feed))

    @cache  # noqa: B019
    def session(self, form: Form) -> ort.InferenceSession:
        content = self.graph(form == "inlined").SerializeToString()
        return session(content, threads=1, kernels=form == "native")

    @cache  # noqa: B019
    def graph(self, portable: bool) -> onnx.ModelProto:
        """The exported model, with function bodies or inlined."""
        model = ir.serde.deserialize_model(onnx.ModelProto.FromString(self.raw))
        return ir.to_proto(optimise(lower(model, portable=portable)))

    @property
    @cache  # noqa: B019
    def raw(self) -> bytes:
        """The bare export, made once: every form is lowered from it."""
        examples = self.tensors(self.draw("normal"))
        axes = named_axes(self.method, examples, self.fixed)
        names = [f"x{i}" for i in range(len(examples))]
        prepared = prepare(self.layer, examples, dynamic_shapes=axes, input_names=names)
        return ir.to_proto(export(prepared)).SerializeToString()

    def shapes(self) -> Iterator[tuple[int, ...]]:
        """The case's shape, then other batches and sizes that the layer accepts."""
        batch, channels, *spatial = self.case.shape
        yield self.case.shape
        for n in (1, 3, 0) if spatial else (1, 3, 0, 4, 5):
            yield (n, channels, *spatial)
        for step in (1, 2, 3, 6, -1):
            shape = (batch, channels, *(n + step + axis for axis, n in enumerate(spatial)))
            if min(shape) > 0 and self.accepts(shape):
                yield shape

    def accepts(self, shape: tuple[int, ...]) -> bool:
        try:
            self.torch(self.draw("normal", shape))
        except ValueError:
            return False
        return True


def named_axes(method: Method, inputs: Sequence[torch.Tensor], fixed: str = "C") -> list[dict[int, str]]:
    """The dynamic axes of every input by name; those in ``fixed`` are not."""
    letters = [AXES[x.dim()] for x in inputs]
    letters[1:] = [axes[: x.dim()] for axes, x in zip(method.companion_axes, inputs[1:])] or letters[1:]
    return [{a: name for a, name in enumerate(each) if name not in f"{fixed}_"} for each in letters]


def is_first_of_its_rank(method: Method, case: Case) -> bool:
    return case is next(c for c in method.cases if c.rank == case.rank)


def graph_dtypes(method: Method, case: Case) -> tuple[str, ...]:
    """Dtypes to export in: all for the first case of every rank, which a graph's other options do not interact with."""
    return method.graph_dtypes if is_first_of_its_rank(method, case) else ("float32",)


@cache
def specimen(method: Method, case: Case, dtype: str) -> Specimen:
    return Specimen(method, case, dtype)


def _arrays(output: torch.Tensor | tuple[torch.Tensor, ...]) -> Arrays:
    tensors = output if isinstance(output, tuple) else (output,)
    return tuple(t.detach().numpy() for t in tensors)
