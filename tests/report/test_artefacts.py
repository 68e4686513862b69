"""Any two artefacts are compared: files of other forms, opsets and exporters, in either order; and what is no file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper

import poolexport
from cli.conftest import Run
from poolexport.errors import InputError, ParityError
from poolexport.pipeline._file_standard import FileStandard
from poolexport.report.worst import CELLS, Worst
from poolexport.runtime import patience, session
from report.conftest import Place, bend

SHAPE = ("--input", "1x2x12x11")


@pytest.fixture(scope="session")
def inlined(place: Place) -> Path:
    """The same net in standard operators, without a word of who made it."""
    poolexport.api.inline(place.folder / "good", place.folder / "inlined")
    model = onnx.load(place.folder / "inlined" / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, place.folder / "inlined.onnx")
    return place.folder / "inlined.onnx"


def test_a_file_is_compared_with_a_file(place: Place, inlined: Path, run: Run):
    for words in (("inlined.onnx", "good"), ("good", "inlined.onnx")):
        result = run("verify", *words, "--no-extremes", "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert (found["verdict"], found["truth"], found["weights"]) == ("PASS", "the second file", "")
        assert len({str(check["shapes"]) for check in found["checks"]}) > 10


def test_one_wrong_weight_is_seen(place: Place, run: Run, tmp_path: Path):
    for one, other in (("bent.onnx", "good"), ("good", "bent.onnx")):
        result = run("verify", one, other, "--no-extremes")
        assert result.exit_code == 1
        assert "the file does not compute what the second file computes" in result.stderr
        assert "(the second file itself: " in result.stderr
        assert "--weights" not in result.output
    bend(place.folder / "good" / "model.onnx", tmp_path / "slightly.onnx", 1e-5)
    assert run("verify", tmp_path / "slightly.onnx", "good", "--no-extremes").exit_code == 1


def test_a_report_says_which_file_was_the_standard(place: Place, inlined: Path, run: Run, tmp_path: Path):
    run("verify", "bent.onnx", "inlined.onnx", *SHAPE, "--report", tmp_path / "two", "--no-extremes")
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert (report["standard"]["kind"], report["standard"]["name"]) == ("file", "inlined.onnx")
    assert report["standard"]["sha256"].keys() == {"inlined.onnx"}
    assert report["settings"]["bound"] == "4 times the second file's own error, plus rounding"
    page = (tmp_path / "two" / "report.html").read_text()
    assert "compared with inlined.onnx, another file" in page
    assert "the second file&#39;s own answers" in page


def test_the_model_is_the_standard_wherever_it_stands(run: Run):
    result = run("verify", "net.py:build", "good", "--no-extremes", "--json")
    assert json.loads(result.stdout)["truth"] == "float64"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("net.py:build", "net.py:build"), "are both models of torch; export one of them"),
        (("good", "net.py"), "'net.py' does not name a model; write MODULE:FACTORY"),
        (("good", "nowhere"), "'nowhere' does not name a model; write MODULE:FACTORY"),
        (("good", "nowhere.onnx"), "there is no model at nowhere.onnx"),
        (("good", "good", "--weights", "w.safetensors"), "--weights are for a model of torch, and good is a file"),
        (("inlined.onnx", "inlined.onnx"), "does not say which shapes to try; give --input"),
        (("good", "net.py:other"), "does not compute"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(inlined: Path, run: Run, words: tuple[str, ...], told: str):
    result = run("verify", *words)
    assert result.exit_code == (1 if "compute" in told else 2)
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def tiny(path: Path, inputs: dict[str, list[int | str]], outputs: int = 1, kind: int = TensorProto.FLOAT) -> Path:
    """A file that doubles its first input once for every output, and adds the others to the first."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()]
    nodes = [helper.make_node("Add", [next(iter(inputs))] * 2, ["sum0"])]
    nodes += [helper.make_node("Sub", [f"sum{k}", name], [f"sum{k + 1}"]) for k, name in enumerate(list(inputs)[1:])]
    nodes += [helper.make_node("Identity", [f"sum{len(inputs) - 1}"], [f"y{k}"]) for k in range(outputs)]
    results = [helper.make_tensor_value_info(f"y{k}", kind, None) for k in range(outputs)]
    graph = helper.make_graph(nodes, "tiny", values, results)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_inputs_are_matched_by_name_and_else_by_order(tmp_path: Path):
    ab = tiny(tmp_path / "ab.onnx", {"a": [2, 3], "b": [2, 3]})
    x = (torch.ones(2, 3), torch.ones(2, 3))
    model = onnx.load(ab)
    model.graph.input.insert(0, model.graph.input.pop())
    onnx.save(model, tmp_path / "ba.onnx")
    assert poolexport.verify(tmp_path / "ba.onnx", ab, x).passed
    assert poolexport.verify(tiny(tmp_path / "cd.onnx", {"c": [2, 3], "d": [2, 3]}), ab, x).passed
    # in another order under other names they are taken for each other
    with pytest.raises(ParityError):
        poolexport.verify(tiny(tmp_path / "dc.onnx", {"d": [2, 3], "c": [2, 3]}), tmp_path / "ba.onnx", x)


def test_axes_change_that_are_dynamic_in_both(tmp_path: Path):
    both = tiny(tmp_path / "both.onnx", {"a": ["N", 3, "W"]})
    one = tiny(tmp_path / "one.onnx", {"b": ["batch", 3, 8]})
    for first, second in ((both, one), (one, both)):
        verdict = poolexport.verify(first, second, torch.ones(2, 3, 8))
        assert {check.shapes[0][1:] for check in verdict.checks} == {(3, 8)}
        assert len({check.shapes[0][0] for check in verdict.checks}) > 2
        with pytest.raises(InputError, match="has shape"):
            poolexport.verify(first, second, torch.ones(2, 3, 9))


@pytest.mark.parametrize(
    ("inputs", "outputs", "kind", "told"),
    [
        ({"a": [2, 3], "b": [2, 3]}, 1, TensorProto.FLOAT, "together: the first has 1 inputs (a), the second 2 (a, b)"),
        ({"a": [2, 3]}, 2, TensorProto.FLOAT, "the first has 1 outputs (y0), the second 2 (y0, y1)"),
        ({"a": [2, 3]}, 1, TensorProto.DOUBLE, "input 'a' of the first is tensor(float)"),
        ({"a": [2, 4]}, 1, TensorProto.FLOAT, "'a' of the second tensor(float) of [2, 4]"),
        ({"a": [2, 3, 1]}, 1, TensorProto.FLOAT, "of [2, 3, 1]"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, run: Run, inputs, outputs, kind, told):
    first = tiny(tmp_path / "first.onnx", {"a": [2, 3]})
    second = tiny(tmp_path / "second.onnx", inputs, outputs, kind)
    result = run("verify", first, second)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr


def roots(path: Path, kind: str) -> Path:
    """The root of a variance, the difference of two large numbers, of which few digits are left."""
    text = f"""<ir_version: 9, opset_import: ["": 18]>
    roots (float[N, 2, H, W] x) => (float[N, 2, a, b] y) {{
        axes = Constant<value = int64[2] {{2, 3}}>()
        level = Constant<value = float {{30.0}}>()
        above = Add(x, level)
        s = Cast<to = {kind}>(above)
        square = Mul(s, s)
        first = ReduceMean(square, axes)
        mean = ReduceMean(s, axes)
        second = Mul(mean, mean)
        variance = Sub(first, second)
        sign = Sign(variance)
        size = Abs(variance)
        root = Sqrt(size)
        signed = Mul(sign, root)
        y = Cast<to = {TensorProto.FLOAT}>(signed)
    }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture(scope="module")
def exporters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, torch.Tensor]:
    """One net by somebody who adds up in float64, and by somebody who does not."""
    folder = tmp_path_factory.mktemp("exporters")
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 2, 12, 11), np.float32))
    return roots(folder / "fine.onnx", TensorProto.DOUBLE), roots(folder / "coarse.onnx", TensorProto.FLOAT), x


@pytest.mark.parametrize("seed", range(3))
def test_ill_conditioned_answers_of_two_exporters_are_judged_fairly(
    exporters: tuple[Path, Path, torch.Tensor], seed: int
):
    fine, coarse, x = exporters
    verdict = poolexport.verify(fine, coarse, x, seed=seed)
    assert verdict.passed
    assert verdict.grade == "WITHIN ROUNDING"
    # a bound without regard to conditioning would have refused it
    assert max(judgement.ulps for check in verdict.checks for judgement in check.judgements) > 32
    with pytest.raises(ParityError):
        poolexport.verify(fine, coarse, x, seed=seed, rtol=32 * 2.0**-23)


def test_what_rounding_moves_is_asked_of_the_file_itself(exporters: tuple[Path, Path, torch.Tensor]):
    fine, coarse, x = exporters
    standard = FileStandard(coarse, session(fine), [x], 0)
    asked = standard.asked((x,))
    distances = [np.abs(other[0] - asked.truths[0]).max() for other in asked.others]
    assert all(1e-6 < distance < 1e-2 for distance in distances[1:])
    # every run rounds another way, and the same seed the same way
    assert len(set(distances)) == len(distances)
    again = FileStandard(coarse, session(fine), [x], 0).asked((x,))
    assert all(np.array_equal(one[0], other[0]) for one, other in zip(asked.others, again.others))


def bomb(doublings: int) -> onnx.ModelProto:
    """Functions that call the next one twice: a small file that is a large graph."""
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("b", 1)]
    functions = []
    for k in range(doublings):
        called, domain = ("Neg", "") if k == doublings - 1 else (f"f{k + 1}", "b")
        nodes = [helper.make_node(called, [a], [b], domain=domain) for a, b in ("xy", "yz")]
        functions.append(helper.make_function("b", f"f{k}", ["x"], ["z"], nodes, imports))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="b")],
        "g",
        [value("x", TensorProto.FLOAT, [1, 2, 12, 11])],
        [value("y", TensorProto.FLOAT, [1, 2, 12, 11])],
    )
    return helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=10)


def hostile(folder: Path, good: Path, kind: str) -> Path:
    """A file that is no model, or one whose weights are where they should not be."""
    target = folder / "m.onnx"
    content = good.read_bytes()
    if kind == "empty":
        target.write_bytes(b"")
    elif kind == "truncated":
        target.write_bytes(content[: len(content) // 2])
    elif kind == "html":
        target.write_text("<!doctype html><title>404</title>")
    elif kind == "noise":
        target.write_bytes(np.random.default_rng(0).bytes(4096))
    elif kind == "bomb":
        target.write_bytes(bomb(31).SerializeToString())
    else:
        model = onnx.load(good)
        onnx.save(model, target, save_as_external_data=True, location="m.data", size_threshold=0)
        data = folder / "m.data"
        (folder.parent / "outside.data").write_bytes(data.read_bytes())
        if kind == "missing data":
            data.unlink()
        elif kind == "short data":
            data.write_bytes(data.read_bytes()[:-40])
        elif kind == "link":
            data.unlink()
            data.symlink_to(folder.parent / "outside.data")
        else:
            place = {"above": "../outside.data", "absolute": str(folder.parent / "outside.data")}[kind]
            model = onnx.load(target, load_external_data=False)
            for weight in model.graph.initializer:
                for entry in weight.external_data:
                    if entry.key == "location":
                        entry.value = place
            target.write_bytes(model.SerializeToString())
    return target


HOSTILE = {
    "empty": "is not an ONNX model",
    "truncated": "is not an ONNX model",
    "html": "is not an ONNX model",
    "noise": "is not an ONNX model",
    "bomb": "has 2,147,483,648 nodes once its functions are written out",
    "missing data": "its weights are in m.data, which is missing",
    "short data": "its weights are in m.data, which has",
    "link": "outside of its folder, where they are not read",
    "above": "its weights are said to be in ../outside.data, outside of its folder",
    "absolute": "outside of its folder, where they are not read",
}


@pytest.mark.parametrize(("kind", "told"), HOSTILE.items())
@pytest.mark.parametrize("order", ["first", "second"])
def test_bad_files_are_one_sentence(place: Place, run: Run, tmp_path: Path, kind: str, told: str, order: str):
    folder = tmp_path / "in"
    folder.mkdir()
    bad = hostile(folder, place.folder / "good" / "model.onnx", kind)
    words = (bad, "good") if order == "first" else ("good", bad)
    result = run("verify", *words, "--report", tmp_path / "r.json")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert told in result.stderr
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "REFUSED"


ENDLESS = """
<ir_version: 8, opset_import: ["" : 18]>
g (float[1,2,12,11] x) => (float[1,2,12,11] y) {
  always = Constant <value = bool {1}> ()
  y = Loop ("", always, x) <body = b (int64 i, bool again, float[1,2,12,11] a) => (bool on, float[1,2,12,11] n) {
    on = Identity (again)
    n = Neg (a)
  }>
}
"""


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_loop_without_end_is_ended(place: Place, run: Run, tmp_path: Path, monkeypatch, order: str):
    monkeypatch.setattr(patience, "PATIENCE", 1)
    onnx.save(onnx.parser.parse_model(ENDLESS), tmp_path / "endless.onnx")
    good = tmp_path / "good.onnx"
    onnx.save(bomb(2), good)
    words = (tmp_path / "endless.onnx", good) if order == "first" else (good, tmp_path / "endless.onnx")
    result = run("verify", *words, *SHAPE)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert "gave no answer within 1 seconds" in result.stderr


def test_bad_files_are_refused_in_python_too(place: Place, tmp_path: Path):
    (tmp_path / "in").mkdir()
    bad = hostile(tmp_path / "in", place.folder / "good" / "model.onnx", "above")
    with pytest.raises(InputError, match="outside of its folder"):
        poolexport.verify(place.folder / "good", bad)


def test_the_worst_case_is_kept_in_bounded_memory(tmp_path: Path):
    file = tiny(tmp_path / "wide.onnx", {"a": [1, 2, 300, 200]})
    worst = Worst()
    model = onnx.load(file)
    model.graph.node[0].op_type = "Mul"
    onnx.save(model, tmp_path / "wrong.onnx")
    with pytest.raises(ParityError):
        poolexport.verify(tmp_path / "wrong.onnx", file, torch.ones(1, 2, 300, 200), watch=worst)
    case = worst.case
    assert case is not None
    assert {part.values.shape for part in (case.given, case.file, case.truth)} == {(CELLS, CELLS)}
    at = tuple(i - o for i, o in zip(case.index[-2:], case.file.origin))
    assert case.file.values[at] == case.got
    assert case.truth.values[at] == case.wanted
    assert sum(case.histogram) + case.exact + case.strays == 2 * 300 * 200


def test_random_outputs_of_two_files_are_left_out_and_said_to_be(tmp_path: Path, run: Run):
    file = tiny(tmp_path / "drawn.onnx", {"a": [2, 3]}, 2)
    model = onnx.load(file)
    model.graph.node[-1].op_type = "RandomNormalLike"
    onnx.save(model, file)
    result = run("verify", file, file, "--report", tmp_path / "drawn")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "drawn" / "report.json").read_text())
    assert (report["verdict"], report["random_outputs"], report["worst"]) == ("UNVERIFIED", ["y1"], None)
    assert [output["name"] for output in report["outputs"]] == ["y0"]
    assert "only shapes and types were compared" in (tmp_path / "drawn" / "report.html").read_text()
