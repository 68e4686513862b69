"""Options of the whole suite."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from onnxscript._framework_apis import torch_2_5
from torch._export import utils as torch_utils
from torch.onnx._internal.exporter import _constants, _decomp, _registration
from xdist.scheduler import LoadScopeScheduling


def _keep_what_torch_builds_anew_for_every_export() -> None:
    """Two thirds of the time that an export takes, though nothing changes any of it between exports."""
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


_keep_what_torch_builds_anew_for_every_export()
# Workers run side by side; more threads in each would only get in each other's way.
torch.set_num_threads(1)


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
