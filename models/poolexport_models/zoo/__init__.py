"""Whole networks of the literature with every typical pooling, written from their papers; weights are random.

One architecture a file; ``table`` lists the networks. The layers are torch's own wherever torch has them.

>>> from poolexport_models import zoo
>>> resnet = zoo.network("resnet18")
>>> model, [images] = resnet.build(slim=True), resnet.sample(slim=True)
>>> model.training, images.shape, model(images).shape
(False, torch.Size([2, 3, 64, 72]), torch.Size([2, 1000]))
"""

from __future__ import annotations

from poolexport_models.zoo.table import NETWORKS, Network, network

__all__ = ["NETWORKS", "Network", "network"]
