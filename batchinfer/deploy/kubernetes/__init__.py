"""Manifests for Kubernetes: a spec goes in, a RayJob comes out, or a RayCronJob if it has a schedule."""

from batchinfer.deploy.kubernetes.manifests import manifests
from batchinfer.deploy.kubernetes.options import Mount, Options
from batchinfer.deploy.kubernetes.render import dump, render_job

__all__ = ["Mount", "Options", "dump", "manifests", "render_job"]
