"""Machines of a cluster on this one: network namespaces with an address, a /tmp and no models of their own.

Takes root, or CAP_NET_ADMIN and CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BRIDGE, NET = "poolexport", "10.199.77"
HEAD = f"{NET}.1:6379"
#: Bytes of Ray's store of objects on each machine.
STORE = 100_000_000
#: Which processes of the cluster show each other.
TOKEN = "0123456789abcdef" * 4


@dataclass
class Machine:
    """A network namespace with a Ray node in it, which ``process`` is the first process of."""

    name: str
    address: str
    process: subprocess.Popen[bytes]

    def inside(self, *words: str | Path) -> list[str]:
        """A command line that runs a command on the machine."""
        return ["nsenter", "-t", str(self.process.pid), "-n", "-m", *map(str, words)]

    def processes(self, title: str = "") -> list[int]:
        """Process numbers on the machine; of those only whose command line has this in it."""
        pids = [int(pid) for pid in _ip("netns", "pids", self.name).split()]
        return [pid for pid in pids if title in _command(pid)]

    def kill(self, title: str = "") -> int:
        """SIGKILL processes, all of them or those of a title; how many."""
        found = self.processes(title)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def cluster(python: Path, work: Path, hidden: Path, *, count: int = 2, cpus: int = 3) -> Iterator[list[Machine]]:
    """Machines with a Ray node each; the first is the head.

    Args:
        python: of an environment with Ray.
        work: folder for logs.
        hidden: folder that only the head has.
        count: of machines.
        cpus: of each, as Ray counts them.
    """
    names = [f"poolexport-{number}" for number in range(count)]
    machines: list[Machine] = []
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NET}.254/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("link", "add", f"px{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"px{number}", "master", BRIDGE, "up")
            address = f"{NET}.{number + 1}"
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            # a way out, which leads nowhere, tells Ray which address is the machine's own
            _ip("-n", name, "route", "add", "default", "via", f"{NET}.254")
            machines.append(Machine(name, address, _node(python, work, hidden, name, address, cpus, head=not number)))
            _wait_for_nodes(machines[0], python, number + 1)
        yield machines
    finally:
        for number, name in enumerate(names):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "del", f"px{number}")
            with contextlib.suppress(subprocess.CalledProcessError):
                for pid in _ip("netns", "pids", name).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                _ip("netns", "del", name)
        for machine in machines:
            machine.process.wait()
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", BRIDGE)


def _node(
    python: Path, work: Path, hidden: Path, name: str, address: str, cpus: int, *, head: bool
) -> subprocess.Popen[bytes]:
    ray = [python.with_name("ray"), "start", "--block", "--disable-usage-stats", f"--node-ip-address={address}"]
    ray += [f"--num-cpus={cpus}", f"--object-store-memory={STORE}"]
    ray += ["--head", "--port=6379", "--include-dashboard=false"] if head else [f"--address={HEAD}"]
    mounts = ["mount -t tmpfs none /tmp/ray"] + ([] if head else [f"mount -t tmpfs none {hidden}"])
    script = " && ".join([*mounts, "exec " + " ".join(map(str, ray))])
    Path("/tmp/ray").mkdir(exist_ok=True)
    with (work / f"{name}.log").open("wb") as log:
        words = ["ip", "netns", "exec", name, "unshare", "-m", "sh", "-c", script]
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment())


def environment(**more: str) -> dict[str, str]:
    """Variables of everything that runs on a machine."""
    root = str(Path(__file__).parents[2])
    ours = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return os.environ | ours | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN} | more


def _member() -> dict[str, str]:
    """Variables of what works on this cluster, whichever others the machine has."""
    return environment(RAY_ADDRESS=HEAD)


def run(machine: Machine, *words: str | Path, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command on a machine to its end."""
    return subprocess.run(
        machine.inside(*words), capture_output=True, text=True, check=False, timeout=seconds, env=_member()
    )


def start(machine: Machine, words: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    """Start a command on a machine."""
    with log.open("wb") as file:
        return subprocess.Popen(machine.inside(*words), stdout=file, stderr=file, env=_member())


def _wait_for_nodes(head: Machine, python: Path, count: int) -> None:
    """Wait until Ray knows so many nodes."""
    script = (
        "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR');"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    until = time.monotonic() + 90
    said = ""
    while time.monotonic() < until:
        time.sleep(1)
        done = run(head, python, "-c", script)
        said = done.stdout + done.stderr
        if done.stdout.strip().endswith(str(count)):
            return
    raise SystemExit(f"error: there are no {count} nodes: {said[-2000:]}")
