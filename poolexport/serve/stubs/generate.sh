#!/usr/bin/env bash
# Writes inference_pb2.py anew; needs: pip install 'grpcio-tools==1.78.2' 'protobuf==6.33.5'
# (a newer compiler would ask for a newer protobuf than pyproject.toml admits).
set -euo pipefail
cd "$(dirname "$0")/../../.."
stubs=poolexport/serve/stubs
"${PYTHON:-python3}" -m grpc_tools.protoc --proto_path . --python_out . --pyi_out . "$stubs/inference.proto"
# A pool of its own: other packages declare the same names, and one pool takes them only once.
sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' "$stubs/inference_pb2.py"
