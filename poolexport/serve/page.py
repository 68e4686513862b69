"""The page at ``/``: what is served, what was proven about it, and a form to try it; nothing comes from elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from poolexport.bundle import MANIFEST, Manifest
from poolexport.errors import InputError
from poolexport.serve.core import model_metadata

if TYPE_CHECKING:
    from poolexport.serve.core import Core
    from poolexport.serve.model import Model

Endpoint = Callable[[Request], Awaitable[Response]]

STATIC = Path(__file__).with_name("static")
TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
#: Addresses that may be read without a token: they hold nothing about the models.
OPEN = frozenset({"/", *(f"/static/{name}" for name in TYPES)})


def routes(core: Core) -> list[tuple[str, Endpoint, list[str]]]:
    """The addresses of the page."""

    async def index(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html", headers=HEADERS)

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in TYPES:
            return JSONResponse({"error": "there is nothing at this address"}, 404)
        return FileResponse(STATIC / name, media_type=TYPES[name], headers=HEADERS)

    async def models(_: Request) -> Response:
        found = sorted(core.repository.models, key=lambda model: (model.name, int(model.version)))
        return JSONResponse([described(model) for model in found], headers={"Cache-Control": "no-store"})

    async def document(_: Request) -> Response:
        return FileResponse(STATIC / "openapi.json", media_type="application/json", headers=HEADERS)

    return [
        ("/v2/openapi.json", document, ["GET"]),
        ("/", index, ["GET"]),
        ("/static/models.json", models, ["GET"]),
        ("/static/{name}", asset, ["GET"]),
    ]


def described(model: Model) -> dict[str, Any]:
    """What the page shows of a model."""
    metadata = model_metadata(model, [model.version])
    manifest = _manifest(model)
    return {
        "name": model.name,
        "version": model.version,
        "verdict": model.facts.verdict,
        "bound": manifest.bound if manifest else "",
        "rules": dict(manifest.inference_rules) if manifest else {},
        "facts": _facts(manifest) if manifest else {},
        "inputs": metadata["inputs"],
        "outputs": metadata["outputs"],
    }


def _manifest(model: Model) -> Manifest | None:
    try:
        return Manifest.from_json((Path(model.facts.path) / MANIFEST).read_text())
    except (OSError, InputError):
        return None


def _facts(manifest: Manifest) -> Mapping[str, str]:
    facts = {
        "checked on": f"{manifest.checks} inputs, against {manifest.truth}" if manifest.checks else "nothing",
        "largest error": f"{manifest.worst_error:.2g} of the output's scale" if manifest.checks else "",
        "pooling": ", ".join(f"{path}: {method}" for path, method in manifest.layers.items()),
        "random outputs": ", ".join(manifest.random_outputs),
        "opset": str(manifest.opset),
        "made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    return {name: value for name, value in facts.items() if value}
