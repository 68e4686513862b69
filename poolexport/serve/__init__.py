"""The server: bundles and .onnx files behind the Open Inference Protocol, over HTTP and gRPC. No torch in here."""
