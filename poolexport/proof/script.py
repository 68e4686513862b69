"""A failing input on disk, with a script that shows the failure to people who have no poolexport."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from poolexport.disk import move, require_folder, staged
from poolexport.errors import OutputError

TEMPLATE = """\
# Exits with 1 while the file answers wrongly. Usage: python {script} [model.onnx]
import pathlib, sys
import numpy as np, onnxruntime
here, wrong, _ = pathlib.Path(__file__).parent, False, np.seterr(all="ignore")
case = np.load(here / {data!r})
session = onnxruntime.InferenceSession(sys.argv[1] if sys.argv[1:] else here / {model!r})
answers = session.run(None, {{port.name: case["input:" + port.name] for port in session.get_inputs()}})
for name, answer in zip([port.name for port in session.get_outputs()], answers):
    truth, bound = case["truth:" + name], case["bound:" + name]
    same = (answer == truth) | (answer != answer) & (truth != truth) if answer.shape == truth.shape else None
    off = np.inf if same is None else np.abs(np.where(same, 0.0, answer - truth.astype(float))).max(initial=0.0)
    print(f"{{name}}: off by {{off:.3g}}, allowed {{bound:.3g}}", answer.ravel()[:4], "instead of", truth.ravel()[:4])
    wrong |= not off <= bound
sys.exit(wrong)
"""


def require_room(target: Path, *, force: bool = False) -> None:
    """Raise unless a witness and its script can be written.

    Raises:
        OutputError: it is no ``.npz``, the folder is not there, or there is something already.
    """
    if target.suffix != ".npz":
        raise OutputError(f"a witness is a .npz file, {target} is not; call it {target.stem}.npz")
    require_folder(target)
    for path in (target, target.with_suffix(".py")):
        if path.is_dir() or (path.exists() and not force):
            raise OutputError(f"{path} exists; choose another name, or replace it with --force (force=True)")


def write(target: Path, model: Path, arrays: Mapping[str, np.ndarray], *, force: bool = False) -> tuple[Path, Path]:
    """Write ``arrays`` to ``target``, and a script of the same name beside it.

    Args:
        target: a path that ends in ``.npz``.
        model: the .onnx file that fails; the script finds it from where it lies, or where it is told.
        arrays: ``input:NAME`` for every input, ``truth:NAME`` and ``bound:NAME`` for every output.
        force: replace what is there.

    Raises:
        OutputError: it cannot be written, or there is something already.
    """
    require_room(target, force=force)
    script = target.with_suffix(".py")
    relative = os.path.relpath(model.absolute(), target.absolute().parent)
    with staged(target) as folder:
        np.savez(folder / target.name, **arrays)  # type: ignore[arg-type]
        (folder / script.name).write_text(TEMPLATE.format(script=script.name, data=target.name, model=relative))
        move(folder / script.name, script)
        move(folder / target.name, target)
    return target, script
