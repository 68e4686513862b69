"""A rewritten file that onnxruntime fails to run is refused in one sentence, and not written."""

from __future__ import annotations

import pytest
import torch

import poolexport
from poolexport import api
from poolexport.errors import ExportError
from poolexport.nn import SoftPool2d
from poolexport.pipeline import inline as stage


class Broken:
    """A session that opens and does not run."""

    def run(self, *_):
        raise RuntimeError("no memory\nfor this node")


def test_it_is_an_export_error(tmp_path, monkeypatch):
    bundle = poolexport.export(SoftPool2d(2).eval(), torch.randn(1, 1, 4, 4), tmp_path / "net")
    opened = stage.plain_session
    monkeypatch.setattr(
        stage, "plain_session", lambda source: Broken() if isinstance(source, bytes) else opened(source)
    )
    with pytest.raises(ExportError, match=r"^inlined, the file does not run: no memory; nothing was written$"):
        api.inline(bundle.path, tmp_path / "plain")
    assert [file.name for file in tmp_path.iterdir()] == ["net"]
