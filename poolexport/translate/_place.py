"""Where in the model the operator comes from that torch's exporter translates at the moment."""

from __future__ import annotations

import re
import sys
from types import FrameType

import torch

from poolexport.source import is_users, place

LINE = re.compile(r'File "([^"]+)", line (\d+)')


def current_node() -> torch.fx.Node | None:
    """The node that is being translated; None where torch's exporter does not hold it as it is known to."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        node = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and node.op == "call_function":
            return node
        frame = frame.f_back
    return None


def place_of(node: torch.fx.Node | None) -> str:
    """``body.1 (Dropout) at net.py:12``, as far as it is known; "the model" where nothing is."""
    scopes = [*node.meta.get("nn_module_stack", {}).values()] if node is not None else []
    if node is None or not scopes:
        return "the model"
    path, layer = str(scopes[-1][0]).removeprefix("L['self']").lstrip("."), scopes[-1][1]
    name = (layer if isinstance(layer, str) else layer.__name__).rpartition(".")[2]
    lines = [(file, int(line)) for file, line in LINE.findall(node.meta.get("stack_trace") or "") if is_users(file)]
    return f"{path or 'the model itself'} ({name}){f' at {place(*lines[-1])}' if lines else ''}"
