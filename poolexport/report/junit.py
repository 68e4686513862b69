"""A report as JUnit XML, which CI systems show: a suite per group of checks, a case per check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as xml

from poolexport.report.matrix import groups
from poolexport.tolerance import worst

#: Characters that no XML document may hold.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(document: Mapping[str, Any]) -> str:
    """The XML document."""
    root = xml.Element("testsuites", name=_clean(f"poolexport verify {document['subject']['path']}"))
    for title, checks in groups(document["checks"]).items():
        suite = _suite(root, title, document)
        for check in checks:
            case = _case(suite, check["name"], title)
            reasons = "; ".join(output["reason"] for output in check["outputs"] if output["reason"])
            if not check["passed"] and check["counts"]:
                failure = xml.SubElement(case, "failure", message=_clean(reasons), type=_grade(check))
                failure.text = _clean(f"{check['name']}: {reasons}")
            elif not check["passed"]:
                xml.SubElement(case, "skipped", message=_clean(f"differs, and does not count: {reasons}"))
    if document["skipped"]:
        suite = _suite(root, "refused by the standard itself", document)
        for number, reason in enumerate(document["skipped"], 1):
            xml.SubElement(_case(suite, f"input {number}", suite.get("name", "")), "skipped", message=_clean(reason))
    for title, names, reason in (
        ("left out, because the time was over", document["left_out"], "the time was over before it was made"),
        ("not tried", document["untried"], "the runtime lacks what the file needs"),
    ):
        suite = _suite(root, title, document) if names else root
        for name in names:
            xml.SubElement(_case(suite, name, title), "skipped", message=reason)
    if document["verdict"] == "REFUSED" or not document["checks"]:
        suite = _suite(root, "verification", document)
        case = _case(suite, "verify", "verification")
        xml.SubElement(case, "error", message=_clean(document["reason"]), type="REFUSED").text = _clean(
            document["reason"]
        )
    if document["against"]:
        suite = _suite(root, "against an earlier report", document)
        for entry in document["against"]["regressions"]:
            case = _case(suite, f"{entry['kind']}: {entry['check']}", "against")
            xml.SubElement(case, "failure", message=_clean(entry["told"]), type=_clean(entry["kind"]))
        if not document["against"]["regressions"]:
            _case(suite, "no regression", "against")
    suites = list(root)
    for suite in suites:
        counts = {kind: len(suite.findall(f"testcase/{tag}")) for kind, tag in TAGS.items()}
        for kind, count in {"tests": len(suite.findall("testcase")), **counts}.items():
            suite.set(kind, str(count))
    for kind in ("tests", "failures", "errors"):
        root.set(kind, str(sum(int(suite.get(kind, "0")) for suite in suites)))
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


TAGS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def _suite(root: xml.Element, title: str, document: Mapping[str, Any]) -> xml.Element:
    suite = xml.SubElement(root, "testsuite", name=_clean(title), timestamp=document["environment"]["date"][:19])
    properties = xml.SubElement(suite, "properties")
    for name, value in _facts(document).items():
        xml.SubElement(properties, "property", name=_clean(name), value=_clean(str(value)))
    return suite


def _facts(document: Mapping[str, Any]) -> dict[str, Any]:
    settings = document["settings"]
    facts = {name: document[name] for name in ("verdict", "grade", "summary", "command")}
    facts |= {name: settings[name] for name in ("seed", "bound", "truth")}
    facts |= {f"sha256 {name}": digest for name, digest in document["subject"]["sha256"].items()}
    return facts | document["environment"]["versions"]


def _case(suite: xml.Element, name: str, title: str) -> xml.Element:
    return xml.SubElement(suite, "testcase", name=_clean(name), classname=_clean(title.replace(".", " ")))


def _grade(check: Mapping[str, Any]) -> str:
    return worst(output["grade"] for output in check["outputs"])


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
