"""Whether a document is a report: ``schema.json`` applied, as far as that schema goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PLACE = Path(__file__).with_name("schema.json")
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a report."""
    return json.loads(PLACE.read_text(encoding="utf-8"))


def faults(value: Any, rule: Any = None, place: str = "") -> Iterator[str]:
    """Where a document is no report, and why.

    Example:
        >>> next(faults([]))
        'it is a list instead of object'
        >>> next(faults("good", {"enum": ["PASS"]}, ".verdict"))
        ".verdict is 'good' instead of 'PASS'"
    """
    rule = schema() if rule is None else rule
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].rpartition("/")[2]]
    here = place or "it"
    if "oneOf" in rule:
        tried = [list(faults(value, option, place)) for option in rule["oneOf"]]
        if all(tried):
            # what is wrong within the option of the same kind says more than that it is not another kind
            yield min(tried, key=lambda found: found[0].startswith(f"{here} is a "))[0]
        return
    wanted = [rule["const"]] if "const" in rule else rule.get("enum")
    if wanted is not None and value not in wanted:
        yield f"{here} is {value!r} instead of {' or '.join(map(repr, wanted))}"
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{here} is a {type(value).__name__} instead of {' or '.join(kinds)}"
        return
    if isinstance(value, dict):
        known, others = rule.get("properties", {}), rule.get("additionalProperties", True)
        for name in rule.get("required", ()):
            if name not in value:
                yield f"{place}.{name} is missing"
        for name, entry in value.items():
            if name in known:
                yield from faults(entry, known[name], f"{place}.{name}")
            elif others is False:
                yield f"{place}.{name} is not known"
            elif isinstance(others, dict):
                yield from faults(entry, others, f"{place}.{name}")
    if isinstance(value, list) and "items" in rule:
        for number, entry in enumerate(value):
            yield from faults(entry, rule["items"], f"{place}[{number}]")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
