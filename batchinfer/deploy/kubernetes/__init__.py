"""Manifests for Kubernetes: a RayJob for a spec, or RayCronJobs if the spec has a schedule."""

from batchinfer.deploy.kubernetes.manifests import manifests
from batchinfer.deploy.kubernetes.options import Mount, Options
from batchinfer.deploy.kubernetes.render import dump, render_job

__all__ = ["Mount", "Options", "dump", "manifests", "render_job"]
