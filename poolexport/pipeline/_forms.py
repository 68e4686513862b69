"""A file in the forms that runtimes take: as it is, or with its functions written out where they are called."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass, RemoveUnusedOpsetsPass

from poolexport.bundle import MODEL, model_path
from poolexport.errors import InputError, first_line
from poolexport.pipeline import weights
from poolexport.pipeline._ports import settle_ports
from poolexport.runtime import Form, Source
from poolexport.runtime.functions import functions
from poolexport.runtime.kernels import native


def read(source: Source) -> ir.Model:
    """The model in a bundle, an .onnx file or bytes."""
    return ir.from_proto(onnx.load_from_string(source)) if isinstance(source, bytes) else ir.load(model_path(source))


def inlined(model: ir.Model) -> ir.Model:
    """The same model without functions, which is changed in place.

    Raises:
        InputError: functions and graph are written in different opsets.
    """
    names = [[value.name or "" for value in ports] for ports in (model.graph.inputs, model.graph.outputs)]
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            if model.opset_imports.get(domain, version) != version:
                raise InputError(
                    f"the function {function.domain}::{function.name} is written in opset {version} of "
                    f"{domain or 'ai.onnx'} and the graph in {model.opset_imports[domain]}; they cannot be joined"
                )
    try:
        InlinePass()(model)
        RemoveUnusedOpsetsPass()(model)
        NameFixPass()(model)
    except Exception as error:
        raise InputError(f"its functions cannot be inlined: {first_line(error)}") from error
    return settle_ports(model, *names)


class Forms:
    """A file in every form that is asked for, each made when it is; what was made is gone on leaving.

    Args:
        source: the file.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._made: dict[Form, Source] = {"function": source, "native": source}
        self._kept = ExitStack()

    def __enter__(self) -> Forms:
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.close()

    @property
    def different(self) -> set[Form]:
        """The forms that differ from each other: inlined where there are functions, native where kernels serve some."""
        forms: set[Form] = {"function"}
        forms |= {"inlined"} if functions(self._source) else set()
        forms |= {"native"} if native(self._source) else set()
        return forms

    def get(self, form: Form) -> Source:
        """The file in a form.

        Raises:
            InputError: its functions cannot be written out.
        """
        if form not in self._made:
            self._made[form] = self._inlined()
        return self._made[form]

    def _inlined(self) -> Source:
        model = read(self._source)
        if not model.functions:
            return self._source
        plain = inlined(model)
        if weights.size(plain) > weights.MUCH:
            folder = self._kept.enter_context(tempfile.TemporaryDirectory())
            return self._kept.enter_context(weights.draft(plain, Path(folder) / MODEL))
        return ir.to_proto(ir.external_data.load_to_model(plain)).SerializeToString()
