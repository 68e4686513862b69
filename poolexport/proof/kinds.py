"""Operators of torch and of ONNX that are one and the same thing."""

from __future__ import annotations

#: Names of one operator in torch and in ONNX.
KINDS = {
    "convolution": "conv",
    "mkldnn_convolution": "conv",
    "convtranspose": "conv",
    "addmm": "gemm",
    "mm": "matmul",
    "bmm": "matmul",
    "native_batch_norm": "batchnormalization",
    "_native_batch_norm_legit_no_training": "batchnormalization",
    "max_pool2d_with_indices": "maxpool",
    "max_pool3d_with_indices": "maxpool",
    "maxpoolwithindices": "maxpool",
    "avg_pool2d": "averagepool",
    "avg_pool3d": "averagepool",
    "_adaptive_avg_pool2d": "adaptiveaveragepool",
    "cat": "concat",
    "hardtanh": "clip",
    "clamp": "clip",
    "clamp_min": "max",
    "amax": "reducemax",
    "globalmaxpool": "reducemax",
    "mean": "reducemean",
    "globalaveragepool": "reducemean",
    "sum": "reducesum",
    "maximum": "max",
    "minimum": "min",
    "_to_copy": "cast",
    "native_layer_norm": "layernormalization",
    "native_group_norm": "groupnormalization",
    "upsample_nearest2d": "resize",
    "upsample_bilinear2d": "resize",
    "view": "reshape",
    "_unsafe_view": "reshape",
    "flatten": "reshape",
    "permute": "transpose",
    "t": "transpose",
}
#: A node of the first kind may be one of the second besides, merged into its weights.
MERGED = {("conv", "batchnormalization"), ("gemm", "batchnormalization")}


def kind_of(operator: str) -> str:
    """One name for what torch and ONNX call differently."""
    plain = operator.rpartition("::")[2].rstrip("_")
    lower = plain.lower()
    return KINDS.get(lower, lower.replace("_", ""))
