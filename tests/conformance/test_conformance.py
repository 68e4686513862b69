"""Every check on every case of every method."""

from __future__ import annotations

import pytest

from conformance.checks import CHECKS, applies
from conformance.lab import specimen
from poolexport import catalog

CELLS = [
    pytest.param(method, case, check, id=f"{method.name}-{case.name}-{check}")
    for method in catalog.methods().values()
    for case in method.cases
    for check in CHECKS
    if applies(check, method, case)
]


@pytest.mark.parametrize(("method", "case", "check"), CELLS)
def test_method_passes(method, case, check, ledger):
    CHECKS[check](method, case, specimen)
    ledger(method.name, check)
