"""The house keeps its own rules."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import poolexport
from poolexport import catalog
from poolexport.method import Case
from poolexport_ops import operators

ROOT = Path(__file__).parents[2]


def test_public_names_are_the_committed_list():
    assert poolexport.__all__ == (ROOT / "tests/house/public_names.txt").read_text().split()
    for name in poolexport.__all__:
        assert getattr(poolexport, name) is not None
    assert set(poolexport.__all__) <= set(dir(poolexport))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'exprot'"):
        _ = poolexport.exprot
    with pytest.raises(AttributeError, match=r"no layer 'SoftPol2d'; it has .*SoftPool2d"):
        _ = poolexport.nn.SoftPol2d


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_opening_a_session_imports_neither_torch_nor_onnxscript():
    code = (
        "import sys, poolexport; poolexport.session; import poolexport.bundle;"
        "print([m for m in ('torch', 'onnxscript', 'onnx_ir', 'onnx') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_methods_can_be_called_whatever_was_imported_first():
    assert run("import poolexport.methods.softpool, poolexport; print('softpool' in poolexport.methods())") == "True"
    assert run("import poolexport; print('softpool' in poolexport.methods())") == "True"
    assert run("from poolexport import methods; print('softpool' in methods())") == "True"


@pytest.mark.parametrize("method", catalog.methods().values(), ids=lambda method: method.name)
def test_layers_are_named_after_their_rank(method):
    for layer, rank in zip(method.layers, method.ranks, strict=True):
        assert re.fullmatch(rf"[A-Z]\w*{rank}d", layer.__name__)
        assert method.layer(rank) is layer
        assert getattr(poolexport.nn, layer.__name__) is layer
    names = [case.name for case in method.cases]
    assert len(set(names)) == len(names)
    assert {case.rank for case in method.cases} == set(method.ranks), "every rank needs a case"


def test_every_operator_is_on_some_card():
    used = {operator.name for method in catalog.methods().values() for operator in method.operators}
    assert used == set(operators())


def test_wider_bounds_need_a_reason():
    with pytest.raises(ValueError, match="without saying why"):
        Case("loose", slack=10.0)


def test_checks_name_no_method():
    for file in ("checks.py", "lab.py", "ledger.py", "test_conformance.py"):
        text = (ROOT / "tests/conformance" / file).read_text()
        for name in catalog.methods():
            assert not re.search(rf"['\"]{name}['\"]", text), f"{file} names {name}"


def test_versions_agree():
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(rf'^version = "{re.escape(poolexport.__version__)}"$', text, flags=re.MULTILINE)
    assert f"## {poolexport.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_runs_the_readmes_test_command():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    assert "\nmake test\n" in readme
    assert ci.rstrip().endswith("\nmake test")
