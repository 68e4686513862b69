"""What every method must pass. A check is a function of one method and one case; its docstring is its claim."""

from __future__ import annotations

import copy
import inspect
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from torch import nn

import poolexport
from conformance.lab import DTYPES, Arrays, Form, Specimen, graph_dtypes, is_first_of_its_rank, named_axes
from poolexport import stress
from poolexport.method import Case, Limit, Method
from poolexport.pipeline.export import RANDOM_OPERATORS
from poolexport.tolerance import REFERENCE_ATOL, REFERENCE_RTOL, judge
from poolexport_ops import DOMAIN

Get = Callable[[Method, Case, str], Specimen]
Check = Callable[[Method, Case, Get], None]
ORT_FACTOR = 2.0
#: What onnxruntime raises for an input that does not suit the file.
RUNTIME_ERRORS = (InvalidArgument, RuntimeException, Fail)


def follows_reference(method: Method, case: Case, get: Get) -> None:
    """In eval mode the layer computes the reference's formula, in every dtype, size and regime of values."""
    for dtype in DTYPES:
        specimen = get(method, case, dtype)
        for shape in specimen.shapes():
            _close(specimen, specimen.draw("normal", shape), specimen.torch, shape)
        for regime in stress.REGIMES:
            _close(specimen, specimen.draw(regime), specimen.torch, regime)


def survives_extremes(method: Method, case: Case, get: Get) -> None:
    """Values at the ends of the range, NaN and infinities give the reference's answer, in torch and in the graph."""
    for dtype in DTYPES:
        specimen = get(method, case, dtype)
        for pattern in stress.EXTREMES:
            x = specimen.draw(pattern)
            _close(specimen, x, specimen.torch, f"torch, {pattern}")
            if dtype in graph_dtypes(method, case):
                _close(specimen, x, specimen.onnx, f"graph, {pattern}")
                _close(specimen, x, partial(specimen.onnx, form="native"), f"kernels, {pattern}")


def onnx_follows_torch(method: Method, case: Case, get: Get) -> None:
    """onnxruntime answers what torch answers, with function bodies, at traced and unseen sizes."""
    _follows_torch(method, case, get, form="function")


def inlined_follows_torch(method: Method, case: Case, get: Get) -> None:
    """onnxruntime answers what torch answers, inlined, at traced and unseen sizes."""
    _follows_torch(method, case, get, form="inlined")


def native_follows_torch(method: Method, case: Case, get: Get) -> None:
    """onnxruntime answers what torch answers, with native kernels, at traced and unseen sizes."""
    _follows_torch(method, case, get, form="native")


def leaves_expected_operators(method: Method, case: Case, get: Get) -> None:
    """The graph holds the operators of the card and standard ones, inlined only standard ones, and nothing random."""
    allowed = {operator.name for operator in method.operators}
    graph = get(method, case, "float32").graph(False)
    called = {node.op_type for node in graph.graph.node if node.domain == DOMAIN}
    ours = {re.sub(r"_\d+$", "", name) for name in called}
    assert ours <= allowed, f"{ours - allowed} not on the card"
    assert {f.name for f in graph.functions} == called, "a body without a call, or a call without a body"
    inlined = get(method, case, "float32").graph(True)
    assert not inlined.functions
    assert {node.domain for node in inlined.graph.node} <= {""}
    nodes = [node.op_type for f in graph.functions for node in f.node] + [node.op_type for node in inlined.graph.node]
    assert not RANDOM_OPERATORS & set(nodes)


def trains(method: Method, case: Case, get: Get) -> None:
    """Gradients are right in eval mode and finite in training; training is random exactly where the card says so."""
    layer = copy.deepcopy(get(method, case, "float64").layer)
    specimen = get(method, case, "float64")

    def answer(x: torch.Tensor) -> torch.Tensor:
        _, *rest = specimen.tensors(x.detach().numpy())
        return _floating(layer(x, *rest))

    # Every entry of the Jacobian where a rank is first tried, random projections of it elsewhere.
    fast = not is_first_of_its_rank(method, case)
    assert torch.autograd.gradcheck(answer, _distinct(case.shape).requires_grad_(), atol=1e-6, fast_mode=fast)
    layer.train()
    sparse = torch.from_numpy(stress.draw("sparse", case.shape, np.float64))
    for values in (_distinct(case.shape), *([] if case.singular_at_zero else [sparse, torch.zeros_like(sparse)])):
        values.requires_grad_()
        answer(values).sum().backward()
        assert values.grad is not None
        assert values.grad.isfinite().all(), "a gradient is not finite"
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert parameter.grad.isfinite().all()
    torch.manual_seed(0)
    with torch.no_grad():
        passes = [answer(_distinct(case.shape)) for _ in range(24)]
    differs = any(not torch.equal(passes[0], other) for other in passes[1:])
    assert differs == (method.random and not _fixed(layer)), f"random in training: {differs}, card: {method.random}"


def repeats_in_eval(method: Method, case: Case, get: Get) -> None:
    """Two eval passes agree whatever the random state, change no buffer, and survive a trip through safetensors."""
    specimen = get(method, case, "float32")
    x = specimen.draw("normal")
    before = {name: t.clone() for name, t in specimen.layer.state_dict().items()}
    torch.manual_seed(1)
    first = specimen.torch(x)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    _equal(first, specimen.torch(x))
    assert torch.equal(state, torch.get_rng_state()), "eval mode draws random numbers"
    after = specimen.layer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "eval mode changes a buffer"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "layer.safetensors"
        safetensors.torch.save_file(after, file)
        fresh = method.layer_of(case)(**case.options).eval()
        fresh.load_state_dict(safetensors.torch.load_file(file))
    with torch.no_grad():
        answer = fresh(*specimen.tensors(x))
    _equal(first, tuple(t.numpy() for t in (answer if isinstance(answer, tuple) else (answer,))))


def refuses_what_it_says(method: Method, case: Case, get: Get) -> None:
    """Every declared limit raises the error it names, and says what was found."""
    assert method.limits, "a method without limits has not been thought through"
    for limit in method.limits:
        raised: Exception | None = None
        try:
            layer = method.layer(limit.rank)(**limit.options).eval()
            if limit.shape is not None:
                layer(*map(torch.from_numpy, _refused(method, limit)))
        except Exception as error:
            raised = error
        assert type(raised) is limit.error, f"{limit.options}: {raised!r} instead of {limit.error.__name__}"
        assert limit.message in str(raised), f"{limit.options}: {raised}"


def files_do_what_it_says(method: Method, case: Case, get: Get) -> None:
    """A file that meets an input which the layer refuses does what the limit says."""
    for limit in method.limits:
        if limit.shape is None or len(limit.shape) != limit.rank + 2:
            continue
        found = "refuses"
        exported = _exportable(method, limit)
        if exported is not None:
            session = Specimen(method, exported).session("function")
            try:
                answers = session.run(None, {f"x{i}": a for i, a in enumerate(_refused(method, limit))})
                found = "numbers" if all(answer.size for answer in answers) else "nothing"
            except RUNTIME_ERRORS:
                pass
        assert found == limit.file, f"{limit.options}, {limit.shape}: a file gives {found!r}, not {limit.file!r}"


def takes_any_channels(method: Method, case: Case, get: Get) -> None:
    """One file takes any number of channels, or the layer itself takes only its own number."""
    specimen = Specimen(method, case, fixed="" if method.dynamic_channels else "C")
    batch, channels, *spatial = case.shape
    others = [(batch, n, *spatial) for n in (1, 2, 5) if n != channels]
    if not method.dynamic_channels:
        assert not any(specimen.accepts(shape) for shape in others), "the layer takes other numbers of channels"
        return
    for shape in others:
        x = specimen.draw("normal", shape)
        for result, peer, truth in zip(specimen.onnx(x), specimen.torch(x), specimen.truth(x), strict=True):
            judgement = judge(result, peer, truth, factor=ORT_FACTOR)
            assert judgement.passed, f"{shape}: {judgement.reason}"


def lives_in_a_network(method: Method, case: Case, get: Get) -> None:
    """Inside a network it goes from the public export to a verified answer from disk; once per method in both forms."""
    channels = case.shape[1]
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[case.rank - 1]
    torch.manual_seed(0)
    mix = conv(2, channels, 1) if case.rank else nn.Linear(2, channels)
    host = _Host(nn.Sequential(mix, nn.ReLU()), method.build(case)).eval()
    specimen = get(method, case, "float32")
    inputs = (torch.randn(case.shape[0], 2, *case.shape[2:]), *specimen.tensors(specimen.draw("normal"))[1:])
    axes = named_axes(method, inputs)
    names = [f"x{i}" for i in range(len(inputs))]
    with tempfile.TemporaryDirectory() as folder:
        for portable in (False, True)[: 1 + (case is method.cases[0])]:
            target = Path(folder) / f"net-{portable}"
            bundle = poolexport.export(host, inputs, target, dynamic_shapes=axes, portable=portable, input_names=names)
            assert bundle.manifest.verdict == "PASS"
            assert bundle.manifest.layers["pool"] == method.name
            assert bool(bundle.manifest.inference_rules) == method.random
            feed = {name: t.numpy() for name, t in zip(names, inputs)}
            [answer] = poolexport.session(bundle.path).run(None, feed)
            with torch.no_grad():
                np.testing.assert_allclose(answer, host(*inputs).numpy(), rtol=1e-4, atol=1e-5)


def is_documented(method: Method, case: Case, get: Get) -> None:
    """The docstring has every section a user needs and every option; each option is tried by some case."""
    for layer in (*method.layers, *method.variants):
        text = inspect.getdoc(layer) or ""
        sections = re.findall(r"^(\w+):$", text, flags=re.MULTILINE)
        missing = {"Args", "Shape", "Raises", "Example", "Source"} - set(sections)
        assert not missing, f"{layer.__name__} lacks {missing}"
        options = list(inspect.signature(layer).parameters)
        for option in options:
            assert re.search(rf"^\s+(\w+, )*{option}(, \w+)*:", text, flags=re.MULTILINE), f"{option} undocumented"
        known = [*method.limits, *(c for c in method.cases if c.layer is layer or layer not in method.variants)]
        tried = {name for each in known for name in each.options}
        assert set(options) <= tried, f"no case tries {set(options) - tried}"
    assert method.training
    assert method.inference


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        follows_reference,
        survives_extremes,
        onnx_follows_torch,
        inlined_follows_torch,
        native_follows_torch,
        leaves_expected_operators,
        trains,
        repeats_in_eval,
        refuses_what_it_says,
        files_do_what_it_says,
        takes_any_channels,
        lives_in_a_network,
        is_documented,
    )
}
#: Checks of the card as a whole run on the first case only, checks of the whole road on the first of every rank.
ONCE = {"refuses_what_it_says", "files_do_what_it_says", "is_documented"}
PER_RANK = {"lives_in_a_network", "takes_any_channels"}


def applies(check: str, method: Method, case: Case) -> bool:
    """Whether a check is made on this case."""
    if check in ONCE:
        return case is method.cases[0]
    return check not in PER_RANK or is_first_of_its_rank(method, case)


def _refused(method: Method, limit: Limit) -> Arrays:
    """All inputs that a limit is about, the first of zeros."""
    assert limit.shape is not None
    return method.inputs(
        Case("limit", limit.options, layer=method.layer(limit.rank)), np.zeros(limit.shape, np.float32)
    )


def _exportable(method: Method, limit: Limit) -> Case | None:
    """A case with a limit's options on an input that the layer accepts; None where it accepts none, as it stands."""
    assert limit.shape is not None
    channels = int(limit.options.get("channels") or limit.shape[1])
    for length in (7, 8, 24):
        case = Case("limit", limit.options, shape=(2, channels, *range(length, length + limit.rank)))
        if Specimen(method, case).accepts(case.shape):
            return case
    return None


def _close(specimen: Specimen, x: np.ndarray, answer: Callable[[np.ndarray], Arrays], what: object) -> None:
    """The answer is the reference's, element by element, with the same NaN and infinities."""
    results, truths = answer(x), specimen.truth(x)
    assert len(results) == len(truths)
    rtol, atol = (bound[specimen.dtype] * specimen.case.slack for bound in (REFERENCE_RTOL, REFERENCE_ATOL))
    atol += specimen.case.condition * np.finfo(np.float64).eps
    for result, truth in zip(results, truths):
        assert result.shape == truth.shape, f"{what}: shape {result.shape} instead of {truth.shape}"
        if np.issubdtype(result.dtype, np.integer):
            np.testing.assert_array_equal(result, truth, err_msg=str(what))
            continue
        with np.errstate(over="ignore"):
            expected = truth.astype(result.dtype)
        finite = np.isfinite(expected)
        scale = np.abs(truth[finite]).max(initial=0.0)
        np.testing.assert_allclose(
            result.astype(np.float64),
            expected.astype(np.float64),
            rtol=rtol,
            atol=max(atol * scale, 4 * np.finfo(result.dtype).smallest_subnormal),
            equal_nan=True,
            err_msg=f"{specimen.dtype}, {what}",
        )


def _follows_torch(method: Method, case: Case, get: Get, *, form: Form) -> None:
    for dtype in graph_dtypes(method, case):
        specimen = get(method, case, dtype)
        tried = set()
        for shape in specimen.shapes():
            tried.add(shape)
            for regime in ("normal", "ties") if shape != case.shape else stress.REGIMES:
                x = specimen.draw(regime, shape)
                results, peers, truths = specimen.onnx(x, form), specimen.torch(x), specimen.truth(x)
                assert len(results) == len(peers)
                for result, peer, truth in zip(results, peers, truths):
                    judgement = judge(result, peer, truth, factor=ORT_FACTOR)
                    assert judgement.passed, f"{dtype}, {regime}, {shape}: {judgement.reason}"
        assert len(tried) >= 6, f"only {len(tried)} shapes were tried"


def _distinct(shape: tuple[int, ...]) -> torch.Tensor:
    """Positive numbers, all different and far from every kink."""
    count = int(np.prod(shape))
    order = torch.from_numpy(np.random.default_rng(0).permutation(count))
    return (0.5 + 1.5 * order.double() / count).reshape(shape)


def _floating(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _fixed(layer: nn.Module) -> bool:
    """Whether the user has switched the layer's randomness off."""
    return getattr(layer, "inference", None) == "fixed"


def _equal(first: Arrays, second: Arrays) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


class _Host(nn.Module):
    """A network around a pooling layer, of which it keeps the first output."""

    def __init__(self, features: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.pool = pool

    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return _floating(self.pool(self.features(x), *rest))
