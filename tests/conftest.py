"""Options of the whole suite."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from onnxscript._framework_apis import torch_2_5
from torch._export import utils as torch_utils
from torch._subclasses.fake_impls import op_implementations_dict
from torch.export import exported_program
from torch.onnx._internal.exporter import _constants, _decomp, _registration
from xdist.scheduler import LoadScopeScheduling


def _keep_what_torch_builds_anew_for_every_export() -> None:
    """Four fifths of the time that an export takes, though nothing changes any of it between exports."""
    torch_2_5.get_torchlib_ops = cache(torch_2_5.get_torchlib_ops)
    torch_utils._materialize_cpp_cia_ops = cache(torch_utils._materialize_cpp_cia_ops)
    registry_of = cache(_registration.ONNXRegistry.from_torchlib)
    decompositions_of = cache(_decomp.create_onnx_friendly_decomposition_table)

    def from_torchlib(opset_version: int = _constants.TORCHLIB_OPSET) -> _registration.ONNXRegistry:
        kept = registry_of(opset_version)
        registry = copy.copy(kept)
        registry.functions = {name: list(functions) for name, functions in kept.functions.items()}
        return registry

    _registration.ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
    _decomp.create_onnx_friendly_decomposition_table = lambda ops: dict(decompositions_of(frozenset(ops)))
    exported_program._override_composite_implicit_decomp = _kept_kernels(
        exported_program._override_composite_implicit_decomp
    )


def _kept_kernels(override: Callable[..., Any]) -> Callable[..., Any]:
    """torch's own context that gives some hundred operators other kernels while it decomposes a graph: the kernels that
    it makes the first time are kept, and put in place again."""
    kept: dict[frozenset[Any], tuple[dict[Any, dict[Any, Any]], dict[Any, Any]]] = {}

    @contextmanager
    def again(decompositions: dict[Any, Any]) -> Iterator[None]:
        key = frozenset(decompositions.items())
        if key not in kept:
            with override(decompositions):
                kept[key] = (
                    {operator: dict(operator.py_kernels) for operator in decompositions},
                    {operator: op_implementations_dict[operator] for operator in decompositions},
                )
                yield
            return
        kernels, implementations = kept[key]
        before = {operator: operator.py_kernels for operator in kernels}
        try:
            for operator, own in kernels.items():
                operator.py_kernels = own
                operator._dispatch_cache.clear()
            op_implementations_dict.update(implementations)
            yield
        finally:
            for operator, own in before.items():
                operator.py_kernels = own
                operator._dispatch_cache.clear()
                op_implementations_dict.pop(operator, None)

    return again


_keep_what_torch_builds_anew_for_every_export()
# Workers run side by side; more threads in each would only get in each other's way.
torch.set_num_threads(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the garbage collector leave alone what will never be garbage; exports make it look through it very often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class ByMethod(LoadScopeScheduling):
    """Keeps on one worker what shares costly exports: the checks of one method, and else the tests of one file."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        parameters = test.partition("[")[2]
        if not file.startswith(("tests/conformance/", "tests/ops/")):
            return file
        return f"{file} {parameters.partition('-')[0]}" if file.endswith("test_conformance.py") else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return ByMethod(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ledger", action="store_true", help="fail unless every check ran on every method")


def pytest_terminal_summary(terminalreporter, exitstatus, config: pytest.Config) -> None:
    if not config.getoption("--ledger"):
        return
    from conformance.ledger import empty_cells

    empty = empty_cells(terminalreporter.getreports("passed"))
    terminalreporter.section("conformance ledger")
    for cell in empty:
        terminalreporter.line(f"EMPTY {cell}", red=True)
    terminalreporter.line(f"{len(empty)} empty cells")
    config.stash[EMPTY] = len(empty)


EMPTY = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--ledger") and session.config.stash.get(EMPTY, 0):
        session.exitstatus = 1
