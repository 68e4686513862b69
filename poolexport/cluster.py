"""A Ray cluster: joining it, and taking models to machines that share no disk with this one. No torch in here."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from poolexport.bundle import files
from poolexport.errors import InputError, MissingExtraError, StartError

__all__ = ["Parcel", "joined", "packed", "require", "unpacked"]

#: Seconds in which the head of a cluster has to take a connection.
REACHED = 5.0
#: Bytes of a model that travel with a deployment. Measured for 250 MB: the processes at the head grow by 1.2 GB, since
#: they keep it and write it down. Larger models must be on every machine already.
MOST = 128 << 20


@dataclass(frozen=True)
class Parcel:
    """A model on its way to other machines.

    Args:
        path: where it is here: a bundle or an .onnx file.
        contents: bytes of its files, by name; empty where it is so large that it has to be at ``path`` there, too.
        is_folder: whether it is a bundle.
    """

    path: str
    contents: Mapping[str, bytes] = field(repr=False)
    is_folder: bool


def packed(path: Path, most: int = MOST) -> Parcel:
    """A model as it travels.

    Raises:
        InputError: it cannot be read.
    """
    try:
        found = files(path)
        fits = sum(file.stat().st_size for file in found) <= most
        contents = {file.name: file.read_bytes() for file in found} if fits else {}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return Parcel(os.path.abspath(path), contents, path.is_dir())


def unpacked(parcel: Parcel, folder: Path) -> Path:
    """Where a model is on this machine, once its files are in a folder of their own.

    Raises:
        InputError: it is too large to travel, and is not here.
    """
    if not parcel.contents:
        if not Path(parcel.path).exists():
            raise InputError(f"{parcel.path} is too large to travel, and is not on this machine; copy it there")
        return Path(parcel.path)
    inside = folder / Path(parcel.path).name
    home = inside if parcel.is_folder else folder
    home.mkdir(parents=True, exist_ok=True)
    for name, content in parcel.contents.items():
        (home / name).write_bytes(content)
    return inside


def require(purpose: str, *packages: str) -> None:
    """Raise a MissingExtraError where Ray, or a package that it needs for a purpose, is missing."""
    for package in ("ray", *packages):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "ray", purpose)


@contextmanager
def joined(address: str = "", *, alone: bool = True) -> Iterator[bool]:
    """Work on a Ray cluster; whether it is one of this process's own, which ends with it.

    Args:
        address: of the cluster's head, as ``host:port``; where it is empty, that in RAY_ADDRESS, or the one that this
            machine is a part of.
        alone: start a cluster of this machine where there is none.

    Raises:
        InputError: the address is no address of a head.
        StartError: there is no cluster, or it cannot be joined.
    """
    named = address or os.environ.get("RAY_ADDRESS", "")
    if named not in ("", "auto", "local"):
        _reached(named)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    own = False
    try:
        try:
            ray.init(address or "auto", **quiet)
        except ConnectionError:
            if named or not alone:
                raise
            ray.init("local", include_dashboard=False, **quiet)
            own = True
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {named}" if named else "a Ray cluster"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise StartError(
            f"{where} cannot be joined: {reason}; 'ray start --head' starts one, --ray-address names one"
        ) from error
    try:
        yield own
    finally:
        ray.shutdown()


def _reached(address: str) -> None:
    """Raise where nobody listens at an address; Ray itself would wait for minutes.

    Raises:
        InputError: it is no address.
        StartError: nobody listens.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise InputError(f"{address!r} cannot be joined; run this on a machine of the cluster, and write host:port")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACHED):
            pass
    except OSError as error:
        raise StartError(f"there is no Ray cluster at {address}: {error.strerror or error}") from error
