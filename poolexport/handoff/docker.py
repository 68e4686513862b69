"""A folder that ``docker build`` turns into a server of one model: no torch, no compiler, no root.

Dockerfile         an image of Python with what the server needs, at the versions that are installed here
requirements.txt   those versions
model/             the bundle or the .onnx file
poolexport/        this package
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from pathlib import Path

import poolexport
from poolexport.bundle import files
from poolexport.disk import move, require_folder, staged
from poolexport.errors import InputError, OutputError
from poolexport.handoff.deployment import Deployment

#: What the server imports besides the packages of the extra.
NEEDED = ("numpy", "onnx", "onnxruntime", "click", "rich")
EXTRA = "serve"

DOCKERFILE = """\
FROM python:{python}-slim

RUN useradd --create-home --uid 10001 server
WORKDIR /srv
COPY requirements.txt .
RUN pip install --no-cache-dir --requirement requirements.txt
COPY poolexport poolexport
COPY model models/{name}

USER server
ENV PYTHONUNBUFFERED=1
EXPOSE 8000 8001
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD \\
  ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "poolexport", "serve", "{served}", "--host", "0.0.0.0"]
"""


def docker(model: Deployment, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write the folder.

    Raises:
        InputError: a package that the server needs is not installed here.
        OutputError: the folder is there already, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not force:
        raise OutputError(f"{target} exists; choose another path, or replace it with --force (force=True)")
    if target.exists() and not (target / "Dockerfile").is_file():
        raise OutputError(f"{target} was not written by poolexport package; it is not replaced")
    require_folder(target)
    requirements = "".join(f"{name}=={version}\n" for name, version in pinned().items())
    with staged(target) as staging:
        (staging / "Dockerfile").write_text(dockerfile(model))
        (staging / "requirements.txt").write_text(requirements)
        (staging / "model").mkdir()
        for file in _files(model):
            shutil.copyfile(file, staging / "model" / file.name)
        source = Path(poolexport.__file__).parent
        shutil.copytree(source, staging / "poolexport", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        move(staging, target)
    return target


def dockerfile(model: Deployment) -> str:
    """The text of the Dockerfile."""
    served = f"models/{model.name}" + ("" if model.path.is_dir() else f"/{model.file.name}")
    return DOCKERFILE.format(
        python=f"{sys.version_info.major}.{sys.version_info.minor}", name=model.name, served=served
    )


def pinned() -> dict[str, str]:
    """The packages that the server needs, at the versions that are installed here."""
    names = [*NEEDED, *(_package(line) for line in importlib.metadata.requires("poolexport") or () if _of_extra(line))]
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(re.sub(r"\[.*\]", "", name))
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError(
                f"the server needs {name}, whose version is taken from this environment, where it is not installed; "
                f"run: pip install 'poolexport[{EXTRA}]'"
            ) from error
    return versions


def _of_extra(requirement: str) -> bool:
    return re.search(rf"extra\s*==\s*['\"]{EXTRA}['\"]", requirement) is not None


def _package(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?", requirement)
    assert found is not None
    return found[0]


def _files(model: Deployment) -> list[Path]:
    """The files of a bundle, or a single model and its weights."""
    return files(model.path) if model.path.is_dir() else list(model.files)
