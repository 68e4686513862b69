"""Names that the graph holds already once crashed the export, and names that are none came out as other errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import poolexport
from poolexport.errors import InputError
from poolexport.pipeline.prepare import prepare


def model():
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5), nn.Softmax(-1)).eval()


@pytest.mark.parametrize(("given", "answer"), [("relu", "linear"), ("0.weight", "softmax")])
def test_names_of_layers_and_weights_are_free_for_inputs_and_outputs(given, answer, tmp_path):
    net, x = model(), torch.randn(2, 6)
    bundle = poolexport.export(
        net, x, tmp_path / "net.onnx", dynamic_shapes={0: "N"}, input_names=[given], output_names=[answer]
    )
    session = poolexport.session(bundle.path)
    assert ([port.name for port in session.get_inputs()], session.get_outputs()[0].name) == ([given], answer)
    [found] = session.run(None, {given: x.numpy()})
    np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_names": "x"}, "input_names must be a sequence of names, got 'x'"),
        ({"input_names": [""]}, "a name must be a string that is not empty, got ''"),
        ({"output_names": [3]}, "a name must be a string that is not empty, got 3"),
        ({"name": 3}, "name must be a string, got 3"),
        ({"producer": 3}, "producer must be a string, got 3"),
        ({"dynamic_shapes": 4}, "dynamic_shapes must be a mapping of axes to names, or one per input, got 4"),
        ({"dynamic_shapes": "NC"}, "dynamic_shapes must be a mapping of axes to names, or one per input, got 'NC'"),
        ({"dynamic_shapes": {"input": "NC"}}, "the axes of input 'input' must be a mapping or a sequence, got 'NC'"),
        ({"dynamic_shapes": {0: True}}, "axis 0 of input 'input' is given True; name it, as in 'N'"),
        ({"opset": "18"}, "opset '18' is not supported"),
        ({"opset": 18.0}, "opset 18.0 is not supported"),
    ],
)
def test_what_is_no_name_is_refused(options, message, tmp_path):
    with pytest.raises(InputError) as error:
        poolexport.export(model(), torch.randn(2, 6), tmp_path / "net.onnx", verify=False, **options)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_axis_that_is_said_to_be_static_stays_so():
    prepared = prepare(model(), torch.randn(2, 6), dynamic_shapes={0: "N", 1: torch.export.Dim.STATIC})
    assert prepared.axes == ({0: "N"},)
