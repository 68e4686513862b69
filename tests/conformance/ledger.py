"""The ledger: which check ran on which method."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from conformance.checks import CHECKS
from poolexport import catalog

CELL = "conformance cell"


def empty_cells(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Cells of method by check in which nothing ran to its end."""
    ran = {value for report in reports for name, value in report.user_properties if name == CELL}
    cells = [f"{method} {check}" for method in catalog.methods() for check in CHECKS]
    return [cell for cell in cells if cell not in ran]
