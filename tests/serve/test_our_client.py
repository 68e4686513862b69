"""Our client, against our server, over both protocols."""

import numpy as np
import pytest

from poolexport.client import Client
from poolexport.errors import InputError, MissingExtraError, RequestError
from serve.requests import X

SCHEMES = pytest.mark.parametrize("scheme", ["http", "grpc"])


@pytest.fixture
def client(server, scheme):
    with Client(f"{scheme}://{server.address if scheme == 'http' else server.grpc_address}") as opened:
        yield opened


@SCHEMES
def test_answers_come_by_name(client):
    found = client.infer("mean", {"x": X})
    np.testing.assert_allclose(found["y"], X.mean((2, 3)), rtol=1e-6)
    assert client.infer("mean", {"x": X}, outputs=["y"], version="1").keys() == {"y"}


@SCHEMES
def test_readiness_and_models(client):
    assert client.ready()
    assert client.ready("mean")
    assert not client.ready("nothing")
    assert {"mean", "soft"} <= {*client.models()}


@SCHEMES
@pytest.mark.parametrize(
    ("model", "inputs", "status"),
    [
        ("nothing", {"x": X}, 404),
        ("mean", {"z": X}, 400),
        ("mean", {"x": X.astype(np.float64)}, 400),
        ("mean", {"x": X[0]}, 400),
    ],
)
def test_refusals_hold_the_servers_status_and_words(client, model, inputs, status):
    with pytest.raises(RequestError) as caught:
        client.infer(model, inputs)
    assert caught.value.status == status
    assert client.url in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there_is_no_status(scheme):
    with Client(f"{scheme}://127.0.0.1:1", timeout=2, retries=0) as client:
        assert not client.ready()
        with pytest.raises(RequestError) as caught:
            client.infer("mean", {"x": X})
    assert caught.value.status == 0


@pytest.mark.parametrize("status", ["503", "500", "StatusCode.INTERNAL", "StatusCode.UNAVAILABLE"])
def test_a_request_that_found_no_room_or_was_lost_is_sent_again(status):
    client = Client("http://127.0.0.1:1", retries=1)

    class Full(Exception):
        def status(self):
            return status

        def message(self):
            return "full"

    asked = []

    def request():
        asked.append(1)
        if len(asked) == 1:
            raise Full
        return "answer"

    assert client._call(request) == "answer"
    asked.clear()
    client.retries = 0
    with pytest.raises(RequestError, match="full"):
        client._call(request)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://host:none"])
def test_bad_addresses_are_refused(url):
    with pytest.raises(InputError, match="no address"):
        Client(url)


@SCHEMES
def test_arrays_that_the_protocol_has_no_word_for(client):
    with pytest.raises(InputError, match="complex"):
        client.infer("mean", {"x": X.astype(complex)})


def test_without_the_published_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tritonclient.http", None)
    with pytest.raises(MissingExtraError, match=r"poolexport\[client\]"):
        Client("http://127.0.0.1:8000")
