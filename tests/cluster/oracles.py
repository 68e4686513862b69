"""Serve and run on a real cluster, and break it: ``make test-ray``, or this file. Takes root, for namespaces.

Two machines, each with a Ray node, a network address and a /tmp of its own; the second one has no models. Clients ask
both proxies, look at every number and ask once more where they get none, while a replica is killed, the models are
updated, an update fails, and a machine is lost, a batch job on it. Exit code 1 where a request is lost or wrong, a file
has no answer or two, or where a fault that is planted on purpose goes unnoticed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import poolexport  # noqa: E402
from cluster.load import Load, Tally  # noqa: E402
from cluster.machines import Machine, cluster, run, start  # noqa: E402
from processes import environment  # noqa: E402
from serve import models  # noqa: E402

ENVIRONMENT = ROOT / ".venv-ray"
PACKAGES = ("ray[serve,data]==2.60.0", "tritonclient[grpc,http]", "onnx", "onnxruntime", "click", "rich", "pillow")
SERVING = ("starlette", "granian", "orjson", "grpcio", "protobuf", "prometheus-client", "numpy")
SECRET = "open sesame"
#: Files of the batch job, and numbers in a row.
FILES, WIDTH = 240, 256


class Mean(torch.nn.Module):
    """The mean of every plane, times a number that tells versions apart."""

    def __init__(self, version: float) -> None:
        super().__init__()
        self.version = version

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * self.version


def copying(path: Path, times: int) -> Path:
    """A model whose answer is its input, after as many multiplications by one; about 40 us for each."""
    one = onnx.numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "one")
    counts = onnx.numpy_helper.from_array(np.array(times, np.int64), "times")
    true = onnx.numpy_helper.from_array(np.array(True), "yes")
    port, flag = onnx.helper.make_tensor_value_info, onnx.TensorProto.BOOL
    body = onnx.helper.make_graph(
        [models.node("MatMul", "a one", "b"), models.node("Identity", "go", "on")],
        "body",
        [port("i", onnx.TensorProto.INT64, []), port("go", flag, []), port("a", models.FLOAT, [1, WIDTH])],
        [port("on", flag, []), port("b", models.FLOAT, [1, WIDTH])],
    )
    nodes = [models.node("Loop", "times yes x", "y", body=body)]
    ports = {"x": (models.FLOAT, [1, WIDTH])}, {"y": (models.FLOAT, [1, WIDTH])}
    return models.write(path, nodes, *ports, initializers=[one, counts, true])


class Trial:
    """What is tried on one cluster, and what went wrong.

    Args:
        python: of the environment with Ray.
        work: folder for logs, tokens and answers.
        models: folder with the bundles, which only the head has.
        machines: of the cluster.
    """

    def __init__(self, python: Path, work: Path, models: Path, machines: Sequence[Machine]) -> None:
        self.python, self.work, self.models = python, work, models
        self.head, self.other = machines
        self.faults: list[str] = []
        self.tokens = work / "tokens"
        self.tokens.write_text(SECRET + "\n")

    def expect(self, right: bool, told: str) -> None:
        print(f"{'ok   ' if right else 'FAULT'} {told}", flush=True)
        if not right:
            self.faults.append(told)

    def serving(self, model: str, log: str, *words: str, setup: str = "") -> subprocess.Popen[bytes]:
        """The command that serves a bundle under the name ``net``, started on the head."""
        script = f"{setup}\nfrom poolexport.cli import main\nmain()"
        command = [self.python, "-c", script, "serve", f"net={self.models / model}", "--ray", "--host", "0.0.0.0"]
        command += ["--grpc-port", "8001", "--tokens", self.tokens, "--replicas", "2", *words]
        return start(self.head, command, self.work / log)

    def said(self, log: str) -> str:
        return (self.work / log).read_text()

    def until(self, true: Callable[[], bool], what: str, seconds: float = 90) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if true():
                return True
            time.sleep(0.25)
        self.expect(False, f"{what} did not come in {seconds:g} s")
        return False

    def serves(self, log: str) -> None:
        self.until(lambda: "serving at" in self.said(log), f"'serving at' in {log}: {self.said(log)[-800:]}")
        self.until(lambda: self.proxies() == 2, "a proxy on both machines")

    def proxies(self) -> int:
        """Proxies that answer."""
        asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "2"]
        urls = [f"http://{machine.address}:8000/v2/health/ready" for machine in (self.head, self.other)]
        return sum(subprocess.run([*asked, url], capture_output=True).stdout == b"200" for url in urls)

    def load(self, *versions: float, token: str = SECRET, addresses: Sequence[str] = (), threads: int = 3) -> Load:
        both = self.head.address, self.other.address
        return Load(addresses or both, "net", versions, token, threads)

    def judge(self, what: str, tally: Tally) -> None:
        fine = not tally.lost and not tally.wrong and sum(tally.versions.values()) > 100
        self.expect(fine, f"{what}: {tally.told()} {tally.lost[:2]}")


def ask_clients(trial: Trial) -> None:
    """The published client of the protocol, through every proxy."""
    for machine in (trial.head, trial.other):
        asked = run(machine, trial.python, ROOT / "tests/cluster/ask.py", machine.address, SECRET)
        trial.expect(asked.returncode == 0, f"tritonclient at {machine.address}: {asked.stdout}{asked.stderr[-1500:]}")


def plant(trial: Trial) -> None:
    """Faults that the clients have to notice."""
    with trial.load(3.0) as wrong:
        time.sleep(1)
    trial.expect(wrong.wrong > 0 and not wrong.versions, f"planted, another version: {wrong.told()}")
    with trial.load(1.0, token="closed sesame") as refused:
        time.sleep(1)
    told = f"planted, another token: {refused.told()}"
    trial.expect(bool(refused.lost) and set(refused.first) == {401} and not refused.versions, told)
    with trial.load(1.0, addresses=[f"{trial.head.address[:-1]}9"] * 2) as nobody:
        time.sleep(4)
    trial.expect(bool(nobody.lost) and set(nobody.first) == {0}, f"planted, nobody there: {nobody.told()}")


def kill_replicas(trial: Trial) -> None:
    for machine in (trial.head, trial.other):
        with trial.load(1.0) as tally:
            time.sleep(3)
            killed = machine.kill("ray::ServeReplica")
            time.sleep(8)
        trial.judge(f"{killed} replicas of {machine.name} killed", tally)
    both = (trial.head, trial.other)
    trial.until(lambda: sum(len(m.processes("ray::ServeReplica")) for m in both) == 2, "two replicas again")


def update(trial: Trial, before: subprocess.Popen[bytes], model: str, log: str) -> subprocess.Popen[bytes]:
    """Serve another model by the same name; the command that did it."""
    with trial.load(1.0, 2.0) as tally:
        time.sleep(2)
        command = trial.serving(model, log)
        trial.serves(log)
        served = time.monotonic()
        time.sleep(3)
    trial.judge("updated", tally)
    late = {version for at, version in tally.times if at > served + 1}
    trial.expect(late == {2.0} and len(tally.versions) == 2, f"after the update, only the new version: {late}")
    ended = trial.until(lambda: before.poll() is not None, "the end of the command before", 20)
    trial.expect(ended and before.returncode == 0, "the command before ends by itself")
    return command


def fail_to_update(trial: Trial, command: subprocess.Popen[bytes]) -> None:
    """A model that does not travel is not there on the other machine; one that is served by a command stays its own."""
    with trial.load(1.0, 2.0) as tally:
        setup = "from poolexport import cluster\ncluster.packed.__defaults__ = (0,)"
        words = ("--replicas-per-node", "1")
        code = trial.serving("one", "failed.log", *words, setup=setup).wait(120)
        time.sleep(2)
    said = trial.said("failed.log")
    right = code == 1 and "is not on this machine" in said and "so do old ones" in said
    trial.expect(right, f"planted, a model that does not travel: {said[-300:]}")
    trial.judge("while an update failed", tally)
    trial.expect(command.poll() is None, "the command that served before goes on")


def lose_a_machine(trial: Trial) -> None:
    """Kill every process of the other machine while both serve, and run a batch job."""
    inputs, out = trial.work / "inputs", trial.work / "answers"
    inputs.mkdir()
    rng = np.random.default_rng(0)
    wanted = {f"{number:03}": rng.standard_normal((1, WIDTH)).astype(np.float32) for number in range(FILES)}
    for name, x in wanted.items():
        np.save(inputs / f"{name}.npy", x)
    command = [trial.python, "-m", "poolexport", "run", trial.models / "copying.onnx", inputs, "-o", out]
    job = start(trial.head, [*command, "--ray", "--json"], trial.work / "job.log")
    trial.until(lambda: bool(trial.other.processes("MapWorker")), "a part of the batch job on the other machine")
    trial.until(lambda: len(list(out.glob("*.npz"))) > FILES // 8, "an eighth of the answers")
    with trial.load(2.0) as tally:
        time.sleep(2)
        trial.expect(bool(trial.other.processes("MapWorker")), "the other machine works on the batch job")
        before = len(list(out.glob("*.npz")))
        killed = trial.other.kill()
        trial.until(lambda: job.poll() is not None, "the end of the batch job", 300)
        time.sleep(10)
    trial.judge(f"a machine lost, all {killed} processes of it", tally)
    said = trial.said("job.log")
    trial.expect(job.returncode == 0 and before < FILES, f"the batch job ends, {before} answers before: {said[-600:]}")
    trial.expect(f'"written": {FILES}' in said, "every file was answered once")
    trial.expect(not unlike(wanted, out), f"every answer is right: {unlike(wanted, out)}")
    (out / "000.npz").unlink()
    np.savez(out / "001.npz", y=-wanted["001"])
    np.savez(out / "more.npz", y=wanted["002"])
    trial.expect(unlike(wanted, out) == ["000", "001", "more"], "planted, no, another and one more answer")


def unlike(wanted: dict[str, np.ndarray], out: Path) -> list[str]:
    """Names of answers that are not there, are wrong, or too many."""
    found = {}
    for file in out.glob("*.npz"):
        with np.load(file) as arrays:
            found[file.stem] = arrays["y"]
    names = sorted(wanted.keys() | found.keys())
    return [n for n in names if n not in found or n not in wanted or not np.array_equal(found[n], wanted[n])]


def stop(trial: Trial, command: subprocess.Popen[bytes]) -> None:
    """Told to stop, the command takes the application down, and Ray Serve with it."""
    command.terminate()
    trial.expect(command.wait(60) == 0, f"told to stop, it ends: {trial.said('third.log')[-300:]}")
    trial.until(lambda: not trial.head.processes("ray::ServeReplica"), "no replica any more")


def lose_the_head(trial: Trial) -> None:
    """How long the other machine answers once the head is lost; nothing is expected of it."""
    code = trial.serving("one", "detached.log", "--detach").wait(90)
    trial.expect(code == 0, f"detached, the command ends: {trial.said('detached.log')[-300:]}")
    trial.until(lambda: trial.proxies() == 2, "a proxy on both machines, detached")
    with trial.load(1.0, addresses=[trial.other.address] * 2, threads=1) as tally:
        time.sleep(3)
        lost, killed = time.monotonic(), trial.head.kill()
        while time.monotonic() < lost + 100:
            time.sleep(1)
            if tally.times[-1][0] < time.monotonic() - 8:
                break
    seconds = tally.times[-1][0] - lost
    print(
        f"the head lost, all {killed} processes of it: the other machine answered for {seconds:.1f} s; {tally.told()}"
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--head", action="store_true", help="measure what becomes of a cluster without its head, instead"
    )
    options = parser.parse_args(words)
    if os.geteuid():
        raise SystemExit("error: network namespaces take root; run this as root, in a container for example")
    python = environment(ENVIRONMENT, (*PACKAGES, *SERVING, "--constraint", str(ROOT / "constraints.txt")))
    with tempfile.TemporaryDirectory() as folder:
        work, hidden = Path(folder), Path(folder, "models")
        hidden.mkdir()
        for name, version in (("one", 1.0), ("two", 2.0)):
            net, x = Mean(version).eval(), torch.zeros(2, 3, 4, 5)
            poolexport.export(net, x, hidden / name, dynamic_shapes={0: "N"}, output_names=["y"], input_names=["x"])
        copying(hidden / "copying.onnx", 2500)
        with cluster(python, work, hidden) as machines:
            trial = Trial(python, work, hidden, machines)
            if options.head:
                lose_the_head(trial)
            else:
                first = trial.serving("one", "first.log")
                trial.serves("first.log")
                ask_clients(trial)
                plant(trial)
                kill_replicas(trial)
                second = update(trial, first, "two", "second.log")
                fail_to_update(trial, second)
                third = update(trial, second, "two", "third.log")
                lose_a_machine(trial)
                stop(trial, third)
    print(json.dumps({"faults": trial.faults}, indent=1))
    return 1 if trial.faults else 0


if __name__ == "__main__":
    sys.exit(main())
