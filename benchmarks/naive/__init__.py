"""Pooling as somebody writes it who has torch and an hour: the formula in a few calls, exported by torch.onnx.export.

Where a formula overflows in that form and the kernel's does not, the safe one is written, because the numbers would not
be the same otherwise.
"""
