"""Ask a proxy of a cluster with the protocol's published client; runs in Ray's environment."""

import sys

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException


def status_of(call, *words, **options):
    try:
        call(*words, **options)
    except InferenceServerException as error:
        return error.status()
    return "no error"


def main(address, token):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    for library, port in ((tritonclient.http, 8000), (tritonclient.grpc, 8001)):
        shown = {"authorization": f"Bearer {token}"}  # the client over HTTP writes into it
        client = library.InferenceServerClient(f"{address}:{port}")
        given = library.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        answer = client.infer("net", [given], headers=shown).as_numpy("y")
        assert np.allclose(answer, x.mean((2, 3)), atol=1e-6), answer
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("net", headers=shown)
        client.get_model_metadata("net", headers=shown)
        client.get_model_config("net", headers=shown)
        client.get_inference_statistics("net", headers=shown)
        client.get_model_repository_index(headers=shown)
        assert status_of(client.infer, "none", [given], headers=shown) in ("404", "StatusCode.NOT_FOUND")
        assert status_of(client.infer, "net", [given]) in ("401", "StatusCode.UNAUTHENTICATED")
    answers = []
    client.start_stream(callback=lambda result, error: answers.append((result, error)), headers=shown)
    for _ in range(3):
        client.async_stream_infer("net", [given])
    client.stop_stream()
    assert [error for _, error in answers] == [None] * 3, answers
    print("infer, health, metadata, configuration, statistics, index, stream, refusals")


if __name__ == "__main__":
    main(*sys.argv[1:])
