"""From a model in memory to a proven file: prepare, export, lower, optimise, verify, package.

One stage a file, one value in, one value out, no way back.
"""
