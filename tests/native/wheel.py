"""Build the package with a compiler and without one, install both elsewhere, and run a model: ``make test-wheel``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from processes import environment  # noqa: E402

ELSEWHERE = ROOT / ".venv-wheel"
LIBRARY = "poolexport_ops/kernels/libpoolexport_kernels.so"
#: Runs in an environment without torch, in an empty folder.
TRIAL = """
import sys
import numpy as np
import poolexport
from poolexport.runtime import kernel_library, kernel_operators
from poolexport.runtime.kernels import native
assert sys.prefix in poolexport.__file__, poolexport.__file__
assert (kernel_library() is not None) == (sys.argv[2] == "kernels"), kernel_library()
session = poolexport.session(sys.argv[1])
answer = session.run(None, {"x": np.load(sys.argv[3])})[0]
np.testing.assert_allclose(answer, np.load(sys.argv[4]), rtol=1e-5, atol=1e-6)
print(len(kernel_operators()), "kernels;", ", ".join(native(sys.argv[1])) or "nothing", "runs natively")
"""


def built(folder: Path, *, compiler: bool) -> Path:
    """A wheel, made in an environment of pip's own."""
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    variables = dict(os.environ)
    if not compiler:
        # cmake believes these, and nothing can be compiled with them
        variables |= {"CC": "/nothing/cc", "CXX": "/nothing/c++"}
    subprocess.run([*words, "--wheel-dir", str(folder), str(ROOT)], check=True, env=variables)
    [wheel] = folder.glob("*.whl")
    return wheel


def main() -> None:
    import torch

    import poolexport as here

    python = environment(ELSEWHERE, ["onnxruntime", "numpy"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        x = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(0))
        layer = here.nn.SoftPool2d(2).eval()
        here.export(layer, (x,), folder / "net.onnx", input_names=["x"])
        import numpy as np

        np.save(folder / "x.npy", x.numpy())
        np.save(folder / "y.npy", layer(x).numpy())
        for compiler in (True, False):
            wheel = built(folder / str(compiler), compiler=compiler)
            holds = LIBRARY in zipfile.ZipFile(wheel).namelist()
            print(f"{'with' if compiler else 'without'} a compiler: {wheel.name}, library: {holds}")
            assert holds == compiler
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--force-reinstall", str(wheel)], check=True)
            word = "kernels" if compiler else "none"
            trial = [str(python), "-c", TRIAL, "net.onnx", word, "x.npy", "y.npy"]
            subprocess.run(trial, check=True, cwd=folder)


if __name__ == "__main__":
    main()
