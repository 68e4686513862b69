"""Modules replaced by their paths, in a copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import InputError
from poolexport.nn import LIPPool2d, SoftPool2d


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2))
        self.stages = nn.ModuleList([nn.MaxPool2d(2), nn.AvgPool2d(2)])
        self.twin = self.stages[1]
        self.block = nn.Sequential(nn.MaxPool2d(2))
        self.same_block = self.block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.same_block(self.twin(self.stages[0](self.stem(x))))


@pytest.fixture
def net() -> nn.Module:
    model = Net().eval()
    model.stem[1].running_mean.fill_(0.5)
    return model


def test_the_named_module_is_replaced_in_a_copy(net):
    new = SoftPool2d(2)
    swapped = poolexport.swap(net, {"stem.2": new, "stages.0": nn.Identity()})
    assert type(net.stem[2]) is nn.MaxPool2d
    assert type(swapped.stem[2]) is SoftPool2d
    assert swapped.stem[2] is not new
    assert type(swapped.stages[0]) is nn.Identity
    assert swapped.twin is swapped.stages[1]
    for (name, ours), (other, theirs) in zip(swapped.state_dict().items(), net.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    x = torch.randn(1, 3, 20, 20)
    wanted = SoftPool2d(2)(net.stem[1](net.stem[0](x)))
    assert torch.equal(swapped.stem(x), wanted)


def test_mode_and_hooks_are_those_of_what_was_there(net):
    calls: list[str] = []
    net.stem[2].register_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    net.stages[0].train()
    new = SoftPool2d(2)
    swapped = poolexport.swap(net, {"stem.2": new, "stages.0": SoftPool2d(2)})
    assert new.training, "what was given is not changed"
    assert not swapped.stem[2].training
    assert swapped.stages[0].training
    swapped.stem(torch.randn(1, 3, 8, 8))
    net.stem(torch.randn(1, 3, 8, 8))
    assert calls == ["SoftPool2d", "MaxPool2d"]


def test_a_weight_that_the_new_module_shares_with_the_model_stays_shared(net):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    net.head = nn.Conv2d(4, 4, 3)
    net.head.weight = conv.weight
    swapped = poolexport.swap(net, {"stem.2": LIPPool2d(conv)})
    assert swapped.stem[2].logit.weight is swapped.head.weight
    assert swapped.head.weight is not net.head.weight


def test_a_shared_module_is_replaced_in_all_its_places_or_not_at_all(net):
    with pytest.raises(InputError, match=r"the module at twin is also the one at stages\.1.*for stages\.1 and twin"):
        poolexport.swap(net, {"twin": SoftPool2d(2)})
    with pytest.raises(InputError, match="it is shared, or lies in a shared module"):
        poolexport.swap(net, {"block.0": SoftPool2d(2)})
    with pytest.raises(InputError, match="give one and the same replacement"):
        poolexport.swap(net, {"twin": SoftPool2d(2), "stages.1": SoftPool2d(2)})
    new = SoftPool2d(2)
    swapped = poolexport.swap(net, {"twin": new, "stages.1": new, "block.0": new, "same_block.0": new})
    assert swapped.twin is swapped.stages[1]
    assert type(swapped.twin) is SoftPool2d
    assert type(swapped.same_block[0]) is SoftPool2d


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("stem.3", "has no module at 'stem.3'; did you mean stem.2"),
        ("stem.0.weight", "has no module at 'stem.0.weight'; did you mean stem.0"),
        ("zzz", "has no module at 'zzz'; there is stem, stem.0"),
        ("", "'' is the model itself"),
    ],
)
def test_unknown_paths_are_refused(net, path, message):
    with pytest.raises(InputError, match=message):
        poolexport.swap(net, {path: SoftPool2d(2)})


def test_a_path_inside_of_another_is_refused(net):
    with pytest.raises(InputError, match=r"stem\.2 lies inside of stem, which is replaced as well"):
        poolexport.swap(net, {"stem.2": SoftPool2d(2), "stem": nn.Identity()})


@pytest.mark.parametrize(
    ("new", "message"),
    [(SoftPool2d, r"got the class SoftPool2d; make one, as in SoftPool2d\(2\)"), ("SoftPool2d", "got str")],
)
def test_what_is_no_module_is_refused(net, new, message):
    with pytest.raises(InputError, match=message):
        poolexport.swap(net, {"stem.2": new})
    with pytest.raises(InputError, match="must be a mapping of paths to modules"):
        poolexport.swap(net, [("stem.2", SoftPool2d(2))])
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module, got dict"):
        poolexport.swap({}, {"stem.2": SoftPool2d(2)})


def test_what_something_else_holds_or_cannot_be_copied_is_refused(net):
    net.cached = {"pool": net.stem[2]}
    with pytest.raises(InputError, match=r"stem\.2 \(MaxPool2d\) is also held by the plain attribute cached"):
        poolexport.swap(net, {"stem.2": SoftPool2d(2)})
    net.cached = (net.stem[0].weight * 2,)
    with pytest.raises(InputError, match="the model cannot be copied"):
        poolexport.swap(net, {"stem.2": SoftPool2d(2)})
