"""Servers in processes of their own, and what Linux says of them: time, memory, and who else was busy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
#: Seconds for what a server leaves behind, to clean up after itself.
LEFTOVERS = 3
#: Processes whose parent dies become children of this one instead of the system's first.
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A line of /proc: its parent, its session, the processor time of it and of its children that ended, its memory."""

    ended: bool
    parent: int
    session: int
    seconds: float
    resident: int


def processes() -> dict[int, Process]:
    """Everything that runs, by number."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            times = map(int, fields[11:15])
            found[int(folder.name)] = Process(
                fields[0] in "ZX", int(fields[1]), int(fields[3]), sum(times) / TICKS, int(fields[21]) * PAGE
            )
    return found


def tree(root: int) -> dict[int, Process]:
    """A process, what it started, what those started, and what stayed in its session after they ended."""
    everything = processes()
    found = {root} | {pid for pid, process in everything.items() if process.session == root}
    while more := {pid for pid, process in everything.items() if process.parent in found} - found:
        found |= more
    return {pid: everything[pid] for pid in found if pid in everything}


def machine_seconds() -> float:
    """Processor time that all processes of the machine took since it started, without interrupts."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    user, nice, system = map(int, fields[1:4])
    return (user + nice + system) / TICKS


def own_seconds() -> float:
    """Processor time of this process and all that it ever started."""
    return sum(process.seconds for process in tree(os.getpid()).values())


class Watch:
    """From when it is made: how long, and how many cores other people's processes kept busy meanwhile."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._machine, self._own = machine_seconds(), own_seconds()

    def others(self) -> float:
        taken = machine_seconds() - self._machine - (own_seconds() - self._own)
        return max(0.0, taken / (time.perf_counter() - self._begin))


def adopt_orphans() -> None:
    """Let what servers leave behind become children of this process, so that ``end_everything`` finds it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_everything() -> list[int]:
    """Kill whatever this process started and is still there; their numbers."""
    left = sorted(set(tree(os.getpid())) - {os.getpid()})
    for pid in left:
        _signal(pid, signal.SIGKILL)
    for pid in left:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue
    return left


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Server:
    """A command that was started, in a folder and a session of its own.

    Args:
        words: the command.
        folder: where it runs, and where its log is.
        variables: of its environment, beside those of this process.
    """

    def __init__(self, words: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        self.seconds = 0.0
        with self.log.open("wb") as log:
            self._begin = time.perf_counter()
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **variables},
                start_new_session=True,
            )

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until it is ready; ``seconds`` holds how long that took.

        Raises:
            RuntimeError: it ends, or is not ready in time, with the end of its log.
        """
        while not ready():
            taken = time.perf_counter() - self._begin
            if self.process.poll() is not None or taken > seconds:
                told = self.log.read_text(errors="replace").strip()[-600:]
                raise RuntimeError(f"not ready after {taken:.0f} s: {told or 'it says nothing'}")
            time.sleep(0.01)
        self.seconds = time.perf_counter() - self._begin

    def cpu(self) -> float:
        """Processor time of all its processes so far, in seconds."""
        return sum(process.seconds for process in tree(self.process.pid).values())

    def memory(self) -> dict[str, float]:
        """MB that all its processes hold: shared pages in parts (pss), or once for each (rss)."""
        found = tree(self.process.pid)
        pss = 0
        for pid in found:
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            pss += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return {"pss": pss * 1024 / 1e6, "rss": sum(process.resident for process in found.values()) / 1e6}

    def settle(self) -> None:
        """Wait until it does nothing any more, about: it still answers clients that have left."""
        until = time.monotonic() + LEFTOVERS
        used = self.cpu()
        while time.monotonic() < until:
            time.sleep(0.05)
            before, used = used, self.cpu()
            if used - before <= 1 / TICKS:
                return

    def pause(self) -> None:
        """Let it take no processor time at all."""
        for pid in tree(self.process.pid):
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in tree(self.process.pid):
            _signal(pid, signal.SIGCONT)

    def stop(self, seconds: float) -> None:
        """Tell it to end; what is left of it after a while is told so, too, and what is left of that is killed."""
        self.resume()
        found = set(tree(self.process.pid))
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in (left := self._left(found)):
                _signal(pid, number)
            until = time.monotonic() + LEFTOVERS
            while left and time.monotonic() < until:
                time.sleep(0.05)
                left = self._left(found)
        self.process.wait()

    def _left(self, found: set[int]) -> list[int]:
        """Which of these processes, and of any new ones, have not ended."""
        now = processes()
        return [pid for pid in found | set(tree(self.process.pid)) if pid in now and not now[pid].ended]
