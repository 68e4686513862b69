"""A user's folder, the command line in it, and a few exports that many tests read."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from poolexport.cli import main

Run = Callable[..., Result]
SMALL = ("nets.py:small", "--weights", "ok.safetensors")


def invoke(*words: object) -> Result:
    # wide enough that no path of a temporary folder is folded
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, [str(word) for word in words])


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """The current folder, with what is imported from it forgotten afterwards."""
    here, paths, modules = Path.cwd(), sys.path[:], set(sys.modules)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.path[:] = paths
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


class Shell:
    """Something that a pickle can carry to make its reader run a command."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch ran",))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's nets.py and weights, good ones and bad ones."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copy(Path(__file__).with_name("nets.py"), folder)
    (folder / "broken.py").write_text("def build(:\n")
    (folder / "needy.py").write_text("import no_such_package\n")
    (folder / "loud.py").write_text("import os\nfrom nets import *\nos.system('echo from a program')\n")
    (folder / "pkg" / "sub").mkdir(parents=True)
    (folder / "pkg" / "sub" / "rel.py").write_text("from .nets import small\n")
    (folder / "script.py").write_text("import sys\n\nsys.exit(3)\n")
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = {name: torch.randn_like(value) for name, value in net.state_dict().items()}
    save_file(state, folder / "ok.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, folder / "nested.pt")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, folder / "parallel.pth")
    torch.save({"0.weight": state["0.weight"]}, folder / "missing.pt")
    torch.save({**state, "head.bias": torch.zeros(2)}, folder / "unexpected.pt")
    torch.save({**state, "0.weight": torch.zeros(4, 3, 5, 5)}, folder / "reshaped.pt")
    torch.save(net, folder / "whole.pt")
    torch.save({"0.weight": Shell()}, folder / "shell.pt")
    (folder / "raw.bin").write_bytes(pickle.dumps(Shell()))
    torch.save({"epoch": 3}, folder / "epoch.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({**state, "0.bias": [1.0, 2.0, 3.0, 4.0]}, folder / "values.pt")
    torch.save(dict(enumerate(state.values())), folder / "numbers.pt")
    torch.save({**state, "0.bias": torch.ones(4, dtype=torch.int32)}, folder / "integers.pt")
    save_file({**state, "0.weight": state["0.weight"].to(torch.complex64)}, folder / "complex.safetensors")
    shutil.copy(folder / "ok.safetensors", folder / "renamed.pt")
    with torch.random.fork_rng():
        torch.manual_seed(8)
        rows = {"0.weight": torch.randn(4, 16).double() / 3, "0.bias": torch.randn(4).double() / 3}
    save_file(rows, folder / "rows.safetensors")
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        with zipfile.ZipFile(folder / "missing.pt") as archive:
            for name in archive.namelist():
                bomb.writestr(name, archive.read(name) + bytes(1 << 20) * name.endswith("data/0"))
    torch.jit.save(torch.jit.script(net), folder / "program.pt")
    (folder / "cut.pt").write_bytes((folder / "nested.pt").read_bytes()[:500])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "cut.safetensors").write_bytes((folder / "ok.safetensors").read_bytes()[:90])
    (folder / "weights.h5").write_bytes(b"HDF")
    return folder


@pytest.fixture
def run(source: Path) -> Iterator[Run]:
    """The command line, in the user's folder."""
    with working_in(source):
        yield invoke


@pytest.fixture(scope="session")
def bundle(source: Path) -> Path:
    """A bundle of ``small`` with trained weights and dynamic axes."""
    path = source.parent / "bundle"
    with working_in(source):
        result = invoke("export", *SMALL, "--input", "1x3x16x16", "--dynamic", "N,H,W", "-o", path)
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="session")
def portable(source: Path) -> Path:
    """A single file of ``stochastic``, of standard operators only."""
    path = source.parent / "portable.onnx"
    with working_in(source):
        result = invoke("export", "nets:stochastic", "--input", "1x3x16x16", "--portable", "-o", path)
    assert result.exit_code == 0, result.output
    return path
