"""Everything random in a model is found before anything is written, with its module and line; and what policies do."""

from __future__ import annotations

import json
import random
import sys
from random import choice

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from numpy.random import rand
from torch import nn

import poolexport
from poolexport.bundle import METADATA_KEY, Manifest
from poolexport.cli import main
from poolexport.errors import InputError, ModeError, ParityError, RandomnessError

IMAGE = torch.randn(2, 3, 8, 8)
NHW = {0: "N", 2: "H", 3: "W"}
GENERATOR = np.random.default_rng(3)
CLOSED = (lambda generator: lambda x: x * generator.normal())(np.random.default_rng(4))


class Fn(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.more = [random.Random(1)]

    def forward(self, x):
        x = x * self.rng.normal()
        return x + self.more[0].random()


class Remembers(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Twice(nn.Module):
    """Two dropouts on one input, which are no common subexpression."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Dropout(0.5)
        self.b = nn.Dropout(0.5)

    def forward(self, x):
        return self.a(x) - self.b(x), x * 2


class Thrice(Twice):
    def forward(self, x):
        return self.a(x) - self.b(x), x * 3


class Narrow(Twice):
    def forward(self, x):
        return (self.a(x) - self.b(x))[:, :1], x * 2


def network(*layers: nn.Module) -> nn.Module:
    """Layers inside a block called 1."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(*layers), nn.ReLU()).eval()


def line(function) -> int:
    return function.__code__.co_firstlineno


def states():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # noqa: NPY002


# fmt: off
PLANTED = {
    "F.dropout": (lambda x: F.dropout(x), "torch", "draws bernoulli_ of 2x4x6x6"),
    "torch.rand": (lambda x: x + torch.rand(4, 1, 1), "torch", "draws rand of 4x1x1"),
    "randn_like": (lambda x: x + torch.randn_like(x), "torch", "draws randn_like"),
    "multinomial": (lambda x: x + torch.multinomial(torch.ones(4), 1), "torch", "draws multinomial"),
    "exponential_": (lambda x: x + torch.empty(4, 1, 1).exponential_(), "torch", "draws exponential_"),
    "gumbel": (lambda x: F.gumbel_softmax(x), "torch", "draws exponential_"),
    "fractional": (lambda x: F.fractional_max_pool2d(x, 2, 3), "torch", "draws rand"),
    "own": (lambda x: x + torch.rand(1, generator=torch.Generator()), "torch generator", "from a generator of its own"),
    "random": (lambda x: x * random.gauss(0, 1), "python", "draws from Python's random"),
    "choice": (lambda x: x * choice([1.0, 2.0, 3.0]), "python", "draws from Python's random"),
    "numpy": (lambda x: x * float(np.random.rand()), "numpy", "draws from numpy.random"),  # noqa: NPY002
    "rand": (lambda x: x * float(rand()), "numpy", "draws from numpy.random"),  # noqa: NPY002
    "global": (lambda x: x * GENERATOR.normal(), "generator", "draws from GENERATOR"),
    "closed": (CLOSED, "generator", "draws from generator"),
    "unseeded": (lambda x: x * np.random.default_rng().normal(), "system", "draws from the operating system"),
    "system": (lambda x: x * random.SystemRandom().random(), "system", "draws from the operating system"),
}
# fmt: on


@pytest.mark.parametrize("name", PLANTED)
def test_a_draw_is_named_with_module_line_and_kind(name):
    function, kind, drawn = PLANTED[name]
    model, before, held = network(Fn(function)), states(), GENERATOR.bit_generator.state
    [culprit] = poolexport.audit(model, IMAGE).culprits
    assert (culprit.path, culprit.layer, culprit.kind) == ("1.0", "Fn", kind)
    assert drawn in culprit.drawn
    assert culprit.advice
    file, _, number = culprit.source.rpartition(":")
    assert file.endswith("test_audit.py")
    assert int(number) == line(function)
    assert states() == before
    assert GENERATOR.bit_generator.state == held


def test_all_culprits_are_in_one_error_and_nothing_is_written(tmp_path):
    functions = [function for function, kind, _ in PLANTED.values() if kind != "system"]
    model = network(*[Fn(function) for function in functions if function not in (PLANTED["fractional"][0], CLOSED)])
    model[1].append(Holds())
    model.append(nn.Dropout())
    model.eval()[3].train()
    with pytest.raises(RandomnessError) as caught:
        poolexport.export(model, IMAGE, tmp_path / "net")
    assert isinstance(caught.value, ModeError)
    assert list(tmp_path.iterdir()) == []
    found = caught.value.audit.culprits
    assert [c.path for c in found] == ["3", *(f"1.{n}" for n in range(len(model[1]))), f"1.{len(model[1]) - 1}"]
    assert [c.drawn for c in found[-2:]] == [f"draws from {found[-1].path}.{name}" for name in ("rng", "more[0]")]
    for culprit in found:
        assert str(culprit) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_in_training_mode_is_told_with_what_it_draws_and_where_it_is_called():
    model = network(nn.Dropout(), nn.BatchNorm2d(4))
    model[1].train()
    found = poolexport.audit(nn.Sequential(Fn(model)).eval().requires_grad_(False), IMAGE)
    assert found.clean, "eval() reaches every child"
    model[1].train()
    block, drop, norm = poolexport.audit(model, IMAGE).culprits
    assert [c.kind for c in (block, drop, norm)] == ["training mode"] * 3
    assert (drop.path, norm.path) == ("1.0", "1.1")
    assert "draws bernoulli_" in drop.drawn
    assert norm.drawn == "is in training mode"
    assert "torch/nn/modules/dropout.py:" in drop.source.replace("\\", "/"), "no line of the user's calls it"


def test_a_model_in_training_mode_is_one_culprit_and_what_eval_would_leave():
    model = network(nn.Dropout(), Fn(PLANTED["torch.rand"][0])).train()
    mode, draw = poolexport.audit(model, IMAGE).culprits
    assert (mode.path, mode.kind) == ("", "training mode")
    assert (draw.path, draw.kind) == ("1.1", "torch")
    assert model.training
    assert model[1][0].training


def test_memory_and_clocks_are_told_from_draws():
    with pytest.raises(InputError, match="must be a tensor"):
        poolexport.audit(network(nn.ReLU()), [1.0])
    ticks = iter(range(10**6))
    [culprit] = poolexport.audit(network(Remembers()), IMAGE).culprits
    assert (culprit.path, culprit.kind) == ("1.0", "memory")
    [culprit] = poolexport.audit(network(Fn(lambda x: x + next(ticks))), IMAGE).culprits
    assert culprit.kind == "memory"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(),
        nn.RReLU(),
        nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True),
        poolexport.nn.StochasticPool2d(2),
        poolexport.nn.FractionalMaxPool2d(2, output_size=3),
        Fn(lambda x: x * float(np.random.default_rng(0).normal())),
        Fn(lambda x: F.dropout(x, training=False)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_clean_models_are_clean(layer):
    if isinstance(layer, nn.MultiheadAttention):
        attention = layer
        layer = Fn(lambda x: attention(x[:, 0], x[:, 0], x[:, 0])[0])
        attention.eval()
    model, before = network(layer), states()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = poolexport.audit(model, IMAGE)
    assert found.clean, found
    assert str(found) == "nothing is random"
    assert states() == before
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_an_audit_leaves_hooks_tracers_and_hidden_state_as_they_were():
    def tracer(*_):
        return None

    model = network(Holds(), Remembers())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    state = model[1][0].rng.bit_generator.state
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        poolexport.audit(model, IMAGE)
        assert sys.gettrace() is tracer
        with pytest.raises(InputError, match="failed on an input"):
            poolexport.audit(network(Fn(lambda x: x @ x[:1])), IMAGE[:, :1])
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert model[1][0].rng.bit_generator.state == state
    assert model[1][1].calls == 0
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def export(model, path, policies, **options):
    return poolexport.export(model, IMAGE, path, randomness=policies, **options)


def test_expectation_puts_layers_into_eval_mode(tmp_path):
    model = network(nn.Dropout(), poolexport.nn.StochasticPool2d(2))
    model[1].train()
    bundle = export(model, tmp_path / "net", {"1": "expectation"}, dynamic_shapes=NHW)
    assert bundle.manifest.verdict == "PASS"
    assert bundle.manifest.randomness == {"1": "expectation", "1.0": "expectation", "1.1": "expectation"}
    assert poolexport.verify(bundle.path, model).passed
    assert model[1][0].training
    with torch.no_grad():
        wanted = model.eval()(IMAGE).numpy()
    [answer] = poolexport.session(bundle.path).run(None, {"input": IMAGE.numpy()})
    np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (nn.Dropout(0.5), None),
        (nn.AlphaDropout(0.5), None),
        (Fn(PLANTED["torch.rand"][0]), NHW),
        (Fn(PLANTED["exponential_"][0]), NHW),
        (Fn(PLANTED["own"][0]), NHW),
        (Fn(PLANTED["choice"][0]), NHW),
        (Fn(PLANTED["numpy"][0]), NHW),
        (Holds(), NHW),
        (poolexport.nn.StochasticPool2d(2), None),
    ],
    ids=["dropout", "alpha", "torch", "in-place", "own", "python", "numpy", "held", "stochastic"],
)
def test_a_fixed_draw_is_a_constant_that_its_seed_decides(layer, axes, tmp_path):
    model, before = network(layer), states()
    path = "1.0"
    answers = {}
    for seed in (7, 8):
        options = {"dynamic_shapes": axes, "verify": seed == 8}
        bundle = export(model, tmp_path / f"net-{seed}.onnx", {path: f"fixed({seed})"}, **options)
        assert bundle.manifest.randomness == {path: f"fixed({seed})"}
        runs = [poolexport.session(bundle.path).run(None, {"input": IMAGE.numpy()})[0] for _ in range(2)]
        assert np.array_equal(*runs)
        answers[seed] = runs[0]
    assert bundle.manifest.verdict == "PASS"
    assert not np.array_equal(answers[7], answers[8])
    assert states() == before
    assert not any(module.training for module in model.modules())
    assert "forward" not in vars(model[1][0])
    with torch.no_grad():
        plain = nn.Sequential(model[0], nn.Sequential(), model[2])(IMAGE).numpy()
    assert plain.shape != answers[7].shape or not np.allclose(plain, answers[7])


def test_a_fixed_draw_of_another_seed_is_not_the_same_file(tmp_path):
    model = network(Fn(PLANTED["torch.rand"][0]))
    bundle = export(model, tmp_path / "net.onnx", {"1.0": "fixed(7)"})
    assert poolexport.verify(bundle.path, model).passed
    proto = onnx.load(bundle.model)
    for entry in proto.metadata_props:
        entry.value = entry.value.replace("fixed(7)", "fixed(8)")
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ParityError):
        poolexport.verify(tmp_path / "other.onnx", model)


def test_kept_draws_stay_in_the_file_which_says_that_they_were_not_compared(tmp_path):
    model = Twice().eval()
    bundle = export(model, tmp_path / "net", {"a": "keep", "b": "keep"}, dynamic_shapes=NHW)
    assert bundle.manifest.verdict == "UNVERIFIED"
    assert bundle.manifest.random_outputs == ("output_0",)
    session = poolexport.session(bundle.path)
    (drawn, same), (again, same_again) = (session.run(None, {"x": IMAGE.numpy()}) for _ in range(2))
    assert not np.array_equal(drawn, again)
    assert np.abs(drawn).max() > 0, "two draws were taken for one"
    assert np.array_equal(same, same_again)
    verdict = poolexport.verify(bundle.path, model)
    assert (verdict.word, verdict.passed, verdict.random) == ("UNVERIFIED", False, ("output_0",))
    assert all(len(check.judgements) == 1 for check in verdict.checks)


def test_the_outputs_that_are_not_random_are_still_compared(tmp_path):
    bundle = export(Twice().eval(), tmp_path / "net.onnx", {"*": "keep", "a": "keep", "b": "keep"})
    with pytest.raises(ParityError, match=r"error .* exceeds"):
        poolexport.verify(bundle.path, Thrice().eval())
    with pytest.raises(ParityError, match="output_0, which is random, is float32 of shape"):
        poolexport.verify(bundle.path, Narrow().eval())


def test_policies_are_in_the_metadata_and_shown(tmp_path):
    model = network(Fn(PLANTED["F.dropout"][0]), Fn(PLANTED["choice"][0]))
    bundle = export(model, tmp_path / "net", {"1.0": "keep", "1.?": "fixed(3)"})
    metadata = {entry.key: entry.value for entry in onnx.load(bundle.model).metadata_props}
    assert metadata["poolexport.randomness.1.0"] == "keep"
    assert Manifest.from_json(metadata[METADATA_KEY]) == bundle.manifest
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["inspect", str(bundle.path)])
    assert "randomness   1.0: keep" in result.stdout
    assert "1.1: fixed(3)" in result.stdout
    assert "not compared, because they are random: output" in result.stdout
    found = json.loads(CliRunner().invoke(main, ["inspect", str(bundle.path), "--json"]).stdout)
    assert found["randomness"] == {"1.0": "keep", "1.1": "fixed(3)"}
    assert found["verdict"] == "UNVERIFIED"


# fmt: off
REFUSED = {
    "no-policy": (nn.ReLU(), {"1.0": "average"}, None, "'average' is no policy"),
    "no-seed": (nn.ReLU(), {"1.0": "keep(7)"}, None, "is no policy"),
    "large-seed": (nn.ReLU(), {"1.0": "fixed(4294967296)"}, None, "is too large"),
    "no-module": (nn.ReLU(), {"1.dorp": "keep"}, None, "no module is called that"),
    "nothing-drawn": (nn.ReLU(), {"1.0": "keep"}, None, "'1.0', but it draws nothing"),
    "no-rule": (Fn(PLANTED["F.dropout"][0]), {"1.0": "expectation"}, None, r"1\.0 \(Fn\) has no expectation"),
    "keep-python": (Fn(PLANTED["choice"][0]), {"1.0": "keep"}, None, r"1\.0 \(Fn\) cannot keep .*Python's"),
    "keep-own": (Fn(PLANTED["own"][0]), {"1.0": "keep"}, None, r"1\.0 \(Fn\) cannot keep its draws"),
    "fix-system": (Fn(PLANTED["system"][0]), {"1.0": "fixed(1)"}, None, "which takes no seed"),
    "fix-global": (Fn(PLANTED["global"][0]), {"1.0": "fixed(1)"}, None, "a generator that the module does not hold"),
    "fix-by-value": (Fn(lambda x: torch.bernoulli(x.sigmoid())), {"1.0": "fixed(1)"}, None, "by the values of its"),
    "fix-inside": (Fn(PLANTED["gumbel"][0]), {"1.0": "fixed(1)"}, None, "inside a function that cannot be taken apart"),
    "fix-dynamic": (nn.Dropout(), {"1.0": "fixed(1)"}, NHW, r"1\.0 cannot have fixed draws: .*follows a dynamic axis"),
    "memory": (Remembers(), {"1.0": "fixed(1)"}, None, "depends on earlier calls"),
}
# fmt: on


@pytest.mark.parametrize("name", REFUSED)
def test_a_policy_that_cannot_be_kept_to_is_refused(name, tmp_path):
    layer, policies, axes, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        export(network(layer), tmp_path / "net", policies, dynamic_shapes=axes)
    assert list(tmp_path.iterdir()) == []


def test_a_policy_for_one_layer_leaves_the_others_refused(tmp_path):
    model = network(Fn(PLANTED["F.dropout"][0]), Fn(PLANTED["choice"][0]), nn.BatchNorm2d(4))
    model[1][2].train()
    with pytest.raises(ModeError) as caught:
        export(model, tmp_path / "net", {"1.0": "keep", "1.2": "expectation"})
    assert [culprit.path for culprit in caught.value.audit.culprits] == ["1.2", "1.1"]


def test_the_command_line_takes_policies(tmp_path, monkeypatch):
    (tmp_path / "noisy.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Noisy(nn.Module):\n    def forward(self, x):\n"
        "        return x + torch.rand(3, 1, 1)\n\n\ndef build():\n    return nn.Sequential(nn.ReLU(), Noisy())\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["export", "noisy.py:build", "--input", "1x3x8x8", "-o", "net", "--randomness"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, [*words, "1"])
    assert (result.exit_code, "names no policy; write PATH=POLICY" in result.stderr) == (2, True)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, [*words, "1=keep"])
    assert result.exit_code == 0, result.output
    assert "randomness    1: keep" in result.stdout
    assert "UNVERIFIED" in result.stdout
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["verify", "net", "noisy.py:build"])
    assert result.exit_code == 0, result.output
    assert "not compared, because they are random: output; only shapes and types were" in result.stdout
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, [*words, "*=fixed(2)", "--force"])
    assert result.exit_code == 0, result.output
    assert "PASS" in result.stdout
