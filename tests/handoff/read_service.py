"""Read an InferenceService with the classes of KServe and Kubernetes; runs in KServe's environment."""

import re
import sys

import kserve
import yaml
from kubernetes import client

PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def unknown(value, kind, where):
    """Every field that a class does not have, and every value of another type."""
    inner = re.fullmatch(r"(?:list\[|dict\(str, )(.+)[\])]", kind)
    if inner:
        entries = value.items() if kind.startswith("dict") else enumerate(value)
        return [fault for key, entry in entries for fault in unknown(entry, inner[1], f"{where}.{key}")]
    if kind in PLAIN:
        return [] if isinstance(value, PLAIN[kind]) else [f"{where} is no {kind}: {value!r}"]
    model = getattr(kserve, kind, None) or getattr(client, kind, None)
    if model is None or not isinstance(value, dict):
        return []
    names = {written: name for name, written in model.attribute_map.items()}
    faults = [f"{where}.{key}: {kind} has no such field" for key in value if key not in names]
    for key in value.keys() & names.keys():
        faults += unknown(value[key], model.openapi_types[names[key]], f"{where}.{key}")
    return faults


def main(path):
    with open(path) as file:
        faults = unknown(yaml.safe_load(file), "V1beta1InferenceService", "service")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main(*sys.argv[1:])
