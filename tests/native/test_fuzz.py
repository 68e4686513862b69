"""A bounded piece of what ``make fuzz`` and ``make test-sanitize`` do at length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_kernels_survive_what_is_drawn_at_random_and_answer_right(seed, tmp_path):
    words = [sys.executable, "-m", "native.fuzz", "--calls", "1500", "--seed", str(seed), "--progress", tmp_path / "at"]
    done = subprocess.run(words, cwd=TESTS, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-2000:]}at group {(tmp_path / 'at').read_text()}"
    assert "0 faults" in done.stdout
