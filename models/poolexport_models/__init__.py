"""Reference networks with a hole where the pooling goes, trained once per method on handwritten digits.

>>> import poolexport_models
>>> model = poolexport_models.load("softpool")
>>> type(model).__name__, model.training
('ResidualCNN', False)
"""

from __future__ import annotations

from poolexport_models.compact import CompactCNN
from poolexport_models.recipes import Recipe, load, recipe
from poolexport_models.residual import ResidualCNN

__all__ = ["CompactCNN", "Recipe", "ResidualCNN", "load", "recipe"]
