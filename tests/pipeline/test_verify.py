"""What verification must not miss: files that are wrong only where a single comparison would not look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import ExportError, InputError, OutputError, ParityError
from poolexport.nn import RoIMaxPool2d
from poolexport.pipeline._rounding import SAMPLES, rounded_otherwise
from poolexport.pipeline.verify import Given
from poolexport.runtime import VARIANTS, Variant
from poolexport.tolerance import judge

NHW = {0: "N", 2: "H", 3: "W"}
IMAGE = torch.randn(2, 3, 12, 14)


class Fn(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Fn2(Fn):
    def forward(self, x, y):
        return self.function(x, y)


def file_of(function, tmp_path, *inputs, axes=NHW):
    """An unverified file of a function."""
    model = (Fn2 if len(inputs) == 2 else Fn)(function).eval()
    shapes = [axes] * len(inputs)
    names = [f"x{i}" for i in range(len(inputs))]
    return poolexport.export(
        model, inputs, tmp_path / "f.onnx", dynamic_shapes=shapes, input_names=names, verify=False, force=True
    ).path


def cells(x, axis):
    """The length of an axis, as a number the graph computes."""
    return torch.ones_like(x.movedim(axis, 0)[:, :1, :1, :1]).sum()


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: torch.where(cells(x, 0) > 4, 1.001, 1.0),
        lambda x: torch.where(cells(x, 0) < 2, 1.001, 1.0),
        lambda x: torch.where(cells(x, 2) > 20, 1.001, 1.0),
        lambda x: torch.where(cells(x, 3) < 10, 1.001, 1.0),
        lambda x: torch.where(x < 0, 1.001, 1.0),
        lambda x: torch.where(x.abs() > 5e3, 1.001, 1.0),
        lambda x: torch.where((x == 0).all(), torch.nan, 1.0),
        lambda x: 1.0 + 1e-5 * torch.ones_like(x),
    ],
    ids=["large-batch", "batch-1", "large-height", "small-width", "negative", "large-values", "nan-on-zeros", "1e-5"],
)
def test_fault_in_a_corner_is_found(fault, tmp_path):
    file = file_of(lambda x: x * 2 * fault(x), tmp_path, IMAGE)
    with pytest.raises(ParityError):
        poolexport.verify(file, Fn(lambda x: x * 2).eval(), IMAGE)


def test_the_right_file_passes(tmp_path):
    file = file_of(lambda x: x * 2, tmp_path, IMAGE)
    assert poolexport.verify(file, Fn(lambda x: x * 2).eval(), IMAGE).passed


def test_inputs_of_one_shape_get_values_of_their_own(tmp_path):
    file = file_of(lambda x, y: x - y, tmp_path, IMAGE, IMAGE)
    with pytest.raises(ParityError):
        poolexport.verify(file, Fn2(lambda x, y: 5 * (y - x)).eval(), (IMAGE, IMAGE))


def test_pixels_are_drawn_from_all_of_their_range(tmp_path):
    black = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    file = file_of(lambda x: x.float() * -1, tmp_path, black)
    with pytest.raises(ParityError):
        poolexport.verify(file, Fn(lambda x: x.float()).eval(), black)


@pytest.mark.parametrize("maps", [1, 2])
def test_boxes_on_no_map_are_replaced_by_the_examples(maps, tmp_path):
    """A dozen drawn numbers are hardly ever all those of a map; and a map's number is not moved to its neighbour's."""
    rois = torch.cat([torch.arange(12.0).remainder(maps).unsqueeze(1), 20 * torch.rand(12, 4)], 1)
    inputs = (IMAGE[:maps], rois)
    layer = RoIMaxPool2d(2, 0.5).eval()
    names, axes = ["x", "rois"], [NHW, {0: "R"}]
    file = poolexport.export(
        layer, inputs, tmp_path / "f.onnx", dynamic_shapes=axes, input_names=names, verify=False
    ).path
    assert len(poolexport.verify(file, layer, inputs).checks) > 30
    wrong = (lambda x, y: layer(x, y) * 1.0001) if maps == 1 else (lambda x, y: layer(x.flip(0), y))
    with pytest.raises(ParityError):
        poolexport.verify(file, Fn2(wrong).eval(), inputs)


@pytest.mark.parametrize(
    "bounds", [{"rtol": float("nan")}, {"atol": float("inf")}, {"factor": 0}, {"factor": float("nan")}]
)
def test_bounds_that_bound_nothing_are_refused(bounds, tmp_path):
    file = file_of(lambda x: x * 2, tmp_path, IMAGE)
    with pytest.raises(InputError, match="must be a"):
        poolexport.verify(file, Fn(lambda x: x * 3).eval(), IMAGE, **bounds)


@pytest.mark.parametrize("axis", [0, 2])
def test_model_that_branches_on_a_size_is_refused(axis, tmp_path):
    model = Fn(lambda x: x * 2 if x.shape[axis] > 64 else x * 3).eval()
    with pytest.raises(ExportError, match="dynamic only up to a length of 64: the model branches on it"):
        poolexport.export(model, IMAGE, tmp_path / "net", dynamic_shapes=NHW)


@pytest.mark.parametrize("layer", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)])
def test_nets_with_plane_statistics_pass(layer, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), poolexport.nn.SoftPool2d(2)).eval()
    bundle = poolexport.export(model, torch.randn(1, 3, 64, 64), tmp_path / "net", dynamic_shapes=NHW)
    assert bundle.manifest.verdict == "PASS"
    assert bundle.manifest.bound.startswith("4 times torch's own error")


def test_drawing_without_effect_is_refused(tmp_path):
    import random

    model = Fn(lambda x: x * 2 if random.random() < 1e-9 else x).eval()
    with pytest.raises(InputError, match=r"draws from Python's random at .*test_verify\.py:133"):
        poolexport.export(model, IMAGE, tmp_path / "net")


def test_hidden_counters_of_the_model_stand_still(tmp_path):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.calls += 1
            return x * 2

    model = Counts().eval()
    bundle = poolexport.export(model, IMAGE, tmp_path / "net.onnx")
    poolexport.verify(bundle.path, model)
    assert model.calls == 0


def test_force_keeps_a_folder_that_only_looks_like_a_bundle(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match="holds more than a bundle"):
        poolexport.export(Fn(lambda x: x * 2).eval(), IMAGE, site, force=True)
    bundle = poolexport.export(Fn(lambda x: x * 2).eval(), IMAGE, tmp_path / "net")
    (bundle.path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds more than a bundle"):
        poolexport.export(Fn(lambda x: x * 2).eval(), IMAGE, bundle.path, force=True)
    assert (bundle.path / "thesis.txt").read_text() == "precious"


def test_judgement_grows_with_what_rounding_does_to_the_truth():
    truth = np.array([1.0, 2.0])
    result, peer = truth.astype(np.float32) + np.float32(1e-4), truth.astype(np.float32)
    assert not judge(result, peer, truth).passed
    assert judge(result, peer, truth, moved=truth + 1e-4, sensitivity=4.0).passed
    assert not judge(result, peer, truth, moved=truth + 1e-6, sensitivity=4.0).passed
    assert judge(np.array([3, 4]), np.array([3, 5]), np.array([3, 4])).passed
    assert not judge(np.array([3, 6]), np.array([3, 5]), np.array([3, 5])).passed
    assert judge(np.array([3, 6]), np.array([3, 5]), np.array([3, 5]), moved=np.array([3, 7])).passed


def covariance(x, ridge):
    flat = x.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)
    return flat @ flat.mT / flat.shape[2] + ridge * torch.eye(x.shape[1], dtype=x.dtype)


def test_near_singular_matrices_are_judged_by_what_torch_answers_when_it_rounds_otherwise(tmp_path):
    """Channels that differ by one part in a thousand leave no digit of a float32 determinant, here and there NaN."""

    def near(x):
        return torch.linalg.cholesky(covariance(x, 1e-2)), torch.linalg.det(covariance(x, 1e-2))

    images = torch.randn(2, 3, 8, 8)
    assert poolexport.verify(file_of(near, tmp_path, images), Fn(near).eval(), images).passed


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            lambda x: torch.linalg.det(covariance(x, 1e-2)),
            lambda x: torch.linalg.det(covariance(x, 1e-2)) * (1 + 3e-5),
        ),
        (
            lambda x: torch.linalg.cholesky(covariance(x, 1e-2)),
            lambda x: torch.linalg.cholesky(covariance(x, 1.001e-2)),
        ),
        (
            lambda x: nn.functional.instance_norm(x, eps=1e-5),
            lambda x: (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), correction=0, keepdim=True),
        ),
        (
            lambda x: nn.functional.avg_pool2d(nn.functional.pad(x, (0, 1, 0, 0)), 2),
            lambda x: nn.functional.avg_pool2d(nn.functional.pad(x, (1, 0, 0, 0)), 2),
        ),
        (
            lambda x: nn.functional.max_pool2d(x, 3, return_indices=True)[1],
            lambda x: 3 * x.shape[3] - 1 - nn.functional.max_pool2d(x.flip(3).flip(2), 3, return_indices=True)[1],
        ),
        (
            lambda x: x.flatten(2) @ x.flatten(2).mT,
            lambda x: (x.flatten(2) @ x.flatten(2).mT) * torch.where(x[:1, :1, :1, 0] > 0, 1.00001, 1.0),
        ),
    ],
    ids=[
        "det by 3e-5",
        "cholesky of another ridge",
        "no eps",
        "swapped pads",
        "last of equal cells",
        "product by 1e-5",
    ],
)
def test_a_fault_does_not_pass_for_rounding(right, wrong, tmp_path):
    with pytest.raises(ParityError):
        poolexport.verify(file_of(wrong, tmp_path, IMAGE[:, :, :9, :12]), Fn(right).eval(), IMAGE[:, :, :9, :12])


def test_rounding_by_lot_moves_what_is_rounded_and_nothing_else():
    x = torch.randn(1, 2, 6, 6)
    whole = x.round() * 8
    for model, given, exact in (
        (lambda x: nn.functional.max_pool2d(x * 0.1, 2), whole, False),
        (lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[1], whole, True),
        (lambda x: (x * 4 + 1).relu().sum((2, 3)), whole, True),
        (lambda x: (x.double() * 0.1).sum((2, 3)), x, True),
        (lambda x: x.add(1).mul_(3)[:, :1], whole, True),
    ):
        usual = model(given).numpy()
        moved = np.stack([answers[0] for answers in rounded_otherwise(Fn(model).eval(), [given], seed=0)])
        assert len(moved) == SAMPLES
        assert (moved == usual).all() == exact
        if not exact:
            assert (moved.min(0) < usual).any()
            assert (moved.max(0) > usual).any()
            assert np.abs(moved - usual).max() <= 2 * np.spacing(np.abs(usual).max())


def test_a_matrix_without_a_factor_excuses_nan_in_its_place_and_no_number():
    nearly = torch.full((3, 3), 0.1) + torch.diag(torch.full((3,), 3e-9))
    factors = [
        answers[0]
        for answers in rounded_otherwise(
            Fn(lambda x: torch.linalg.cholesky(x * 0.7)).eval(), [torch.stack([torch.eye(3), nearly])], seed=0
        )
    ]
    assert len(factors) == SAMPLES
    assert all(np.isfinite(factor[0]).all() for factor in factors)
    assert any(np.isnan(factor[1]).all() for factor in factors)
    peer = np.ones((2, 2))
    nan = np.where([[True], [False]], np.nan, peer)
    assert judge(nan, peer, peer, others=[nan]).passed
    assert not judge(nan, peer, peer).passed
    assert not judge(nan[::-1], peer, peer, others=[nan]).passed
    assert not judge(2 * peer, peer, peer, others=[nan]).passed


def graded(result, peer, truth=None, **bounds):
    result, peer = np.asarray(result, np.float32), np.asarray(peer, np.float32)
    return judge(result, peer, peer.astype(np.float64) if truth is None else np.asarray(truth), **bounds)


def test_grades_say_how_wrong_an_answer_is():
    right = np.array([[1.0, 2.0, 4.0], [4.0, 2.0, 1.0]], np.float32)
    up = np.nextafter(right, np.float32(9))
    assert graded(right, right).grade == "EXACT"
    near = graded(up, right)
    assert (near.grade, near.equal, near.agree) == ("WITHIN ROUNDING", 0.0, 1.0)
    assert 0 < near.ulps <= 1
    assert graded(right + 1e-3, right, atol=1e-2).grade == "WITHIN TOLERANCE"
    assert graded(right + 1e-3, right).grade == "DEGRADED"
    assert graded(right + 1.0, right).grade == "WRONG"
    # a small difference that changes which entry is the largest
    close = np.array([[1.0, 1.001]], np.float32)
    assert graded(close[:, ::-1], close).grade == "WRONG"
    holed = right.copy()
    holed[0, 0] = np.nan
    assert (graded(holed, right).grade, graded(holed, right).stray) == ("WRONG", 1)
    assert judge(np.ones(2, np.int64), np.ones(2, np.int64), np.ones(2, np.int64)).grade == "EXACT"
    assert judge(np.ones(2, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64)).grade == "WRONG"


def test_entries_that_torch_itself_confuses_need_not_agree():
    truth = np.array([[1.0, 1.0 + 1e-9], [0.0, 1.0]])
    peer = np.array([[1.0, 1.0], [0.0, 1.0]], np.float32)
    assert graded([[1.0, 1.0], [0.0, 1.0]], peer, truth).agree == 1.0
    assert graded([[1.0, 1.0], [1.0, 0.0]], peer, truth).agree == 0.0


def test_variants_of_the_runtime_are_judged_as_well(tmp_path):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).eval()
    bundle = poolexport.export(model, torch.randn(1, 3, 9, 9), tmp_path / "net", dynamic_shapes={0: "N", 2: "H"})
    alone = poolexport.verify(bundle.path, model)
    verdict = poolexport.verify(bundle.path, model, variants=VARIANTS)
    assert verdict.checks[: len(alone.checks)] == alone.checks
    further = verdict.checks[len(alone.checks) :]
    # a file without functions has one form only
    assert {check.runtime for check in further} == {str(way) for way in VARIANTS if way.form == "function"}
    assert {check.values for check in further} >= {"example", "ties", "spike"}
    assert any(check.shapes != alone.checks[0].shapes for check in further)


def test_a_runtime_that_is_wrong_in_one_variant_only_is_caught(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, other = nn.Conv2d(3, 4, 3).eval(), nn.Conv2d(3, 4, 3).eval()
    x = torch.randn(1, 3, 9, 9)
    bundle = poolexport.export(model, x, tmp_path / "net")
    wrong = poolexport.export(other, x, tmp_path / "wrong")
    opened = Variant.open
    spoilt = Variant("basic", 2)
    monkeypatch.setattr(Variant, "open", lambda self, path: opened(self, wrong.path if self == spoilt else path))
    with pytest.raises(ParityError, match="optimised: basic, 2 threads") as caught:
        poolexport.verify(bundle.path, model, variants=VARIANTS)
    verdict = caught.value.verdict
    assert {check.runtime for check in verdict.failures} == {"optimised: basic, 2 threads"}
    assert (verdict.word, verdict.grade) == ("FAIL", "WRONG")


@pytest.mark.parametrize("value", [1e20, 1e-30, float("nan"), float("inf"), float("-inf")])
def test_extreme_values_show_what_others_do_not(tmp_path, value):
    def wrong(x):
        far = x.abs() > 1e15 if value == 1e20 else (x != 0) & (x.abs() < 1e-20)
        hit = far if abs(value) in (1e20, 1e-30) else x.isnan() if value != value else x == value
        return torch.where(hit, 0.5, x)

    path = file_of(wrong, tmp_path, IMAGE)
    right = Fn(lambda x: x * 1.0).eval()
    assert poolexport.verify(path, right, IMAGE).passed
    with pytest.raises(ParityError):
        poolexport.verify(path, right, IMAGE, extremes=True, strict=True)
    if not np.isfinite(value):
        verdict = poolexport.verify(path, right, IMAGE, extremes=True)
        assert verdict.passed
        assert verdict.remarks
        assert {check.values for check in verdict.remarks} <= {"nan", "-inf", "+inf"}


def test_inputs_that_somebody_has_are_tried_as_well(tmp_path):
    path = file_of(lambda x: torch.where(x.abs() == 77.0, 0.5, x), tmp_path, IMAGE)
    right = Fn(lambda x: x * 1.0).eval()
    ordinary = Given("ordinary.npy", lambda: [torch.randn(1, 3, 5, 6)])
    rare = Given("rare.npy", lambda: [torch.full((1, 3, 5, 6), 77.0, dtype=torch.float64)])
    verdict = poolexport.verify(path, right, IMAGE, data=[ordinary])
    assert [check.shapes for check in verdict.checks if check.values == "ordinary.npy"] == [((1, 3, 5, 6),)]
    with pytest.raises(ParityError, match=r"rare\.npy values at 1x3x5x6"):
        poolexport.verify(path, right, IMAGE, data=[ordinary, rare])
