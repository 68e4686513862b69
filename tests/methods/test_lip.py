"""Local importance pooling: the authors' formula, networks and states, and other logits."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolexport
from poolexport.methods.lip import lip2d
from poolexport.nn import (
    BottleneckLIP2d,
    BottleneckShared2d,
    LIPPool2d,
    SharedBottleneckLIP2d,
    SimplifiedLIP2d,
    SoftPool2d,
)

NORMS = ("weight", "bias")

#: Shapes in the authors' checkpoints: the ResNet's stem and second stage, the DenseNet's stem and first transition.
OFFICIAL = {
    "resnet-stem": (
        lambda: SimplifiedLIP2d(64),
        {"logit.conv.weight": (64, 64, 3, 3), **{f"logit.bn.{n}": (64,) for n in NORMS}},
    ),
    "resnet-shared": (
        lambda: BottleneckShared2d(256),
        {
            "logit.conv1.weight": (128, 256, 1, 1),
            **{f"logit.bn1.{n}": (128,) for n in NORMS},
            "logit.conv2.weight": (128, 128, 3, 3),
            **{f"logit.bn2.{n}": (128,) for n in NORMS},
        },
    ),
    "resnet-skip": (
        lambda: SharedBottleneckLIP2d(256, own_shared=False),
        {
            "postprocessing.conv.weight": (256, 128, 1, 1),
            **{f"postprocessing.bn.{n}": (256,) for n in NORMS},
        },
    ),
    "densenet-stem": (
        lambda: SimplifiedLIP2d(64, naming="densenet"),
        {"logit.conv1.weight": (64, 64, 3, 3), **{f"logit.bn1.{n}": (64,) for n in NORMS}},
    ),
    "densenet-transition": (
        lambda: BottleneckLIP2d(128),
        {
            "logit.conv1.weight": (128, 128, 1, 1),
            **{f"logit.bn1.{n}": (128,) for n in NORMS},
            "logit.conv2.weight": (128, 128, 3, 3),
            **{f"logit.bn2.{n}": (128,) for n in NORMS},
            "logit.conv3.weight": (128, 128, 1, 1),
            **{f"logit.bn3.{n}": (128,) for n in NORMS},
        },
    ),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def trained(layer: nn.Module) -> nn.Module:
    """The layer in float64, with no parameter where it started."""
    state = layer.double().state_dict()
    numbers = {name: drawn(*t.shape, seed=i) / t[0].numel() ** 0.5 for i, (name, t) in enumerate(state.items())}
    layer.load_state_dict({name: t + (name.endswith(".weight") and t.dim() == 1) for name, t in numbers.items()})
    return layer.eval()


def plain_average(x: Tensor, kernel: int = 3, stride: int = 2, padding: int = 1) -> Tensor:
    return F.avg_pool2d(x, kernel, stride, padding, count_include_pad=False)


def printed(x: Tensor, logit: Tensor, kernel: int = 3, stride: int = 2, padding: int = 1) -> Tensor:
    """A quotient of two averages that count the padding, which cancels."""
    weighted, weights = (F.avg_pool2d(t, kernel, stride, padding) for t in (x * logit.exp(), logit.exp()))
    return weighted / weights


def torch_network(layer: nn.Module) -> nn.Module:
    """Convolutions, torch's own instance norms and ReLUs that hold the layer's state, a sigmoid at the end."""
    state = layer.state_dict()
    names = [name.removesuffix(".weight") for name in state if state[name].dim() == 4]
    parts: list[nn.Module] = []
    for conv_name in names:
        weight = state[f"{conv_name}.weight"]
        norm_name = conv_name.replace("conv", "bn")
        filters, channels, size, _ = weight.shape
        conv = nn.Conv2d(channels, filters, size, padding=size // 2, bias=False).double()
        norm = nn.InstanceNorm2d(filters, affine=True).double()
        conv.load_state_dict({"weight": weight})
        norm.load_state_dict({n: state[f"{norm_name}.{n}"] for n in NORMS})
        parts += [conv, norm, nn.ReLU()]
    return nn.Sequential(*parts[:-1], nn.Sigmoid()).eval()


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_states_load(name):
    make, shapes = OFFICIAL[name]
    state = OrderedDict((key, torch.randn(shape)) for key, shape in shapes.items())
    layer = make()
    layer.load_state_dict(state, strict=True)
    assert list(layer.state_dict()) == list(shapes)
    other = OrderedDict((key.replace("conv", "convolution"), value) for key, value in state.items())
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(other, strict=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("layer", "window"),
    [
        (SimplifiedLIP2d(3), (3, 2, 1)),
        (SimplifiedLIP2d(3, naming="densenet"), (3, 2, 1)),
        (BottleneckLIP2d(3, 5), (2, 2, 0)),
        (SharedBottleneckLIP2d(3, 5), (3, 2, 1)),
    ],
    ids=["simplified", "densenet-stem", "bottleneck", "shared"],
)
def test_an_untrained_layer_is_an_average_without_padding(layer, window, training):
    x = drawn(2, 3, 9, 11)
    answer = layer.double().train(training)(x)
    torch.testing.assert_close(answer, plain_average(x, *window))
    counted = F.avg_pool2d(x, *window)
    if window[2]:
        assert (answer - counted).abs().max() > 0.1, "padding that counts would be seen"


def test_init_layer_makes_an_average_again():
    x = drawn(2, 3, 9, 11)
    for layer in (SimplifiedLIP2d(3), BottleneckLIP2d(3, 5, 3, 2, 1), SharedBottleneckLIP2d(3, 5)):
        trained(layer)
        assert (layer(x) - plain_average(x)).abs().max() > 0.05
        layer.init_layer()
        torch.testing.assert_close(layer(x), plain_average(x))


@pytest.mark.parametrize("window", [(3, 2, 1), (2, 2, 0), (3, 1, 1), ((3, 2), (1, 3), (1, 0))])
@pytest.mark.parametrize("channels", [1, 3])
def test_functional_is_the_printed_formula(window, channels):
    x, logit = drawn(2, 3, 9, 11), 3 * drawn(2, channels, 9, 11, seed=1)
    torch.testing.assert_close(lip2d(x, logit, *window), printed(x, logit, *window))


def test_defaults_and_names_are_the_authors():
    x, logit = drawn(2, 3, 9, 11), drawn(2, 3, 9, 11, seed=1)
    expected = printed(x, logit, 3, 2, 1)
    torch.testing.assert_close(lip2d(x, logit), expected)
    torch.testing.assert_close(lip2d(x=x, logit=logit, kernel=3, stride=2, padding=1), expected)


def test_logits_of_the_readme():
    x = drawn(2, 3, 9, 11)
    torch.testing.assert_close(lip2d(x, 0 * x), plain_average(x))
    torch.testing.assert_close(lip2d(x, x), SoftPool2d(3, 2, 1)(x))
    torch.testing.assert_close(lip2d(x, 1000 * x), F.max_pool2d(x, 3, 2, 1))
    torch.testing.assert_close(lip2d(x, 20 * x), F.max_pool2d(x, 3, 2, 1), rtol=0, atol=0.1)


def test_any_module_gives_logits():
    x = drawn(2, 3, 9, 11)
    network = nn.Conv2d(3, 1, 5, padding=2).double()
    torch.testing.assert_close(LIPPool2d(network, 2, None, 0)(x), printed(x, network(x), 2, 2, 0))
    torch.testing.assert_close(LIPPool2d(nn.Identity())(x), SoftPool2d(3, 2, 1)(x))
    with pytest.raises(ValueError, match="logit must have the shape of x"):
        LIPPool2d(nn.Conv2d(3, 2, 1))(x.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("level", [-200.0, 200.0])
def test_free_logits_do_not_overflow(dtype, level):
    x, logit = drawn(2, 3, 9, 11).to(dtype), (level + 5 * drawn(2, 3, 9, 11, seed=1)).to(dtype)
    answer = lip2d(x, logit)
    assert answer.dtype == dtype
    assert not printed(x.float(), logit.float()).isfinite().all(), "the formula as it stands does overflow"
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(answer.double(), lip2d(x.double(), logit.double()), rtol=4 * eps, atol=4 * eps)


def test_gradients_reach_map_and_logits():
    x, logit = drawn(1, 2, 5, 6).requires_grad_(), drawn(1, 2, 5, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lip2d, (x, logit))


@pytest.mark.parametrize(
    ("layer", "window", "coeff"),
    [
        (SimplifiedLIP2d(3), (3, 2, 1), 12.0),
        (SimplifiedLIP2d(3, 2, 2, 0, 5.0, "densenet"), (2, 2, 0), 5.0),
        (BottleneckLIP2d(3, 5), (2, 2, 0), 12.0),
        (SharedBottleneckLIP2d(3, 5), (3, 2, 1), 12.0),
    ],
    ids=["simplified", "densenet-stem", "bottleneck", "shared"],
)
def test_the_network_is_the_published_one(layer, window, coeff):
    x = drawn(2, 3, 9, 11)
    trained(layer)
    gate = torch_network(layer)(x)
    torch.testing.assert_close(layer(x), printed(x, coeff * gate, *window))
    assert (layer(x) - printed(x, coeff / 2 * gate, *window)).abs().max() > 1e-2, "half the gate would be seen"
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=0, atol=0)


def test_one_shared_network_serves_two_poolings():
    block_input, main_input = drawn(2, 3, 9, 11), drawn(2, 4, 9, 11, seed=1)
    shared = trained(BottleneckShared2d(3, 5))
    skip = trained(SharedBottleneckLIP2d(3, 5, own_shared=False))
    main = trained(SharedBottleneckLIP2d(4, 5, own_shared=False))
    h = shared(block_input)
    for layer, x in ((skip, block_input), (main, main_input)):
        gate = torch_network(nn.Sequential(shared, layer))(block_input)
        expected = printed(x, 12 * gate)
        torch.testing.assert_close(layer(x, h), expected)
        torch.testing.assert_close(layer.forward_with_shared(x, h), expected)
    whole = SharedBottleneckLIP2d(3, 5).double()
    parts = {f"bottleneck_shared.{name}": value for name, value in shared.state_dict().items()}
    whole.load_state_dict({**parts, **skip.state_dict()})
    torch.testing.assert_close(whole(block_input), skip(block_input, h), rtol=0, atol=0)
    other = shared(drawn(2, 3, 9, 11, seed=2))
    torch.testing.assert_close(whole.forward_with_shared(block_input, other), skip(block_input, other), rtol=0, atol=0)
    assert (skip(block_input, other) - skip(block_input, h)).abs().max() > 1e-2


def test_what_does_not_fit_is_refused():
    layer = SharedBottleneckLIP2d(3, 5, own_shared=False)
    x = drawn(2, 3, 9, 11).float()
    with pytest.raises(ValueError, match=r"call it as layer\(x, shared\)"):
        layer(x)
    with pytest.raises(ValueError, match="expected a map of 5 channels, got one of shape"):
        layer(x, x)
    with pytest.raises(ValueError, match="logit must have the shape of x"):
        layer(x, drawn(2, 5, 9, 10).float())
    with pytest.raises(ValueError, match="channels and bottleneck must be positive ints, got 0"):
        BottleneckLIP2d(3, 0)
    with pytest.raises(ValueError, match="a single cell cannot be normalised"):
        BottleneckShared2d(3, 5)(drawn(2, 3, 1, 1).float())
    with pytest.raises(ValueError, match="padding must be at most half"):
        lip2d(x, x, padding=2)
    with pytest.raises(ValueError, match=r"logit_module must be a torch\.nn\.Module, got 5"):
        LIPPool2d(5)
    with pytest.raises(ValueError, match="logit must be a tensor, got tuple"):
        LIPPool2d(Two())(x)
    with pytest.raises(ValueError, match="a logit network expects a tensor, got str"):
        layer(x, "shared")
    with pytest.raises(ValueError, match=r"the layer holds torch\.float32, the map torch\.float64; convert one"):
        SimplifiedLIP2d(3)(x.double())


class Two(torch.nn.Module):
    """Answers two tensors."""

    def forward(self, x):
        return x, x


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_the_norm_does_not_overflow(scale):
    layer = trained(SimplifiedLIP2d(3))
    x = scale * drawn(2, 3, 9, 11)
    expected = layer(x)
    torch.testing.assert_close(layer.float()(x.float()) / scale, (expected / scale).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    layer, x = trained(BottleneckLIP2d(3, 5)).to(dtype), drawn(2, 3, 9, 11).to(dtype)
    answer = layer(x)
    expected = layer.double()(x.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(answer.double(), expected, rtol=eps, atol=1e-6)


class Block(nn.Module):
    """Both branches of a ResNet's block, at their poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.bottleneck_shared = BottleneckShared2d(3, 5)
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.main = SharedBottleneckLIP2d(4, 5, own_shared=False)
        self.skip = SharedBottleneckLIP2d(3, 5, own_shared=False)

    def forward(self, x: Tensor) -> Tensor:
        shared = self.bottleneck_shared(x)
        main = self.main.forward_with_shared(self.conv1(x), shared)
        return torch.cat([main, self.skip.forward_with_shared(x, shared)], 1)


def test_a_block_exports(tmp_path):
    block = trained(Block()).float()
    axes = {0: "N", 2: "H", 3: "W"}
    bundle = poolexport.export(block, torch.randn(2, 3, 9, 11), tmp_path / "block", dynamic_shapes=axes)
    assert bundle.manifest.verdict == "PASS"
    x = drawn(1, 3, 14, 7).float()
    [answer] = poolexport.session(bundle.path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(answer, block(x).detach().numpy(), rtol=1e-4, atol=1e-5)
