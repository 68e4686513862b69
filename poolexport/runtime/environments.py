"""Releases of onnxruntime beside the one that is installed: each in a folder of its own in the user's cache.

A folder is made aside and renamed, so that it is whole or not there. What is there already is used without asking
the package registry.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poolexport.errors import InputError

#: Where environments are kept, if not in the user's cache.
PLACE = "POOLEXPORT_CACHE"
NEWEST = "newest"
#: What pip must not do otherwise, however a user has set it up.
SETTINGS = {"USER": "0", "DISABLE_PIP_VERSION_CHECK": "1", "NO_INPUT": "1", "REQUIRE_VIRTUALENV": "0"}
#: Versions that a message lists.
MOST = 8


@dataclass(frozen=True)
class Environment:
    """One release, ready to be run.

    Args:
        version: of onnxruntime, in full.
        packages: the folder that holds it, and numpy.
    """

    version: str
    packages: Path


def cache() -> Path:
    """The folder that environments are kept in: in $POOLEXPORT_CACHE, else in the user's cache."""
    own = os.environ.get(PLACE)
    if own:
        return Path(own).expanduser() / "runtimes"
    users = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(users) if users and Path(users).is_absolute() else Path.home() / ".cache") / "poolexport" / "runtimes"


def environment(release: str) -> Environment:
    """The environment of a release, made where there is none.

    Args:
        release: "1.25.1", or "1.25" for the last patch of it, or "newest".

    Raises:
        InputError: there is no such release, it cannot be had, or the cache cannot be written; nothing is left behind.
    """
    if not (release == NEWEST or re.fullmatch(r"\d+\.\d+(\.\d+)?", release)):
        raise InputError(f"{release!r} is no release of onnxruntime; give one as 1.25, 1.25.1 or {NEWEST}")
    held = _held()
    version = release if release.count(".") == 2 else ""
    if release.count(".") == 1:
        version = max((known for known in held if known.startswith(f"{release}.")), key=_order, default="")
    if not version:
        try:
            version = _offered(release)
        except InputError:
            # without the registry, the newest one is the newest that is here
            if release != NEWEST or not held:
                raise
            version = max(held, key=_order)
    return held[version] if version in held else _made(version)


def _held() -> dict[str, Environment]:
    """The environments that suit this Python, by version."""
    prefix, ending = "onnxruntime-", f"-{_suits()}"
    found = {}
    with contextlib.suppress(OSError):
        for folder in cache().iterdir():
            if folder.name.startswith(prefix) and folder.name.endswith(ending):
                version = folder.name[len(prefix) : -len(ending)]
                found[version] = Environment(version, folder)
    return found


def _suits() -> str:
    """What an environment depends on: this Python, this kind of machine, and the numpy that answers come in."""
    return f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-numpy-{np.__version__}"


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _offered(release: str) -> str:
    """The version that the registry has for a release, in full."""
    wanted = "onnxruntime" if release == NEWEST else f"onnxruntime=={release}.*"
    told = _pip(release, "--dry-run", "--ignore-installed", "--report", "-", wanted)
    return str(json.loads(told)["install"][0]["metadata"]["version"])


def _made(version: str) -> Environment:
    place = cache() / f"onnxruntime-{version}-{_suits()}"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=place.parent, ignore_cleanup_errors=True) as aside:
            packages = Path(aside) / "packages"
            _pip(version, "--target", str(packages), f"onnxruntime=={version}", f"numpy=={np.__version__}")
            _require_runs(version, packages)
            try:
                packages.rename(place)
            except OSError:
                # somebody else was faster, which is as good
                if not place.is_dir():
                    raise
    except OSError as error:
        raise InputError(
            f"no environment for onnxruntime {version} could be made in {place.parent}: {error.strerror or error}; "
            f"let {PLACE} name a folder with room for it"
        ) from error
    return Environment(version, place)


def _require_runs(version: str, packages: Path) -> None:
    words = [sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import onnxruntime"]
    done = subprocess.run([*words, str(packages)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"onnxruntime {version} does not start in this Python: {_last(done.stderr)}; try another one")


def _pip(release: str, *words: str) -> str:
    """What pip prints.

    Raises:
        InputError: it fails, with the reason and what to do.
    """
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"making an environment for onnxruntime {release} needs pip, which this Python has not; install it with: "
            "python -m ensurepip"
        )
    # the packages are few and known: what else onnxruntime asks for is for its tools
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", *words]
    own = {f"PIP_{name}": value for name, value in SETTINGS.items()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    if done.returncode == 0:
        return done.stdout
    raise InputError(f"onnxruntime {release} cannot be had: {_reason(done.stderr)}")


def _reason(told: str) -> str:
    """Why pip failed, and what to do about it.

    Example:
        >>> _reason("ERROR: Could not find a version that satisfies the requirement x==9 (from versions: 1.0.0, 1.2.0)")
        'the registry offers 1.2.0 and 1.0.0 for this Python; choose one of them'
    """
    found = re.search(r"\(from versions: ([^)]*)\)", told)
    offered = [version for version in re.split(r",\s*", found[1]) if re.fullmatch(r"[\d.]+", version)] if found else []
    if offered:
        newest = offered[::-1]
        listed = ", ".join(newest[:MOST])
        if len(newest) > MOST:
            listed += f" and {len(newest) - MOST} older ones"
        elif len(newest) > 1:
            listed = f"{', '.join(newest[:-1])} and {newest[-1]}"
        return f"the registry offers {listed} for this Python; choose one of them"
    where = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sysconfig.get_platform()}"
    if found:
        return (
            f"pip finds no release for {where}: it cannot reach a registry, or there is none for this Python; try once "
            f"online, which fills {cache()}"
        )
    return f"pip says: {_last(told)}"


def _last(told: str) -> str:
    lines = [line for line in told.strip().splitlines() if line.strip()]
    return (lines or ["nothing"])[-1].removeprefix("ERROR: ").strip()
