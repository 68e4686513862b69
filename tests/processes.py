"""What programs that run others need: an environment with packages of its own, and ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment that holds these packages, made where there is none or where it holds others.

    Args:
        folder: of the environment.
        packages: as pip is told.

    Raises:
        SystemExit: they cannot be installed, with the reason.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "done"
    if done.is_file() and python.is_file() and done.read_text() == "\n".join(packages):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    words = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (made.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise SystemExit(
            f"error: {', '.join(packages)} could not be installed into {folder}: {reason}\n"
            "the package registry is needed once; try again online"
        )
    done.write_text("\n".join(packages))
    return python


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
