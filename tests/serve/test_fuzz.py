"""Whatever is sent is answered or refused as the server's document says; ``make soak`` sends more of it."""

from __future__ import annotations

import json

import pytest

from serve import fuzz
from serve.conftest import serving
from serve.requests import X
from serve.test_http import good


@pytest.fixture(scope="module")
def plain(bundles, tmp_path_factory):
    """A server whose models no request unloads."""
    with serving(bundles / "mean", bundles / "soft", "--max-body", "1", cwd=tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.mark.parametrize(
    ("decode", "seeds", "count"),
    [(fuzz.over_http, fuzz.http_seeds(), 1_000_000), (fuzz.over_grpc, fuzz.grpc_seeds(), 100_000)],
    ids=["http", "grpc"],
)
def test_the_decoders_take_or_refuse_whatever_bytes_there_are(decode, seeds, count):
    found = fuzz.decoded(decode, seeds, count, seed=6)
    assert found.total() == count
    # both happen often enough for this to mean something
    assert found["taken"] > count / 100
    assert found["refused"] > count / 4


def test_every_answer_is_one_that_the_document_declares(plain):
    statuses = fuzz.sent(plain, ["mean", "soft"], 800, seed=1)
    assert statuses.keys() >= {200, 400, 403, 404, 415}
    good(plain)


def test_the_document_has_every_address_of_the_protocol_and_no_other(plain):
    from poolexport.serve.core import Core
    from poolexport.serve.http import Application

    routes = Application.__new__(Application)
    routes.core = Core.__new__(Core)
    found = {(path, method.lower()) for path, _, methods in routes._routes() for method in methods}
    protocol = {(path, method) for path, method in found if path.startswith("/v2")}
    infer = {(f"/v2/models/{{model}}{version}/infer", "post") for version in ("", "/versions/{version}")}
    told = {(path, method) for path, methods in fuzz.DOCUMENT["paths"].items() for method in methods}
    assert told == protocol | infer
    assert plain.get("/v2/openapi.json").json == fuzz.DOCUMENT


def test_good_answers_fit_their_schemas(plain):
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": list(X.shape), "datatype": "FP32", "data": X.ravel().tolist()}]}
    ).encode()
    paths = fuzz.DOCUMENT["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            where = path.replace("{model}", "mean").replace("{version}", "1")
            answer = plain.ask(method.upper(), where, body if path.endswith("infer") else None)
            assert fuzz.undeclared(answer, operation) == "", (path, answer)
            assert answer.status == (403 if path.endswith("load") else 200)
