"""Let the systems that models are handed to read what we wrote: ``make test-handoff``, or this file.

Triton's core (the one inside nvidia-pytriton) loads a repository of ours, runs its warm-up, and tells Triton's own
client what it made of it. Its onnxruntime backend is in no Python package, so a backend of that name in the folder
backend/ runs the file, for the warm-up only: its answers to requests come back empty, so none is compared.
The classes of KServe and Kubernetes read the InferenceService. Each has an environment of its own in .venv-handoff.
Exit code 1 where they read something else than was meant, or where a fault that is planted on purpose goes unnoticed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import poolexport  # noqa: E402
from poolexport.handoff import deployment, kserve, triton  # noqa: E402
from poolexport.nn import RoIMaxPool2d, SoftPool2d  # noqa: E402
from processes import environment, free_ports  # noqa: E402

ENVIRONMENTS = HERE.parents[1] / ".venv-handoff"
PACKAGES = {
    "triton": ("nvidia-pytriton==0.7.0", "tritonclient[http]", "onnxruntime==1.22.1", "numpy<2"),
    "kserve": ("kserve==0.21.0",),
}


def bundles(folder: Path) -> list[Path]:
    """A classifier with a proven batch axis, and a pooling of regions without one."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 4, 3), SoftPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    net = torch.nn.Sequential(*layers).eval()
    images, boxes = torch.randn(2, 3, 10, 8), torch.tensor([[0.0, 0, 0, 5, 5], [0, 2, 1, 7, 6]])
    poolexport.export(net, images, folder / "images", dynamic_shapes={0: "N", 2: "H", 3: "W"}, opset=18)
    axes = ({2: "H", 3: "W"}, {0: "R"})
    poolexport.export(RoIMaxPool2d(2).eval(), (images[:1], boxes), folder / "regions", dynamic_shapes=axes, opset=18)
    return [folder / "images", folder / "regions"]


@contextmanager
def triton_core(python: Path, repository: Path, work: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Triton's server on a repository, and its HTTP port."""
    find = "import pytriton, pathlib; print(pathlib.Path(pytriton.__file__).parent)"
    package = Path(subprocess.check_output([python, "-c", find], text=True).strip())
    backends = work / "backends"
    if not backends.exists():
        shutil.copytree(package / "tritonserver/backends/python", backends / "python")
        stub = f"tritonserver/python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}"
        for file in (package / stub).iterdir():
            shutil.copy(file, backends / "python")
            (backends / "python" / file.name).chmod(0o755)
        shutil.copytree(HERE / "backend", backends / "onnxruntime")
    server = package / "tritonserver/bin/tritonserver"
    server.chmod(0o755)
    ports = free_ports(3)
    options = dict(zip(("http", "grpc", "metrics"), ports))
    words = [server, "--model-repository", repository, "--backend-directory", backends, "--http-address", "127.0.0.1"]
    words += ["--grpc-address", "127.0.0.1", "--metrics-address", "127.0.0.1"]
    words += [f"--{name}-port={port}" for name, port in options.items()]
    libraries = f"{package.parent / 'nvidia_pytriton.libs'}:{sys.base_prefix}/lib"
    variables = os.environ | {"LD_LIBRARY_PATH": libraries, "BACKEND_PACKAGES": str(package.parent)}
    with open(work / "triton.log", "w") as log:
        process = subprocess.Popen([str(w) for w in words], stdout=log, stderr=log, text=True, env=variables)
        try:
            yield process, ports[0]
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ready(process: subprocess.Popen[str], port: int) -> bool:
    """Whether the server comes up; False where it ends by itself."""
    import urllib.request

    for _ in range(300):
        if process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1):
                return True
        except OSError:
            time.sleep(0.1)
    return False


def ask_triton(folder: Path) -> list[str]:
    """What Triton gets wrong or does not notice."""
    python = environment(ENVIRONMENTS / "triton", PACKAGES["triton"])
    work = folder / "triton"
    work.mkdir()
    repository = work / "repository"
    for bundle in bundles(work):
        triton(deployment(bundle), repository)
    faults = []
    with triton_core(python, repository, work) as (process, port):
        if not ready(process, port):
            return ["Triton does not serve the repository:\n" + (work / "triton.log").read_text()[-3000:]]
        asked = subprocess.run([python, HERE / "ask.py", str(port)], capture_output=True, text=True, check=False)
        print(asked.stdout, end="")
        if asked.returncode:
            faults.append(f"Triton reads something else: {asked.stdout}{asked.stderr}")
    for old, new in (("TYPE_FP32", "TYPE_FP33"), ("dims: 3", "dims: 7"), ("max_batch_size", "maximal_batch")):
        config = repository / "images/config.pbtxt"
        text = config.read_text()
        if old not in text:
            faults.append(f"there is no {old} to plant a fault in")
        config.write_text(text.replace(old, new))
        with triton_core(python, repository, work) as (process, port):
            noticed = not ready(process, port)
        config.write_text(text)
        print(f"planted {new}: {'noticed' if noticed else 'NOT NOTICED'}")
        if not noticed:
            faults.append(f"Triton serves a configuration with {new}")
    return faults


def ask_kserve(folder: Path) -> list[str]:
    """What KServe's classes do not read, or read without noticing a fault."""
    python = environment(ENVIRONMENTS / "kserve", PACKAGES["kserve"])
    work = folder / "kserve"
    work.mkdir()
    [bundle, _] = bundles(work)
    model = deployment(bundle)
    written = {
        "storage": kserve(model, work / "storage.yaml", storage="pvc://models/repository"),
        "image": kserve(model, work / "image.yaml", image="registry/net:1"),
    }
    text = written["storage"].read_text()
    planted = {"storageUri": "storageUrl", "minReplicas: 1": "minReplicas: one", "requests:": "request:"}
    files = [(name, file, True) for name, file in written.items()]
    for number, (old, new) in enumerate(planted.items()):
        files.append((f"planted {new}", work / f"planted{number}.yaml", False))
        files[-1][1].write_text(text.replace(old, new))
    faults = []
    for name, file, right in files:
        done = subprocess.run([python, HERE / "read_service.py", file], capture_output=True, text=True, check=False)
        print(f"kserve, {name}: {'read' if done.returncode == 0 else 'refused'}")
        if (done.returncode == 0) != right:
            faults.append(f"kserve, {name}: {done.stdout}{done.stderr}")
    return faults


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        faults = [*ask_triton(Path(folder)), *ask_kserve(Path(folder))]
    print(json.dumps({"faults": faults}, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
