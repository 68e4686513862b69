"""What a report says, and that it is what the schema promises."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli.conftest import Run, working_in
from poolexport.cli import _model
from poolexport.proof.locate import locate
from poolexport.report.data import culprits_of
from poolexport.report.plain import plain
from poolexport.report.schema import faults, schema
from poolexport.stress import NOT_NUMBERS
from report.conftest import Place

#: What ``faults`` understands of JSON Schema, and words for people.
KEYWORDS = {"type", "const", "enum", "properties", "required", "additionalProperties", "items", "oneOf", "$ref"}
WORDS = {"$schema", "$id", "$defs", "title", "description"}


@pytest.mark.parametrize("name", ["good", "bent"])
def test_reports_are_what_the_schema_says(place: Place, name: str):
    report = place.report(name)
    assert list(faults(report)) == []
    try:
        import jsonschema
    except ImportError:
        return
    jsonschema.Draft202012Validator(schema()).validate(report)


def test_the_schema_uses_nothing_that_is_not_checked():
    def rules(rule: Any):
        yield rule
        inner = [*rule.get("properties", {}).values(), *rule.get("$defs", {}).values(), *rule.get("oneOf", ())]
        inner += [rule[key] for key in ("items", "additionalProperties") if isinstance(rule.get(key), dict)]
        for each in inner:
            yield from rules(each)

    assert all(rule.keys() <= KEYWORDS | WORDS for rule in rules(schema()))


#: Fields that reports of version 1 have not always had.
LATER = {"left_out", "untried", "planned", "runtimes", "budget"}


def test_a_field_that_is_missing_is_found_wherever_it_is(good: dict[str, Any]):
    for path in ([], ["settings"], ["checks", 3], ["checks", 3, "outputs", 0], ["worst", "histogram"], ["environment"]):
        for name in _at(good, path).keys() - LATER:
            value = _at(good, path).pop(name)
            found = list(faults(good))
            assert found, f"{path} without {name}"
            assert f"{name} is missing" in found[0]
            _at(good, path)[name] = value
    assert list(faults(good)) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["verdict"], "FINE", ".verdict is 'FINE' instead of 'PASS' or"),
        (["checks", 0, "passed"], 1, ".checks[0].passed is a int instead of boolean"),
        (["checks", 0, "outputs", 0, "error"], "0", ".checks[0].outputs[0].error is a str instead of number or null"),
        (["counts", "checks"], 1.5, ".counts.checks is a float instead of integer"),
        (["worst"], {}, ".worst.check is missing"),
        (["more"], 1, ".more is not known"),
    ],
)
def test_a_field_of_another_kind_is_found(good: dict[str, Any], path: list[Any], value: Any, told: str):
    _at(good, path[:-1])[path[-1]] = value
    assert next(faults(good)).startswith(told)


def _at(value: Any, path: list[Any]) -> Any:
    for step in path:
        value = value[step]
    return value


def test_a_report_of_a_right_file(place: Place):
    report = place.report("good")
    assert (report["verdict"], report["grade"], report["reason"]) == ("PASS", "WITHIN ROUNDING", "")
    assert report["summary"].startswith("at most ")
    assert report["command"] == "poolexport verify good net.py:build --report good-reports"
    digest = hashlib.sha256((place.folder / "good" / "model.onnx").read_bytes()).hexdigest()
    assert report["subject"]["sha256"]["model.onnx"] == digest
    assert report["standard"] == {"kind": "model", "name": "net.py:build", "weights": "", "sha256": {}}
    assert report["settings"]["bound"] == "4 times torch's own error, plus rounding"
    assert not report["settings"]["bounds_given"]
    assert {check["values"] for check in report["checks"] if not check["counts"]} == NOT_NUMBERS
    assert report["counts"]["checks"] == len(report["checks"]) == len({check["name"] for check in report["checks"]})
    assert 0 < report["measures"]["share"] <= 1
    [output] = report["outputs"]
    assert (output["name"], output["failed"]) == ("output", 0)
    assert report["environment"]["versions"].keys() >= {"python", "torch", "onnxruntime", "poolexport"}
    assert (report["culprits"], report["witness"], report["against"]) == ([], None, None)


def test_a_report_of_a_wrong_file_shows_where_it_is_wrong(place: Place):
    report = place.report("bent")
    assert report["verdict"] == "FAIL"
    assert "the file does not compute what the model computes" in report["reason"]
    assert report["counts"]["failed"] == sum(not c["passed"] for c in report["checks"] if c["counts"]) > 10
    worst = report["worst"]
    # one channel of three is wrong
    assert worst["index"][1] == 1
    assert abs(worst["file"] - worst["truth"]) == pytest.approx(worst["error"], rel=1e-3)
    assert worst["error"] > worst["bound"]
    histogram = worst["histogram"]
    beyond = sum(n for edge, n in zip(histogram["edges"], histogram["counts"]) if edge > 0.999)
    counted = sum(histogram["counts"]) + histogram["exact"] + histogram["strays"]
    assert 0 < beyond <= counted / 3


def test_bounds_of_the_user_are_recorded(place: Place, run: Run):
    few = ("--no-extremes", "--rtol", "0.01", "--seed", "5", "--force")
    assert run("verify", "bent.onnx", "net.py:build", "--report", "given.json", *few).exit_code == 0
    settings = json.loads((place.folder / "given.json").read_text())["settings"]
    assert (settings["rtol"], settings["atol"], settings["seed"], settings["extremes"]) == (0.01, None, 5, False)
    assert settings["bounds_given"]
    assert settings["bound"] == "atol 0 + rtol 0.01 times the scale"


def test_what_is_refused_has_a_report_too(place: Place, run: Run):
    (place.folder / "page.onnx").write_text("<!doctype html><p>not found")
    result = run("verify", "page.onnx", "net.py:build", "--report", "refused")
    assert result.exit_code == 2
    report = json.loads((place.folder / "refused" / "report.json").read_text())
    assert list(faults(report)) == []
    assert (report["verdict"], report["grade"], report["checks"]) == ("REFUSED", "REFUSED", [])
    assert "page.onnx is not an ONNX model" in report["reason"]
    assert report["subject"]["sha256"].keys() == {"page.onnx"}
    assert "REFUSED" in (place.folder / "refused" / "report.html").read_text()


def test_layers_that_introduce_error_have_their_place(place: Place, good: dict[str, Any]):
    with working_in(place.folder):
        model = _model.load("net.py:build", None, torch.float32).model
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, 12, 11), np.float32))
        good["culprits"] = plain(culprits_of(locate("bent.onnx", model, [x])))
    assert list(faults(good)) == []
    [layer] = good["culprits"]
    assert (layer["path"], layer["operator"]) == ("0", "Conv")
    assert layer["created"] > layer["allowed"] > 0


def test_the_page_about_reports_names_every_field():
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    rules = [schema(), schema()["$defs"]["judgement"], schema()["properties"]["measures"]]
    assert all(f"`{name}`" in page for rule in rules for name in rule["properties"])
    images = re.findall(r"\]\((images/.*?)\)", page)
    sizes = [(Path(__file__).parents[2] / "docs" / image).stat().st_size for image in images]
    assert len(sizes) == 4
    assert max(sizes) < 150_000
