"""What conformance tests use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conformance.ledger import CELL


@pytest.fixture
def ledger(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Called at the end of a check, to say that it ran."""
    return lambda method, check: record_property(CELL, f"{method} {check}")
