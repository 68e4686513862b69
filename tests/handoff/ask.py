"""Ask a Triton server what it made of our configurations; runs in Triton's environment."""

import sys

import tritonclient.http as http

#: Name, most rows in a batch, and every port's shape as Triton tells it.
EXPECTED = {
    "images": (8, {"input": [-1, 3, -1, -1], "output": [-1, 4]}),
    "regions": (0, {"input": [1, 3, -1, -1], "boxes": [-1, 5], "output": [-1, 3, 2, 2]}),
}


def main(port):
    client = http.InferenceServerClient(f"127.0.0.1:{port}")
    for name, (rows, shapes) in EXPECTED.items():
        assert client.is_model_ready(name), name
        facts = client.get_model_metadata(name)
        told = {port["name"]: port["shape"] for port in (*facts["inputs"], *facts["outputs"])}
        found = client.get_model_config(name)["max_batch_size"], dict(zip(shapes, told.values()))
        assert found == (rows, shapes), found
        warmed = client.get_inference_statistics(name)["model_stats"][0]
        print(f"triton, {name}: ready, batches of {rows}, {told}, rows run: {warmed['inference_count']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
