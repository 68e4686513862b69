"""Every reference network exports with dynamic axes; its file is right at sizes and batches the export never saw."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poolexport
from poolexport.errors import InputError
from poolexport.tolerance import judge
from poolexport_models import zoo

#: What authors or the packages that publish the networks count; the others change their network in some way.
PARAMETERS: Mapping[str, int] = MappingProxyType(
    {
        "vgg16": 138_357_544,
        "resnet18": 11_689_512,
        "resnet50": 25_557_032,
        "inception_v3": 23_834_568,
        "softpool_resnet18": 11_689_512,
        "blurpool_resnet50": 25_557_032,
        "clip_resnet50": 38_316_896,
    }
)
#: Batches, rows and columns added to those of the sample.
MOVES = ((1, 9, 3), (3, 4, 17))
#: However far torch itself is from the truth, relative to the scale of the answer: some fifty layers of float32, each
#: right to a unit of 1.2e-7, stay below; a wrong bin, border or divisor does not.
LARGEST = 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network, its file opened by onnxruntime, and what the export says about it; once each."""

    @cache
    def export(name: str):
        network = zoo.network(name)
        path = tmp_path_factory.mktemp(name) / "net"
        bundle = poolexport.export(
            network.build(slim=True), network.sample(slim=True), path, dynamic_shapes=network.axes
        )
        return poolexport.session(path, threads=1), bundle.manifest

    return export


def unseen(network: zoo.Network, batch: int, rows: int, columns: int) -> tuple[Tensor, ...]:
    """Inputs of another size and with other values."""
    images, *regions = network.sample(batch, slim=True, seed=batch)
    size = images.shape[2] + rows, images.shape[3] + columns
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(rows)), *regions


def answers(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        found = model(*inputs)
    return [x.numpy() for x in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_files_answer_what_the_float64_network_answers(name: str, exported):
    network = zoo.network(name)
    session, manifest = exported(name)
    assert manifest.verdict == "PASS"
    assert manifest.checks > 30
    dynamic = [{axis: dim for axis, dim in enumerate(port.shape) if isinstance(dim, str)} for port in manifest.inputs]
    assert dynamic == [dict(axes) for axes in network.axes]
    model, precise = network.build(slim=True), network.build(slim=True).double()
    for move in MOVES:
        inputs = unseen(network, *move)
        results = session.run(None, {port.name: x.numpy() for port, x in zip(manifest.inputs, inputs)})
        truths = answers(precise, tuple(x.double() for x in inputs))
        for result, peer, truth in zip(results, answers(model, inputs), truths, strict=True):
            judgement = judge(result, peer, truth)
            assert judgement.scale > 1e-3
            assert judgement.passed, judgement.reason
            assert judgement.error < LARGEST * judgement.scale
        if network.answer in ("classes", "map"):
            assert (results[0].argmax(1) == truths[0].argmax(1)).mean() > 0.999


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_networks_have_the_published_number_of_parameters(name: str):
    assert zoo.network(name).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_weights_depend_on_the_seed_alone_and_maps_stay_alive(name: str):
    network = zoo.network(name)
    state = torch.get_rng_state()
    model, again, other = (network.build(slim=True, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    one, two, three = ([*x.state_dict().values()] for x in (model, again, other))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    images = unseen(network, 4, 5, 1)
    for answer in answers(model, images):
        assert np.isfinite(answer).all()
        assert 1e-3 < np.abs(answer).max() < 1e3
        assert answer.std(0).max() > 1e-3, "all images are answered alike"


def test_a_pooling_with_another_border_is_told_apart(exported):
    """What the comparison above would do about a fault."""
    session, _ = exported("resnet18")
    inputs = unseen(zoo.network("resnet18"), *MOVES[0])
    [result] = session.run(None, {"x": inputs[0].numpy()})
    other = zoo.network("resnet18").build(slim=True)
    other.trunk.stem[1] = nn.MaxPool2d(3, 2, ceil_mode=True)
    [peer] = answers(other, inputs)
    [truth] = answers(other.double(), tuple(x.double() for x in inputs))
    judgement = judge(result, peer, truth)
    assert not judgement.passed
    assert judgement.error > LARGEST * judgement.scale


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="no reference network 'resnet51'; there are vgg16, "):
        zoo.network("resnet51")
