"""A backend for Triton's core under the name of one that no Python package holds; it runs the file of the model."""

import os
import sys

sys.path.append(os.environ["BACKEND_PACKAGES"])

import onnxruntime as ort
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [triton.InferenceResponse(self.answer(request)) for request in requests]

    def answer(self, request):
        ports = self.session.get_inputs()
        feed = {port.name: triton.get_input_tensor_by_name(request, port.name).as_numpy() for port in ports}
        answers = self.session.run(None, feed)
        return [triton.Tensor(port.name, y) for port, y in zip(self.session.get_outputs(), answers)]
