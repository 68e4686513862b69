"""Layers of other packages, found in a model by the names of their classes and replaced by ours.

One file a family of foreign layers, one small function a layer; ``table`` lists them. Nothing of another package is
imported.
"""
