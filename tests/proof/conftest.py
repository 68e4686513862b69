"""Files that the tests share: each is exported once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
from torch import Tensor, nn

from proof import nets


class Exported(NamedTuple):
    """A network, inputs, and the file it was exported to."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    content: bytes


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[[str], Exported]:
    @cache
    def export(name: str) -> Exported:
        net = nets.NETS[name]
        model, inputs = net.model(), net.inputs()
        return Exported(model, inputs, net.write(model, inputs, tmp_path_factory.mktemp(name)))

    return export
