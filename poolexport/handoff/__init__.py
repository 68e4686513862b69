"""Handing a proven model to other serving systems: what each of them reads, written from what the file says.

    deployment.py   the facts about a model that every target needs
    triton.py       a model repository of Triton Inference Server
    kserve.py       an InferenceService of KServe
    docker.py       a folder that ``docker build`` turns into a server of ours

No torch in here.
"""

from poolexport.handoff.deployment import Deployment, deployment
from poolexport.handoff.docker import docker
from poolexport.handoff.kserve import kserve
from poolexport.handoff.triton import triton

__all__ = ["Deployment", "deployment", "docker", "kserve", "triton"]
