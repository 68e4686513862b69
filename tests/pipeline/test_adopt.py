"""Layers of other packages become ours: which, with what weights, how it is shown, and when it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import poolexport
from pipeline import foreign
from poolexport.adoption import _proof
from poolexport.adoption._entry import Entry, Foreign, Ours, planes
from poolexport.adoption.table import ENTRIES
from poolexport.errors import InputError


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose weights are none that it started from."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = make()
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(weight * (1 + 0.3 * torch.rand(weight.shape)) + 0.05 * torch.rand(weight.shape))
    return module.eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def adopted(module: nn.Module, **choices: str) -> tuple[nn.Module, poolexport.adoption.adopting.Replacement]:
    """Our layer in the place of a foreign one, and its record."""
    found = poolexport.adopt(nn.Sequential(nn.Identity(), module).eval(), choices)
    assert [record.path for record in found.replacements] == ["1"], found.kept
    return found.model[1], found.replacements[0]


SAMPLES = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0))
TORCH = {
    "MaxPool1d": (lambda: nn.MaxPool1d(3, 2, 1, 2, True), (2, 3, 14)),
    "MaxPool2d": (lambda: nn.MaxPool2d((3, 2), 2, (1, 0), ceil_mode=True), (2, 3, 8, 10)),
    "MaxPool3d": (lambda: nn.MaxPool3d(2, return_indices=True), (1, 2, 5, 6, 7)),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 3, 10)),
    "AvgPool2d": (lambda: nn.AvgPool2d(3, 2, 1, divisor_override=5), (2, 3, 9, 11)),
    "AvgPool3d": (lambda: nn.AvgPool3d(2, ceil_mode=True), (1, 2, 5, 6, 7)),
    "LPPool1d": (lambda: nn.LPPool1d(2, 3, ceil_mode=True), (2, 3, 11)),
    "LPPool2d": (lambda: nn.LPPool2d(3, (2, 3), 2), (2, 3, 9, 11)),
    "LPPool3d": (lambda: nn.LPPool3d(1.5, 2), (1, 2, 5, 6, 7)),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(4), (2, 3, 11)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((1, None)), (2, 3, 9, 11)),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(2), (1, 2, 5, 6, 7)),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(4, return_indices=True), (2, 3, 11)),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d((3, 5)), (2, 3, 9, 11)),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d((2, None, 1)), (1, 2, 5, 6, 7)),
    "FractionalMaxPool2d": (
        lambda: nn.FractionalMaxPool2d(2, output_ratio=0.6, return_indices=True, _random_samples=SAMPLES),
        (2, 3, 9, 11),
    ),
}


def answers(layer: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        answer = layer(x)
    return list(answer) if isinstance(answer, tuple) else [answer]


@pytest.mark.parametrize("name", TORCH)
def test_layers_of_torch_become_ours_of_the_same_name(name):
    make, shape = TORCH[name]
    module = make().eval()
    layer, record = adopted(module)
    assert type(layer) is getattr(poolexport.nn, name)
    assert record.proven
    assert record.found == f"torch.nn.modules.pooling.{name}"
    # Not the double of it: torch places fractional windows in the type of the input.
    x = drawn(*shape).float()
    for ours, theirs in zip(answers(layer, x), answers(module, x), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unpooling_finds_its_places(rank):
    pool = getattr(nn, f"MaxPool{rank}d")(3, 2, 1, return_indices=True)
    module = getattr(nn, f"MaxUnpool{rank}d")(3, 2, 1)
    layer, record = adopted(module)
    assert record.proven
    values, places = pool(drawn(1, 2, *(9, 7, 5)[:rank]))
    assert torch.equal(layer(values, places), module(values, places))


FOREIGN = {
    "fast-avg": (lambda: foreign.FastAdaptiveAvgPool(True), "GlobalAvgPool2d"),
    "fast-avg-2d": (foreign.FastAdaptiveAvgPool2d, "GlobalAvgPool2d"),
    "fast-max": (foreign.FastAdaptiveMaxPool, "GlobalMaxPool2d"),
    "fast-avgmax": (lambda: foreign.FastAdaptiveAvgMaxPool(True), "AvgMaxPool2d"),
    "fast-catavgmax": (foreign.FastAdaptiveCatAvgMaxPool, "AvgMaxPool2d"),
    "avgmax": (foreign.AdaptiveAvgMaxPool2d, "AvgMaxPool2d"),
    "catavgmax": (lambda: foreign.AdaptiveCatAvgMaxPool2d((1, 1)), "AvgMaxPool2d"),
    "fastai": (foreign.AdaptiveConcatPool2d, "AvgMaxPool2d"),
    "fastai-copied": (lambda: foreign.AdaptiveConcatPool2d(averages_first=True), "AvgMaxPool2d"),
    "lse": (foreign.LsePlus2d, "LSEPool2d"),
    "lse-fixed": (lambda: foreign.LsePlus2d(4.0, r_learnable=False, flatten=True), "LSEPool2d"),
    "gem": (lambda: foreign.GeM(2.5, 1e-3), "GeMPool2d"),
    "gem-flat": (lambda: foreign.GeM(flat=True), "GeMPool2d"),
    "gem-fixed": (lambda: foreign.GeM(4, learned=False), "GeMPool2d"),
    "gem-channels": (lambda: foreign.GeMmp(3, 3), "GeMPool2d"),
    "median": (lambda: foreign.MedianPool2d(3, 2, (2, 2, 1, 1)), "MedianPool2d"),
    "median-even": (lambda: foreign.MedianPool2d(2, 2), "MedianPool2d"),
    "same-avg": (lambda: foreign.AvgPool2dSame(3, 2, count_include_pad=False), "SameAvgPool2d"),
    "same-max": (lambda: foreign.MaxPool2dSame(3, 2), "SameMaxPool2d"),
    "same-gaps": (lambda: foreign.MaxPool2dSame(2, 3), "SameMaxPool2d"),
    "timm-blur": (foreign.BlurPool2d, "BlurPool2d"),
    "timm-blur-even": (lambda: foreign.BlurPool2d(3, 4, 3, "constant"), "BlurPool2d"),
    "kornia-blur": (lambda: foreign.BlurPool2D(4), "BlurPool2d"),
    "kornia-max-blur": (lambda: foreign.MaxBlurPool2D(3, 2, 3, True), "MaxBlurPool2d"),
    "zhang": (lambda: foreign.BlurPool(3), "BlurPool2d"),
    "zhang-zero": (lambda: foreign.BlurPool(3, "zero", 5, 3), "BlurPool2d"),
    "zhang-replicate": (lambda: foreign.BlurPool(3, "replicate", 1), "BlurPool2d"),
    "soft-early": (lambda: early(foreign.SoftPool2d(3, 2)), "SoftPool2d"),
    "soft-in-place": (lambda: foreign.SoftPool2d(2, force_inplace=True), "SoftPool2d"),
    "lip-resnet": (lambda: foreign.SimplifiedLIP(3), "SimplifiedLIP2d"),
    "lip-densenet": (lambda: foreign.SimplifiedLIP(3, ("conv1", "bn1")), "SimplifiedLIP2d"),
    "lip-bottleneck": (lambda: foreign.bottleneck_of_the_densenet()(3, 5), "BottleneckLIP2d"),
    "lip-shared": (lambda: foreign.BottleneckShared(3, 5), "BottleneckShared2d"),
    "dpp": (foreign.DPP, "DPP2d"),
    "dpp-channels": (lambda: foreign.DPP(3), "DPP2d"),
}


def early(module: nn.Module) -> nn.Module:
    module.own_weights = True
    return module


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_layers_become_ours_with_their_weights(name):
    make, ours = FOREIGN[name]
    module = seeded(make)
    layer, record = adopted(module)
    assert type(layer) is getattr(poolexport.nn, ours)
    assert record.proven, record
    assert record.found == f"{type(module).__module__}.{type(module).__qualname__}"
    assert record.ours == repr(layer)
    assert record.meaning
    x = 0.7 * drawn(2, 3, 12, 8, seed=1)
    precise = copy.deepcopy(module).double()(x)
    torch.testing.assert_close(layer.double()(x), precise, rtol=1e-9, atol=1e-9)


def test_the_entry_of_one_axis_is_the_blur_of_one_axis():
    module = seeded(lambda: foreign.BlurPool1D(3, filt_size=5))
    layer, record = adopted(module)
    assert record.proven
    torch.testing.assert_close(layer(drawn(2, 3, 11).float()), module(drawn(2, 3, 11).float()))


ATTENTION = {
    "clip": lambda: foreign.attention_of_clip()(5, 8, 2, 6),
    "timm": lambda: foreign.attention_of_timm()(8, 5, 6, 2),
    "timm-separate": lambda: foreign.attention_of_timm()(8, 5, 6, 2, qkv_separate=True),
    "timm-no-bias": lambda: foreign.attention_of_timm()(8, 5, 6, 2, qkv_bias=False),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_told_apart_by_what_it_holds(name):
    module = seeded(ATTENTION[name])
    layer, record = adopted(module)
    assert type(layer) is poolexport.nn.AttentionPool2d
    assert record.proven
    x = drawn(2, 8, 5, 5)
    torch.testing.assert_close(layer.double()(x), copy.deepcopy(module).double()(x), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="the position table is for maps of 5x5"):
        layer(drawn(2, 8, 6, 5))


def test_a_bottleneck_goes_on_with_what_it_is_given():
    module = seeded(lambda: foreign.bottleneck_of_the_resnet()(3, 5))
    layer, record = adopted(module)
    assert record.proven
    x, shared = drawn(2, 3, 9, 7), drawn(2, 5, 9, 7, seed=1)
    wanted = copy.deepcopy(module).double().forward_with_shared(x, shared)
    torch.testing.assert_close(layer.double().forward_with_shared(x, shared), wanted, rtol=1e-9, atol=1e-9)


def test_a_gate_with_another_end_is_carried_over():
    module = seeded(lambda: foreign.SimplifiedLIP(3))
    module.logit.gate.coeff = 5.0
    layer, record = adopted(module)
    assert record.proven
    assert layer.logit.gate.coeff == 5.0


def test_the_container_of_timm_stays_and_what_it_calls_is_replaced():
    for pool_type, ours in (("fast", "GlobalAvgPool2d"), ("avg", "AdaptiveAvgPool2d"), ("avgmax", "AvgMaxPool2d")):
        model = nn.Sequential(foreign.SelectAdaptivePool2d(pool_type, flatten=True)).eval()
        found = poolexport.adopt(model)
        assert [record.path for record in found.replacements] == ["0.pool"]
        assert type(found.model[0].pool).__name__ == ours
        assert found.model[0].feat_mult() == 1
        assert not found.model[0].is_identity()
        x = drawn(2, 3, 5, 4)
        torch.testing.assert_close(found.model(x), model(x))


def test_which_half_comes_first_shows_in_what_a_copy_answers():
    assert adopted(foreign.AdaptiveConcatPool2d())[0].combine == "concat_max_avg"
    assert adopted(foreign.AdaptiveConcatPool2d(averages_first=True))[0].combine == "concat_avg_max"


# What is planted


@pytest.mark.parametrize("fault", ["border", "window", "weights", "gate", "sum"])
def test_a_fault_in_the_table_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    from poolexport.adoption import blur, dpp, lip, windows

    module = {
        "border": lambda: foreign.BlurPool(3),
        "window": lambda: foreign.AvgPool2dSame(3, 2),
        "weights": lambda: foreign.DPP(3),
        "gate": lambda: foreign.SimplifiedLIP(3),
        "sum": foreign.FastAdaptiveCatAvgMaxPool,
    }[fault]
    model = nn.Sequential(seeded(module))
    assert poolexport.adopt(model).replacements[0].proven
    if fault == "border":
        monkeypatch.setitem(blur.PADDINGS, "Reflection", "replicate")
    elif fault == "window":
        monkeypatch.setattr(windows, "_window", lambda found: ((3, 3), (3, 3)))
    elif fault == "weights":
        monkeypatch.setattr(dpp, "carry", lambda layer, tensors: layer)
    elif fault == "gate":
        monkeypatch.setattr(lip, "_coeff", lambda found, network: 11.9)
    else:
        monkeypatch.setattr(poolexport.nn.AvgMaxPool2d, "_combined", lambda self, average, largest: average + largest)
    with pytest.raises(InputError, match="does not compute what our layer of that name does"):
        poolexport.adopt(model)


# What is ambiguous


def test_softpool_asks_which_of_its_functions_is_meant():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), foreign.SoftPool2d(2)).eval()
    with pytest.raises(InputError, match=r"1 \(SoftPool2d\): two functions have this name.*choices=\{'1': 'per_chan"):
        poolexport.adopt(model)
    paper = poolexport.adopt(model, {"SoftPool2d": "per_channel"})
    (record,) = paper.replacements
    assert not record.proven
    assert "its CUDA function cannot be run here" in record.proof
    assert paper.model[1].channel_weights == "per_channel"
    summed = poolexport.adopt(model, {"1": "summed"})
    assert summed.replacements[0].proven
    x = drawn(2, 3, 9, 9).float()
    torch.testing.assert_close(summed.model(x), model(x))
    assert not torch.allclose(paper.model(x), model(x))


def test_a_path_says_more_than_a_class():
    model = nn.Sequential(foreign.SoftPool2d(2), foreign.SoftPool2d(2)).eval()
    found = poolexport.adopt(model, {"SoftPool2d": "summed", "1": "per_channel"})
    assert [layer.channel_weights for layer in found.model] == ["summed", "per_channel"]


@pytest.mark.parametrize(("name", "shape"), [("SoftPool1d", (2, 3, 9)), ("SoftPool3d", (1, 3, 4, 5, 6))])
def test_softpool_of_other_ranks(name, shape):
    module = getattr(foreign, name)(2).eval()
    module.clamp = True
    layer, record = adopted(module, **{name: "summed_clamped"})
    assert record.proven
    torch.testing.assert_close(layer(drawn(*shape)), module(drawn(*shape)))


def test_the_wrong_choice_is_caught_where_it_can_be():
    class SoftPool2d(foreign.SoftPool2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    for layer, choice in ((foreign.SoftPool2d(2), "summed_clamped"), (SoftPool2d(2), "per_channel")):
        with pytest.raises(InputError, match="does not compute what our layer of that name does"):
            poolexport.adopt(nn.Sequential(layer).eval(), {"0": choice})


def test_torchs_own_draws_need_a_choice():
    model = nn.Sequential(nn.FractionalMaxPool2d(2, output_size=3), nn.FractionalMaxPool3d(2, output_ratio=0.5)).eval()
    with pytest.raises(InputError, match=r"draws its regions anew at every call.*choices=\{'0': 'fixed'\}"):
        poolexport.adopt(model)
    found = poolexport.adopt(model, {"FractionalMaxPool2d": "fixed", "1": "fixed"})
    assert [record.proven for record in found.replacements] == [True, True]
    assert all("training mode" in record.proof for record in found.replacements)
    x = drawn(1, 2, 9, 9)
    assert torch.equal(found.model[0](x), found.model[0](x))


def test_what_cannot_be_run_and_has_several_forms_asks():
    class GeM(foreign.GeM):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such kernel")

    model = nn.Sequential(GeM())
    with pytest.raises(InputError, match=r"no such kernel, so it does not show which of these it is: keepdim, flat"):
        poolexport.adopt(model)
    (record,) = poolexport.adopt(model, {"GeM": "flat"}).replacements
    assert not record.proven
    assert "no such kernel" in record.proof
    assert "keepdim=False" in record.ours


def test_choices_that_are_for_nothing_are_refused():
    model = nn.Sequential(nn.MaxPool2d(2))
    with pytest.raises(InputError, match=r"choices name 'MaxPol2d'.*did you mean MaxPool2d"):
        poolexport.adopt(model, {"MaxPol2d": "keep"})
    with pytest.raises(InputError, match="there is no choice 'softly'; it may be 'keep'"):
        poolexport.adopt(model, {"0": "softly"})


# What is kept


def test_what_is_no_layer_of_ours_is_kept_with_a_reason():
    model = nn.Sequential(
        foreign.RotAttentionPool2d(),
        foreign.EdgeAwareBlurPool2D(3),
        foreign.MedianPool2d(3, same=True),
        foreign.MedianPool2d(3, padding=(1, 0, 0, 0)),
        foreign.MaxPool2dSame(3, 2, dilation=2),
        foreign.BlurPool(3, "circular"),
        foreign.BlurPool(3, pad_off=1),
        foreign.BlurPool2d(3, pad_mode="circular"),
        foreign.FastAdaptiveAvgPool(dim=(1, 2)),
        foreign.attention_of_timm()(8, 5, 6, 2, class_token=True),
        foreign.AdaptiveAvgMaxPool2d(2),
    ).eval()
    found = poolexport.adopt(model)
    assert found.replacements == []
    assert [record.path for record in found.kept] == [str(i) for i in range(len(model))]
    words = ["turns queries", "edges", "same=True", "both ends alike", "dilation", "CircularPad2d"]
    words += ["pad_off", "circular", r"axes \(1, 2\)", "class token", "output size is 2"]
    for record, word in zip(found.kept, words, strict=True):
        assert word.replace("\\", "") in record.reason


def test_a_filter_of_another_kind_is_kept_where_ours_could_not_save_it():
    model = nn.Sequential(foreign.BlurPool2D(3))
    model[0].kernel.fill_(1 / 9)
    assert "not the binomial one" in poolexport.adopt(model).kept[0].reason
    trained = nn.Sequential(foreign.BlurPool(3, filt_size=3)).eval()
    trained[0].filt.copy_(drawn(3, 1, 3, 3))
    found = poolexport.adopt(trained)
    assert found.replacements[0].proven
    assert torch.equal(found.model[0].filt, trained[0].filt)


def test_other_classes_of_a_known_name_are_kept_or_caught():
    class MaxPool2d(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, 2)

    class GeM(foreign.GeM):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e-7

    class DPP(nn.Module):
        pass

    found = poolexport.adopt(nn.Sequential(MaxPool2d(), DPP(), foreign.AdaptiveConcatPool2d(2)).eval())
    assert [record.path for record in found.kept] == ["1", "2"], "torch's layers are known by their package too"
    assert "no attribute 'pospowbias.Lambda'" in found.kept[0].reason
    assert [record.path for record in found.replacements] == ["2.ap", "2.mp"]
    with pytest.raises(InputError, match=r"0 \(GeM\): it does not compute.*differ by .* choices=\{'0': 'keep'\}"):
        poolexport.adopt(nn.Sequential(GeM()))
    kept = poolexport.adopt(nn.Sequential(GeM()), {"0": "keep"})
    assert [record.reason for record in kept.kept] == ["as chosen"]


def test_our_own_layers_are_left_alone():
    found = poolexport.adopt(nn.Sequential(poolexport.nn.SoftPool2d(2), poolexport.nn.MaxPool2d(2)))
    assert (found.replacements, found.kept) == ([], [])


def test_a_layer_kept_by_choice_keeps_what_is_in_it():
    layer = foreign.AdaptiveConcatPool2d()
    found = poolexport.adopt(nn.Sequential(layer, layer), {"AdaptiveConcatPool2d": "keep"})
    assert found.replacements == []
    assert type(found.model[0].ap) is nn.AdaptiveAvgPool2d


def test_layers_that_hold_something_else_are_kept():
    wrong = foreign.GeM()
    wrong.eps = None
    empty = foreign.GeM(-1, learned=False)
    halves = nn.FractionalMaxPool2d(2, output_size=3, _random_samples=SAMPLES)
    found = poolexport.adopt(nn.Sequential(wrong, empty, halves, nn.Linear(2, 2)).half())
    assert [record.path for record in found.kept] == ["0", "1", "2"]
    words = ("does not hold what", "power must be a finite number above 0", "in a float16 model")
    assert all(word in record.reason for word, record in zip(words, found.kept, strict=True))


# The comparison can fail


def planted(layer: nn.Module, **options: object) -> Ours:
    return Ours(layer, "", planes(2), **options)  # type: ignore[arg-type]


def test_a_comparison_sees_every_kind_of_difference():
    pool = nn.AdaptiveMaxPool2d(3, return_indices=True)
    assert _proof.compare(pool, planted(poolexport.nn.AdaptiveMaxPool2d(3, True))).same is True
    assert "shapes" in _proof.compare(pool, planted(poolexport.nn.AdaptiveMaxPool2d(4, True))).words
    assert "refuses an input" in _proof.compare(pool, planted(poolexport.nn.MaxPool2d(99))).words

    class Off(nn.Module):
        def __init__(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
            super().__init__()
            self.change = change

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.change(*pool(x))

    def spoilt(values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        values[0, 0, 0, 0] = torch.nan
        return values, places

    for change, word in (
        (lambda values, places: (values, places + 1), "whole numbers differ"),
        (lambda values, places: (values * (1 + 1e-9), places), "answers differ by"),
        (spoilt, "NaN or infinities differ"),
    ):
        proof = _proof.compare(pool, planted(Off(change)))
        assert proof.same is False
        assert word in proof.words
    assert _proof.compare(Off(lambda values, places: (values * torch.nan, places)), planted(pool)).same is False
    nothing = Off(lambda values, places: (values * torch.nan, values * torch.nan))
    assert _proof.compare(nothing, planted(nothing)).same is None


def test_a_difference_that_these_weights_hide_is_seen_with_others():
    class SimplifiedLIP(foreign.SimplifiedLIP):
        def forward(self, x: Tensor) -> Tensor:
            return foreign.importance(x, 2 * self.logit(x))

    module = SimplifiedLIP(3)
    nn.init.zeros_(module.logit.conv.weight)  # all logits of a channel are alike, and their size does not show
    with pytest.raises(InputError, match="with other weights"):
        poolexport.adopt(nn.Sequential(module))


def test_a_foreign_layer_that_cannot_run_is_recorded_as_unproven():
    model = nn.Sequential(foreign.DPP())
    model[0].runs = False
    (record,) = poolexport.adopt(model).replacements
    assert not record.proven
    assert "NameError" in record.proof


# The table


def test_every_name_is_in_the_table_once_and_makes_what_it_says():
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    layers = set(dir(poolexport.nn))
    assert {entry.name for entry in ENTRIES if not set(entry.ours) <= layers} <= {"RoIPool", "RoIAlign", "PSRoIPool"}


def test_an_entry_for_a_layer_that_we_lack_is_absent(monkeypatch: pytest.MonkeyPatch):
    from poolexport.adoption import table

    class RoIAlign(nn.Module):
        pass

    def never(found: Foreign) -> list[Ours]:
        raise AssertionError("called for a layer that does not exist")

    monkeypatch.setattr(table, "ENTRIES", (Entry("RoIAlign", never, ("NoSuchPool2d",)),))
    assert table.entry_for(RoIAlign()) is None
    monkeypatch.setattr(table, "ENTRIES", (Entry("RoIAlign", never, ("SoftPool2d",)),))
    assert table.entry_for(RoIAlign()) is not None


# The model


class Net(nn.Module):
    """Shared layers, a list, a tied weight, and a root that is a pooling layer nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2, 1)
        self.again = self.pool
        self.blocks = nn.ModuleList([foreign.SimplifiedLIP(4), foreign.SimplifiedLIP(4)])
        self.blocks[1].logit.conv.weight = self.blocks[0].logit.conv.weight
        self.heads = nn.ModuleDict({"gem": foreign.GeM(), "mean": foreign.GeM()})
        self.heads["mean"].p = self.heads["gem"].p
        self.tail = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.pool(self.norm(self.conv(x))))
        for block in self.blocks:
            x = block(x)
        return self.tail(self.heads["gem"](x) + self.heads["mean"](x))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    model = seeded(Net)
    model.norm.running_mean.fill_(0.2)
    return model


@pytest.fixture(scope="module")
def whole(net: nn.Module) -> poolexport.Adopted:
    return poolexport.adopt(net)


def test_a_network_answers_the_same_and_stays_as_it_was(net, whole):
    state = {name: t.clone() for name, t in net.state_dict().items()}
    kinds = [type(module) for module in net.modules()]
    before = torch.get_rng_state()
    poolexport.adopt(net)
    assert torch.equal(torch.get_rng_state(), before)
    assert [type(module) for module in net.modules()] == kinds
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    x = drawn(2, 3, 20, 18).float()
    torch.testing.assert_close(whole.model(x), net(x))
    assert [record.path for record in whole.replacements] == ["pool", "blocks.0", "blocks.1", "heads.gem", "heads.mean"]
    assert all(record.proven for record in whole.replacements)


def test_what_is_shared_stays_shared(net, whole):
    model = whole.model
    assert model.pool is model.again
    assert type(model.pool) is poolexport.nn.MaxPool2d
    assert "the same layer is at again" in whole.replacements[0].notes
    assert model.blocks[0].logit.conv.weight is model.blocks[1].logit.conv.weight
    assert model.heads["gem"].p is model.heads["mean"].p
    assert model.blocks[0].logit.conv.weight is not net.blocks[0].logit.conv.weight
    assert len(list(model.parameters())) == len(list(net.parameters()))


def test_the_copy_exports_and_its_file_computes_what_the_original_does(net, whole, tmp_path):
    bundle = poolexport.export(whole.model, drawn(2, 3, 20, 18).float(), tmp_path / "net", dynamic_shapes={0: "N"})
    assert set(bundle.manifest.layers) == {record.path for record in whole.replacements}
    assert poolexport.verify(bundle.path, net).passed


def test_modes_types_and_gradients_are_carried_over():
    model = nn.Sequential(foreign.GeM(), nn.Sequential(foreign.BlurPool2D(3), foreign.AdaptiveConcatPool2d())).double()
    model[1][0].eval()
    model[0].p.requires_grad_(False)
    found = poolexport.adopt(model)
    assert [module.training for module in (found.model[0], *found.model[1])] == [True, False, True]
    assert found.model[0].p.dtype == torch.float64
    assert not found.model[0].p.requires_grad
    assert found.model[1][0].filt.dtype == torch.float64
    half = poolexport.adopt(nn.Sequential(foreign.BlurPool(3)).half())
    assert half.replacements[0].proven
    assert half.model[0].filt.dtype == torch.float16


def test_the_model_itself_may_be_a_pooling_layer():
    found = poolexport.adopt(nn.MaxPool2d(2))
    assert type(found.model) is poolexport.nn.MaxPool2d
    assert found.replacements[0].path == ""


def test_hooks_are_carried_over_and_are_not_called():
    calls: list[str] = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))
    model[1].register_forward_hook(lambda module, inputs, output: calls.append(type(module).__module__))
    model[1].register_forward_pre_hook(lambda module, inputs: calls.append("before"))
    found = poolexport.adopt(model)
    assert calls == []
    found.model(drawn(1, 3, 8, 8).float())
    assert calls == ["before", "poolexport.methods.max"]


def test_hooks_inside_of_a_layer_would_be_lost_and_are_refused():
    calls: list[str] = []
    model = nn.Sequential(foreign.SimplifiedLIP(3))
    model[0].logit.gate.register_forward_hook(lambda *_: calls.append("called"))
    with pytest.raises(InputError, match=r"0\.logit\.gate has hooks, which would be lost"):
        poolexport.adopt(model)
    assert poolexport.adopt(model, {"0": "keep"}).replacements == []
    assert calls == []


def test_a_weight_that_would_no_longer_be_shared_is_refused():
    model = nn.Sequential(foreign.attention_of_timm()(8, 5, 6, 2), nn.Linear(8, 24))
    model[1].weight = model[0].qkv.weight
    with pytest.raises(InputError, match=r"0 \(AttentionPool2d\) shares a weight with 1\.weight"):
        poolexport.adopt(model)


def test_a_layer_that_something_else_holds_is_refused():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(2)
            self.order = [self.pool]

    with pytest.raises(InputError, match=r"0\.pool \(MaxPool2d\) is also held by the plain attribute 0\.order"):
        poolexport.adopt(nn.Sequential(Holder()))


def test_what_is_no_model_is_refused():
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, got int"):
        poolexport.adopt(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="choices must be a mapping"):
        poolexport.adopt(nn.MaxPool2d(2), "keep")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_is_compiled_stays():
    compiled = torch.jit.script(nn.Sequential(nn.MaxPool2d(2)))
    model = nn.Sequential(compiled, nn.MaxPool2d(2)).eval()
    assert [record.path for record in poolexport.adopt(model).replacements] == ["1"]
    with pytest.raises(InputError, match="the model is compiled TorchScript"):
        poolexport.adopt(compiled)
    with pytest.raises(InputError, match=r"0\.0 lies inside of 0, which is compiled TorchScript"):
        poolexport.swap(model, {"0.0": poolexport.nn.SoftPool2d(2)})


def test_records_are_frozen(whole):
    with pytest.raises(FrozenInstanceError):
        whole.replacements[0].path = "elsewhere"
