"""Offline batches: run a model over arrays and images on disk. No torch in here.

items.py     which files there are, and what their answers will be called
reading.py   what a file holds, as the model takes it
writing.py   answers on disk, whole or not at all, and what a later run may skip
running.py   the loop over all of them
cluster.py   the same on a Ray cluster
"""

from poolexport.offline.items import Item, items
from poolexport.offline.reading import Picture, read
from poolexport.offline.running import Failure, Report, run

__all__ = ["Failure", "Item", "Picture", "Report", "items", "read", "run"]
