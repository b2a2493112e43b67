"""Manifests for Kubernetes: a job's plan as a RayJob, or as a RayCronJob where it has a schedule."""

from batchinfer.render.job import dump, render_job
from batchinfer.render.manifests import manifests
from batchinfer.render.options import Mount, Options

__all__ = ["Mount", "Options", "dump", "manifests", "render_job"]
