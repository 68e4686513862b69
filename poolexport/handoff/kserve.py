"""An InferenceService of KServe: the model on KServe's Triton runtime, or an image of our own server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from poolexport.disk import move, require_folder, staged
from poolexport.errors import InputError, MissingExtraError, OutputError
from poolexport.handoff.deployment import Deployment

#: Where our server listens for HTTP in an image.
PORT = 8000


def kserve(
    model: Deployment,
    path: str | os.PathLike[str],
    *,
    storage: str | None = None,
    image: str | None = None,
    force: bool = False,
) -> Path:
    """Write the YAML of an InferenceService.

    Args:
        model: what to hand on.
        path: of the YAML file.
        storage: where the cluster finds the Triton model repository, as in ``"pvc://models/repository"``.
        image: the image built from what ``docker`` wrote, in place of ``storage``.
        force: replace the file.

    Raises:
        InputError: neither a storage nor an image was given, or both, or the storage has no scheme.
        MissingExtraError: PyYAML is not installed.
        OutputError: the file is there already, or cannot be written.
    """
    target = Path(path)
    if (storage is None) == (image is None):
        raise InputError("an InferenceService needs either --storage-uri, where its model lies, or --image")
    if storage is not None and "://" not in storage:
        raise InputError(f"{storage!r} is no address that a cluster can fetch; it begins as pvc:// or s3:// does")
    if target.is_dir():
        raise OutputError(f"{target} is a folder; name a file")
    if target.exists() and not force:
        raise OutputError(f"{target} exists; choose another path, or replace it with --force (force=True)")
    require_folder(target)
    text = _yaml(inference_service(model, storage=storage, image=image))
    with staged(target) as staging:
        (staging / target.name).write_text(text)
        move(staging / target.name, target)
    return target


def inference_service(model: Deployment, *, storage: str | None = None, image: str | None = None) -> dict[str, Any]:
    """The InferenceService as plain data."""
    resources = {"requests": {"cpu": "1", "memory": _memory(model)}, "limits": {"memory": _memory(model, spare=4)}}
    predictor: dict[str, Any] = {"minReplicas": 1}
    if storage is not None:
        predictor["model"] = {
            "modelFormat": {"name": "onnx"},
            "protocolVersion": "v2",
            "runtime": "kserve-tritonserver",
            "storageUri": storage,
            "resources": resources,
        }
    else:
        ready = {"httpGet": {"path": "/v2/health/ready", "port": PORT}, "periodSeconds": 5}
        predictor["containers"] = [
            {
                "name": "kserve-container",
                "image": image,
                "ports": [{"containerPort": PORT, "name": "http1", "protocol": "TCP"}],
                "readinessProbe": ready,
                "resources": resources,
            }
        ]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": model.name, "annotations": _annotations(model)},
        "spec": {"predictor": predictor},
    }


def _annotations(model: Deployment) -> dict[str, str]:
    if model.manifest is None:
        return {}
    facts = {"verdict": model.manifest.verdict, "opset": str(model.manifest.opset)}
    return {f"poolexport/{key}": value for key, value in facts.items()}


def _memory(model: Deployment, spare: int = 1) -> str:
    """Half a gigabyte for the server, and the weights in memory as often as a session holds them while it loads."""
    weights = sum(file.stat().st_size for file in model.files)
    return f"{512 * spare + 3 * -(-weights // 2**20)}Mi"


def _yaml(value: dict[str, Any]) -> str:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("PyYAML", "kserve", "writing an InferenceService") from error
    return yaml.safe_dump(value, sort_keys=False)
