"""Attention pooling is what CLIP, timm and SimPool compute, loads what they saved, and takes sizes they never saw."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolexport
from conformance.test_space import compare
from poolexport import catalog
from poolexport.errors import InputError
from poolexport.method import Case
from poolexport.nn import AttentionPool2d, AttentionPoolLatent2d, SimPool2d

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: AttentionPool2d(8, num_heads=2, output_dim=3),
    "latent": lambda: AttentionPoolLatent2d(8, num_heads=2, activation="gelu_tanh"),
    "simpool": lambda: SimPool2d(8, num_heads=2),
    "simpool-power": lambda: SimPool2d(8, gamma=2.0),
}
SPACES = {
    AttentionPool2d: {
        "channels": (6,),
        "num_heads": (None, 2, 3, 6),
        "size": (7, 1, 4, (3, 5)),
        "output_dim": (None, 1, 4),
        "positions": ("interpolate", None),
        "keepdim": (False, True),
    },
    AttentionPoolLatent2d: {
        "channels": (6,),
        "num_heads": (None, 2, 3, 6),
        "mlp_ratio": (4.0, 0.5, 1.6),
        "activation": ("gelu", "gelu_tanh"),
        "keepdim": (False, True),
    },
    SimPool2d: {
        "channels": (6,),
        "num_heads": (1, 2, 3, 6),
        "qkv_bias": (False, True),
        "gamma": (None, 2.0, 1.25, 0.5),
        "use_beta": (False, True),
        "keepdim": (False, True),
    },
}
#: How many configurations of every layer are drawn for every shape.
EACH = 5


def randomised(layer: nn.Module, seed: int = 0) -> nn.Module:
    """The layer with parameters that training could have left, biases and norms included."""
    rng = np.random.default_rng(seed)
    state = {name: rng.standard_normal(t.shape) / t.shape[-1] ** 0.5 for name, t in layer.state_dict().items()}
    layer.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    return layer.eval()


def by_torch(layer: AttentionPool2d, x: Tensor, table: Tensor | None) -> Tensor:
    """What CLIP's layer calls."""
    cells = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([cells.mean(0, keepdim=True), cells])
    tokens = tokens if table is None else tokens + table[:, None]
    answer, _ = F.multi_head_attention_forward(
        *(tokens,) * 3,
        embed_dim_to_check=layer.channels,
        num_heads=layer.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([layer.q_proj.bias, layer.k_proj.bias, layer.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=layer.c_proj.weight,
        out_proj_bias=layer.c_proj.bias,
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=layer.q_proj.weight,
        k_proj_weight=layer.k_proj.weight,
        v_proj_weight=layer.v_proj.weight,
    )
    return answer[0]


@pytest.mark.parametrize(
    ("heads", "size", "output_dim"), [(1, 7, None), (2, 7, 5), (8, (3, 5), 16), (4, 1, 1)], ids=str
)
def test_clip_layer_at_its_own_size(heads, size, output_dim):
    layer = randomised(AttentionPool2d(8, heads, size, output_dim)).double()
    x = torch.randn(3, 8, *layer.size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_torch(layer, x, layer.positional_embedding), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("lengths", [(9, 11), (7, 14), (3, 4), (1, 1), (1, 20)], ids=str)
def test_table_is_stretched_bilinearly(lengths):
    layer = randomised(AttentionPool2d(8, 2, size=(7, 5))).double()
    grid = layer.positional_embedding[1:].reshape(1, 7, 5, 8).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, lengths, mode="bilinear", align_corners=False)
    table = torch.cat([layer.positional_embedding[:1], grid[0].flatten(1).T])
    x = torch.randn(2, 8, *lengths, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_torch(layer, x, table), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("size", [1, 7, 14, (3, 10)], ids=str)
def test_stretching_to_the_own_size_changes_no_bit(size):
    layer = randomised(AttentionPool2d(8, 2, size))
    fixed = AttentionPool2d(8, 2, size, positions="fixed")
    fixed.load_state_dict(layer.state_dict())
    x = torch.randn(2, 8, *layer.size)
    assert torch.equal(layer(x), fixed(x))


def test_without_positions_the_order_of_locations_does_not_matter():
    torch.manual_seed(0)
    order = torch.randperm(20)
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    shuffled = x.flatten(2)[:, :, order].reshape(2, 8, 2, 10)
    for layer in (
        AttentionPool2d(8, 2, positions=None),
        AttentionPoolLatent2d(8, 2),
        SimPool2d(8),
        SimPool2d(8, 2, gamma=2),
    ):
        layer = randomised(layer).double()
        torch.testing.assert_close(layer(x), layer(shuffled), rtol=1e-12, atol=1e-13)
    layer = randomised(AttentionPool2d(8, 2, positions=None)).double()
    torch.testing.assert_close(layer(x), by_torch(layer, x, None), rtol=1e-12, atol=1e-13)
    assert "positional_embedding" not in layer.state_dict()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_latent_layer_is_attention_then_a_residual_network(activation):
    layer = randomised(AttentionPoolLatent2d(8, 2, mlp_ratio=1.5, activation=activation)).double()
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([layer.q.weight, layer.kv.weight]),
            "in_proj_bias": torch.cat([layer.q.bias, layer.kv.bias]),
            "out_proj.weight": layer.proj.weight,
            "out_proj.bias": layer.proj.bias,
        }
    )
    x = torch.randn(3, 8, 4, 5, dtype=torch.float64)
    cells = x.flatten(2).transpose(1, 2)
    y = attention(layer.latent.expand(3, -1, -1), cells, cells, need_weights=False)[0][:, 0]
    hidden = F.layer_norm(y, (8,), layer.norm.weight, layer.norm.bias, 1e-6) @ layer.mlp["fc1"].weight.T
    hidden = F.gelu(hidden + layer.mlp["fc1"].bias, approximate="tanh" if activation == "gelu_tanh" else "none")
    expected = y + hidden @ layer.mlp["fc2"].weight.T + layer.mlp["fc2"].bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gamma", [None, 2.0, 1.25])
@pytest.mark.parametrize("bias", [False, True])
def test_simpool_is_one_softmax_over_normalised_locations(gamma, bias):
    layer = randomised(SimPool2d(8, qkv_bias=bias, gamma=gamma)).double()
    x = torch.randn(1, 8, 4, 5, dtype=torch.float64)
    cells = x.flatten(2).transpose(1, 2)
    v = F.layer_norm(cells, (8,), layer.norm_patches.weight, layer.norm_patches.bias, 1e-6)
    shares = torch.softmax(layer.wq(cells.mean(1, keepdim=True)) @ layer.wk(v).transpose(1, 2) / 8**0.5, -1)
    expected = shares @ v if gamma is None else (shares @ (v - v.min() + 1e-6) ** gamma) ** (1 / gamma)
    torch.testing.assert_close(layer(x), expected[:, 0], rtol=1e-11, atol=1e-12)


def test_bias_of_the_keys_changes_nothing():
    layer, x = randomised(AttentionPool2d(8, 2)).double(), torch.randn(3, 8, 4, 5, dtype=torch.float64)
    before = layer(x)
    nn.init.constant_(layer.k_proj.bias, 3.0)
    torch.testing.assert_close(layer(x), before, rtol=1e-12, atol=1e-13)


def test_simpool_of_one_image_does_not_depend_on_the_batch():
    layer = randomised(SimPool2d(8, gamma=2.0))
    x = torch.randn(3, 8, 4, 5)
    x[1] = 100 * x[1]
    torch.testing.assert_close(layer(x), torch.cat([layer(image[None]) for image in x]))


def test_simpool_adds_its_number_last():
    layer = SimPool2d(8, gamma=2.0, use_beta=True)
    x = torch.randn(3, 8, 4, 5)
    before = layer(x)
    nn.init.constant_(layer.beta, 0.25)
    torch.testing.assert_close(layer(x), before + 0.25)


LINEAR = {"weight": (8, 8), "bias": (8,)}
OFFICIAL = {
    "clip": {
        "positional_embedding": (50, 8),
        **{f"{name}_proj.{part}": shape for name in "kqv" for part, shape in LINEAR.items()},
        "c_proj.weight": (3, 8),
        "c_proj.bias": (3,),
    },
    "latent": {
        "latent": (1, 1, 8),
        **{f"{name}.{part}": shape for name in ("q", "proj") for part, shape in LINEAR.items()},
        "kv.weight": (16, 8),
        "kv.bias": (16,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "mlp.fc1.weight": (32, 8),
        "mlp.fc1.bias": (32,),
        "mlp.fc2.weight": (8, 32),
        "mlp.fc2.bias": (8,),
    },
    "simpool": {"norm_patches.weight": (8,), "norm_patches.bias": (8,), "wq.weight": (8, 8), "wk.weight": (8, 8)},
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_states_of_the_authors_load(name):
    layer = LAYERS[name]()
    state = {key: torch.randn(shape).half() for key, shape in OFFICIAL[name].items()}
    layer.load_state_dict(state, strict=True)
    assert all(torch.equal(layer.state_dict()[key], value.float()) for key, value in state.items())


def test_power_state_of_the_authors_loads():
    SimPool2d(8, gamma=2.0, use_beta=True).load_state_dict(
        {**{key: torch.randn(shape) for key, shape in OFFICIAL["simpool"].items()}, "beta": torch.randn(1)}
    )


@pytest.mark.parametrize(("channels", "heads"), [(2048, 32), (2560, 40), (128, 2), (96, 1), (3, 1)])
def test_heads_have_64_channels_unless_told_otherwise(channels, heads):
    with torch.device("meta"):
        assert AttentionPool2d(channels).num_heads == AttentionPoolLatent2d(channels).num_heads == heads


@pytest.mark.parametrize("name", LAYERS)
def test_answers_are_rounded_once(name):
    layer = randomised(LAYERS[name]()).half()
    x = torch.randn(2, 8, 5, 6).half()
    answer = layer(x)
    assert torch.equal(answer, layer.double()(x.double()).half())


@pytest.mark.parametrize("name", LAYERS)
def test_float64_files_are_exact_too(name, tmp_path):
    layer, x = randomised(LAYERS[name]()).double(), torch.randn(2, 8, 5, 6, dtype=torch.float64)
    bundle = poolexport.export(layer, x, tmp_path / "net", dynamic_shapes={0: "N", 2: "H", 3: "W"})
    assert bundle.manifest.verdict == "PASS"


def test_float64_file_of_erf_is_refused(tmp_path):
    layer, x = AttentionPoolLatent2d(8).double().eval(), torch.randn(2, 8, 5, 6, dtype=torch.float64)
    with pytest.raises(InputError, match="no Erf for this data type"):
        poolexport.export(layer, x, tmp_path / "net")


def test_fixed_positions_leave_only_the_batch_dynamic(tmp_path):
    layer, x = randomised(AttentionPool2d(8, 2, positions="fixed")), torch.randn(2, 8, 7, 7)
    assert poolexport.export(layer, x, tmp_path / "net", dynamic_shapes={0: "N"}).manifest.verdict == "PASS"
    with pytest.raises(InputError, match="the position table is for maps of 7x7, got 9x11"):
        poolexport.export(layer, x, tmp_path / "other", dynamic_shapes={0: "N", 2: "H", 3: "W"})


@pytest.mark.parametrize("shape", [(2, 6, 7, 7), (1, 6, 3, 11), (3, 6, 1, 2)], ids=str)
def test_drawn_configurations_agree(shape):
    """The catalogue's own draw knows no state, and these layers start at random; here each is given one."""
    rng = np.random.default_rng(shape)
    cases = []
    for layer, space in SPACES.items():
        product = [dict(zip(space, values)) for values in itertools.product(*space.values())]
        product = [options for options in product if options.get("gamma") or not options.get("use_beta")]
        for index in rng.choice(len(product), EACH, replace=False):
            state = randomised(layer(**product[index]), int(index)).state_dict()
            cases.append(Case("drawn", product[index], shape=shape, state=state, layer=layer))
    compare(catalog.methods()["attention"], cases, [shape])


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (AttentionPoolLatent2d, {"channels": 0}, "channels must be a positive int"),
        (AttentionPoolLatent2d, {"channels": 4, "num_heads": 3}, "num_heads must divide"),
        (AttentionPoolLatent2d, {"channels": 4, "mlp_ratio": 0.2}, "at least one hidden unit"),
        (AttentionPoolLatent2d, {"channels": 4, "mlp_ratio": float("inf")}, "at least one hidden unit"),
        (AttentionPoolLatent2d, {"channels": 4, "activation": "relu"}, "activation must be one of"),
        (SimPool2d, {"channels": 4, "num_heads": 3}, "num_heads must divide"),
        (SimPool2d, {"channels": 4, "gamma": 0}, "gamma must be a finite number above 0"),
        (SimPool2d, {"channels": 4, "use_beta": True}, "use_beta needs a gamma"),
    ],
)
def test_variants_refuse_options(layer, options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)


@pytest.mark.parametrize("layer", [AttentionPoolLatent2d, SimPool2d])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 7, 7), "the layer has 4 channels, the input has 3"),
        ((2, 4, 7, 0), "there is nothing to pool"),
        ((2, 4, 7), "expects an input of shape"),
    ],
)
def test_variants_refuse_inputs(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer(4)(torch.zeros(shape))
