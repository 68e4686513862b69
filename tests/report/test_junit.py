"""JUnit XML, as CI systems read it."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as xml

import pytest

from cli.conftest import Run
from poolexport.report.junit import junit
from report.conftest import Place


def suites(place: Place, name: str) -> xml.Element:
    return xml.parse(place.folder / f"{name}-reports" / "report.xml").getroot()


@pytest.mark.parametrize("name", ["good", "bent"])
def test_every_check_is_a_case_and_every_failure_one(place: Place, name: str):
    root, report = suites(place, name), place.report(name)
    assert root.tag == "testsuites"
    own = [case for case in root.iter("testcase") if case.get("classname") != "against"]
    assert [case.get("name") for case in sorted(own, key=lambda c: c.get("name"))] == sorted(
        check["name"] for check in report["checks"]
    )
    failures = {case.get("name") for case in own if case.find("failure") is not None}
    assert failures == {check["name"] for check in report["checks"] if check["counts"] and not check["passed"]}
    for kind, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        assert int(root.get(kind)) == sum(int(suite.get(kind)) for suite in root) == len(list(root.iter(tag)))


def test_failures_say_why(place: Place):
    [failure] = [
        case.find("failure")
        for case in suites(place, "bent").iter("testcase")
        if case.get("name") == "normal at 1x2x12x11"
    ]
    assert "exceeds" in failure.get("message")
    assert failure.get("type") in ("DEGRADED", "WRONG")


def test_regressions_are_a_suite(place: Place):
    [suite] = [suite for suite in suites(place, "bent") if suite.get("name") == "against an earlier report"]
    assert int(suite.get("failures")) == len(place.report("bent")["against"]["regressions"])


def test_properties_tell_seed_bounds_and_versions(place: Place):
    properties = {entry.get("name"): entry.get("value") for entry in suites(place, "good")[0].iter("property")}
    assert properties["seed"] == "0"
    assert properties["bound"] == "4 times torch's own error, plus rounding"
    assert {"onnxruntime", "torch", "sha256 model.onnx"} <= properties.keys()


def test_what_is_refused_is_an_error(good: dict[str, Any]):
    good |= {"verdict": "REFUSED", "checks": [], "reason": "it is <no> \x1b[31mmodel\x00"}
    root = xml.fromstring(junit(good))
    [error] = root.iter("error")
    assert error.get("message") == "it is <no> \N{REPLACEMENT CHARACTER}[31mmodel\N{REPLACEMENT CHARACTER}"
    assert (root.get("errors"), root.get("failures")) == ("1", "0")


def test_no_name_breaks_the_document(good: dict[str, Any], run: Run):
    good["checks"][0]["name"] = '"\x01]]>&<\ud800'
    assert len(list(xml.fromstring(junit(good)).iter("testcase"))) == len(good["checks"])
