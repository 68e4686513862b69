"""The demonstration shows what is true: equal predictions where they are equal, a failure where they are not."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import numpy_helper
from PIL import Image

import poolexport
from poolexport.bundle import Bundle
from poolexport.cli import main as program
from poolexport.errors import InputError, MissingExtraError, OutputError, ParityError
from poolexport.pipeline.verify import Verdict
from poolexport_models import demo, load, recipe, strips
from poolexport_models.data import digits


@dataclass(frozen=True)
class Shown:
    """A whole run: where it wrote, what it returned, the progress it told, and what it did to the random state."""

    folder: Path
    rows: list[demo.Row]
    told: list[tuple[str, int, int]]
    random_state_kept: bool

    @property
    def page(self) -> str:
        return (self.folder / demo.PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """One method between convolutions, random in training, and one at the head."""
    folder, told = tmp_path_factory.mktemp("demo"), []
    before = torch.get_rng_state()
    rows = demo.main(folder, only=["mixed", "global_average"], progress=lambda *step: told.append(step))
    return Shown(folder, rows, told, torch.equal(torch.get_rng_state(), before))


@pytest.fixture
def unillustrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without their pictures, which cost an export more."""
    monkeypatch.setattr(demo, "strips_of", lambda *_: ())


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without forms, for what does not depend on them."""
    monkeypatch.setattr(demo, "FORMS", {})


def invoke(*args: str) -> Result:
    return CliRunner().invoke(program, ["demo", *args])


def test_every_prediction_is_equal_in_both_forms(shown: Shown) -> None:
    for row in shown.rows:
        assert row.passed, row.failures
        assert row.images == len(digits().test_labels) == 450
        assert [form.name for form in row.forms] == ["function", "inlined"]
        for form in row.forms:
            assert (form.verdict, form.differing) == ("PASS", 0)
            assert form.accuracy == row.accuracy >= 0.95
            assert form.checks > 20
            assert 0 <= (form.largest or 0) < 1e-3


def test_the_files_have_dynamic_n_h_and_w(shown: Shown) -> None:
    for row in shown.rows:
        for form in row.forms:
            session = poolexport.session(shown.folder / "models" / row.method / form.name)
            assert session.get_inputs()[0].shape == ["N", 1, "H", "W"]


def test_only_the_function_form_holds_functions(shown: Shown) -> None:
    files = {name: onnx.load(shown.folder / "models" / "mixed" / name / "model.onnx") for name in demo.FORMS}
    assert files["function"].functions
    assert not files["inlined"].functions


def test_the_rows_are_written_down(shown: Shown) -> None:
    plain = json.loads(json.dumps([row.to_dict() for row in shown.rows]))
    assert json.loads((shown.folder / demo.ROWS).read_text()) == plain


def test_the_page_needs_nothing_else(shown: Shown) -> None:
    text = shown.page
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    inside = [source for source in sources if source.startswith(("data:image/png;base64,", "#"))]
    assert set(sources) - set(inside) == set(re.findall(r'<a href="(https://[^"]*)"', text))
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_shows_every_picture(shown: Shown) -> None:
    text = shown.page
    titles = re.findall(r"<figcaption>([^<]*)<span>", text)
    for title, least in {
        "torch": 4,
        "onnxruntime": 4,
        "difference": 4,
        "digit": 2,
        "photograph": 3,
        "pass 1": 1,
    }.items():
        assert titles.count(title) >= least, title
    for uri in set(re.findall(r'data:image/png;base64,([^"]*)', text)):
        picture = Image.open(io.BytesIO(base64.b64decode(uri)))
        picture.verify()
        assert min(picture.size) >= 1
    known = set(re.findall(r'<symbol id="([^"]*)"', text))
    assert set(re.findall(r'<use href="#([^"]*)"', text)) == known != set()


def test_the_page_says_what_the_catalogue_says(shown: Shown) -> None:
    text = shown.page
    for name in ("mixed", "global_average"):
        method = poolexport.methods()[name]
        for fact in (method.summary, method.training, method.inference, method.paper.title):
            assert fact in text


def test_the_page_says_how_the_photograph_was_pooled(shown: Shown) -> None:
    _, mixed = shown.page.split('<section id="mixed">')
    layer = load("mixed").pool1
    drew = [f"max {int(a)} times and average {int(b)} times" for a, b in zip(layer.max_count, layer.average_count)]
    assert any(f"For this channel training drew {words}." in mixed for words in drew)
    sheet, _ = shown.page.split("Method by method")
    assert any(f"<span>pooled 3 times; training drew {words}</span>" in sheet for words in drew)
    assert "<span>one colour, by a new layer for three channels</span>" in sheet


def test_the_page_says_a_year_once(shown: Shown) -> None:
    assert "Mixed Pooling for Convolutional Neural Networks,\nRSKT 2014</dd>" in shown.page
    assert "Network In Network, 2013,\n" in shown.page


def test_a_phone_shows_the_accuracy(shown: Shown) -> None:
    assert "<th>accuracy in<br>onnxruntime</th>" in shown.page


def test_answers_beyond_the_range_of_a_photograph_are_told() -> None:
    assert strips._rescaled(0.0, 1.0) == ""
    assert "black stands for 0.00 and white for 7.34" in strips._rescaled(0.0, 7.34)
    assert strips._clipped(np.array([0.1, -0.76])) == ", full colour from 0.30"
    assert strips._clipped(np.array([0.1, -0.3])) == ""


def test_the_same_pictures_come_out_again(shown: Shown, tmp_path: Path) -> None:
    drawn = demo.strips_of(recipe("mixed"), load("mixed"), tmp_path)
    assert len(drawn) == 3
    assert all(picture.uri in shown.page for strip in drawn for picture in strip.pictures)


def test_progress_counts_up_to_the_end(shown: Shown) -> None:
    assert [done for _, done, _ in shown.told] == list(range(9))
    assert {total for *_, total in shown.told} == {8}
    assert shown.told[0][0] == "mixed: testing in torch"


def test_the_random_state_is_left_alone(shown: Shown) -> None:
    assert shown.random_state_kept


class Lying:
    """A session that answers another class for one of the images."""

    def __init__(self, path: Path) -> None:
        self.honest = honest_session(path)

    def get_inputs(self) -> Any:
        return self.honest.get_inputs()

    def run(self, names: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        (answers,) = self.honest.run(names, feed)
        answers[17] = -answers[17]
        return [answers]


honest_session: Callable[..., Any] = poolexport.session
honest_export: Callable[..., Bundle] = poolexport.export


def test_one_wrong_class_fails_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unillustrated: None) -> None:
    monkeypatch.setattr(poolexport, "session", Lying)
    monkeypatch.setattr(demo, "FORMS", {"inlined": True})
    result = invoke("--output", str(tmp_path), "--only", "max")
    assert result.exit_code == 1
    assert "1 of 450 predictions differ from torch" in result.output
    assert "0 of 1 methods" in result.output
    row = json.loads((tmp_path / demo.ROWS).read_text())[0]
    assert not row["passed"]
    assert {form["differing"] for form in row["forms"]} == {1}
    page = (tmp_path / demo.PAGE).read_text(encoding="utf-8")
    assert 'class="result failed"' in page
    assert "max, inlined form: 1 of 450 predictions differ from torch" in page


def test_weights_changed_after_the_export_fail_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unillustrated: None
) -> None:
    def export(*args: Any, portable: bool, **options: Any) -> Bundle:
        bundle = honest_export(*args, portable=portable, **options)
        if portable:
            model = onnx.load(bundle.model)
            (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
            bias.CopyFrom(numpy_helper.from_array(10 * np.arange(10, dtype=np.float32), bias.name))
            onnx.save(model, bundle.model)
        return bundle

    monkeypatch.setattr(poolexport, "export", export)
    (row,) = demo.main(tmp_path, only=["max"])
    function, inlined = row.forms
    assert function.passed
    assert not inlined.passed
    assert inlined.differing is not None
    assert inlined.differing > 100
    assert not row.passed


def planted(monkeypatch: pytest.MonkeyPatch, fault: Callable[[onnx.ModelProto], None], *, where: str) -> None:
    """Change the files of that name, after they were proven right and written."""

    def export(model: Any, args: Any, path: Path, **options: Any) -> Bundle:
        bundle = honest_export(model, args, path, **options)
        if path.name == where:
            content = onnx.load(bundle.model)
            fault(content)
            onnx.save(content, bundle.model)
        return bundle

    monkeypatch.setattr(poolexport, "export", export)


def shift_every_answer(model: onnx.ModelProto) -> None:
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))


def double_every_answer(model: onnx.ModelProto) -> None:
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["single" if output == name else output for output in node.output]
    model.graph.node.append(onnx.helper.make_node("Add", ["single", "single"], [name]))


def repeat_every_answer(model: onnx.ModelProto) -> None:
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["single" if output == name else output for output in node.output]
    model.graph.node.append(onnx.helper.make_node("Concat", ["single", "single"], [name], axis=3))
    model.graph.output[0].type.tensor_type.ClearField("shape")


def test_wrong_numbers_with_the_right_classes_fail_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unillustrated: None
) -> None:
    planted(monkeypatch, shift_every_answer, where="inlined")
    result = invoke("--output", str(tmp_path), "--only", "max")
    assert result.exit_code == 1
    function, inlined = json.loads((tmp_path / demo.ROWS).read_text())[0]["forms"]
    assert function["reason"] == ""
    assert inlined["differing"] == 0
    assert re.fullmatch(
        r"the answers to the test digits: error 0\.5 exceeds .* \(torch itself: .*\)", inlined["reason"]
    )
    assert "FAIL max, inlined form: the answers to the test digits" in " ".join(result.output.split())


@pytest.mark.parametrize("method", ["max", "global_average"])
def test_pictures_of_wrong_numbers_fail_the_row(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unexported: None
) -> None:
    planted(monkeypatch, double_every_answer, where="layer.onnx")
    result = invoke("--output", str(tmp_path), "--only", method)
    assert result.exit_code == 1
    (row,) = json.loads((tmp_path / demo.ROWS).read_text())
    drawn = {"max": ["a feature map", "a photograph"], "global_average": ["all feature maps"]}[method]
    assert re.fullmatch(
        "the layer by itself: " + "; ".join(f"{title}: error .* exceeds .*" for title in drawn), row["reason"]
    )
    assert row["reason"].split(" (")[0] in (tmp_path / demo.PAGE).read_text(encoding="utf-8")


def test_a_wrong_colour_fails_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unexported: None) -> None:
    planted(monkeypatch, double_every_answer, where="colour.onnx")
    (row,) = demo.main(tmp_path, only=["global_average"])
    assert row.reason.startswith("the layer by itself: a photograph: error")


def test_a_picture_of_another_shape_fails_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unexported: None
) -> None:
    planted(monkeypatch, repeat_every_answer, where="layer.onnx")
    (row,) = demo.main(tmp_path, only=["max"])
    assert re.fullmatch(r"the layer by itself: shape \(.*\) instead of \(.*\)", row.reason)


def test_a_parity_error_is_a_row_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unillustrated: None
) -> None:
    def export(*args: Any, portable: bool, **options: Any) -> Bundle:
        if portable:
            raise ParityError("3 of 39 checks failed", Verdict((), (), "float64"))
        return honest_export(*args, portable=portable, **options)

    monkeypatch.setattr(poolexport, "export", export)
    result = invoke("--output", str(tmp_path), "--only", "max", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["passed"] is False
    function, inlined = document["methods"][0]["forms"]
    assert (function["verdict"], inlined["verdict"]) == ("PASS", "FAIL")
    assert inlined["reason"] == "3 of 39 checks failed"
    assert inlined["accuracy"] is None


def test_a_layer_that_fails_by_itself_fails_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unexported: None
) -> None:
    def fail(*_: Any) -> None:
        raise ParityError("the layer differs", Verdict((), (), "float64"))

    monkeypatch.setattr(demo, "strips_of", fail)
    (row,) = demo.main(tmp_path, only=["max"])
    assert not row.passed
    assert row.failures == ["max: the layer by itself: the layer differs"]


def test_a_verdict_other_than_pass_fails_the_row() -> None:
    assert not demo.Form("function", "UNVERIFIED", differing=0).passed
    assert not demo.Form("function", "PASS", differing=None).passed
    assert demo.Form("function", "PASS", differing=0).passed


def test_the_command_prints_a_line_per_method(
    tmp_path: Path, unillustrated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # on a slow machine the seconds take a column more than 80 leave
    result = invoke("--output", str(tmp_path / "new" / "folder"), "--only", "max")
    assert result.exit_code == 0, result.output
    assert re.search(r"max +compact +99\.\d% +99\.\d% +0 .* PASS +PASS", result.output)
    assert "1 of 1 methods" in result.output
    assert (tmp_path / "new" / "folder" / demo.PAGE).is_file()


@pytest.mark.parametrize("name", [demo.PAGE, demo.ROWS, "models/max/layer.onnx", "models/max"])
def test_what_is_there_is_replaced_only_when_told_to(
    name: str, tmp_path: Path, unillustrated: None, unexported: None
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    result = invoke("--output", str(tmp_path), "--only", "max")
    assert result.exit_code == 2
    assert "--force" in result.output
    assert "models/max" in result.output if name.startswith("models") else name in result.output
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    assert file.read_text() == "mine"


def test_an_earlier_page_is_replaced_when_told_to(tmp_path: Path, unillustrated: None, unexported: None) -> None:
    (tmp_path / demo.PAGE).write_text("mine")
    assert invoke("--output", str(tmp_path), "--only", "max", "--force").exit_code == 0
    assert "mine" not in (tmp_path / demo.PAGE).read_text(encoding="utf-8")


def test_files_of_other_methods_are_no_obstacle(tmp_path: Path, unillustrated: None, unexported: None) -> None:
    (tmp_path / "models" / "lp").mkdir(parents=True)
    (tmp_path / "models" / "lp" / "layer.onnx").write_text("mine")
    (tmp_path / "models" / "max").mkdir()
    assert invoke("--output", str(tmp_path), "--only", "max").exit_code == 0
    assert (tmp_path / "models" / "lp" / "layer.onnx").read_text() == "mine"


def test_a_method_that_is_named_twice_is_shown_once(tmp_path: Path, unillustrated: None, unexported: None) -> None:
    rows = demo.main(tmp_path, only=["max", "lp", "max"])
    assert [row.method for row in rows] == ["max", "lp"]


#: No file may grow beyond so many bytes; then a demonstration without pictures.
LIMITED = """
import resource, sys
from poolexport.cli import main
from poolexport_models import demo
demo.strips_of = lambda *_: ()
demo.FORMS = {name: demo.FORMS[name] for name in sys.argv[2].split()}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
main(["demo", "--only", "max", "--output", sys.argv[3]])
"""


@pytest.mark.parametrize(("limit", "forms", "named"), [(3000, "", demo.PAGE), (3000, "inlined", "models/max/inlined")])
def test_a_full_disk_is_told_in_a_sentence(limit: int, forms: str, named: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(limit), forms, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert f"{tmp_path / named} could not be written: File too large" in " ".join(result.stderr.split())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_pictures_that_cannot_be_written_are_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unexported: None
) -> None:
    def fail(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(demo, "strips_of", fail)
    result = invoke("--output", str(tmp_path), "--only", "max")
    assert result.exit_code == 2
    assert "the disk is full" in result.output


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        demo.main(tmp_path / "file" / "folder", only=["max"])


def test_an_unknown_method_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nopool"):
        demo.main(tmp_path / "new", only=["max", "nopool"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "jinja2"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"poolexport\[demo\]"):
        demo.main(tmp_path / "new", only=["max"])
    assert not (tmp_path / "new").exists()
