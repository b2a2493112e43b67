"""The labels of Kubernetes nodes by accelerator, as data with source and date: `nodes.yaml` beside this file."""

from __future__ import annotations

import datetime
from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter


class NodeLabels(BaseModel):
    """One entry of `nodes.yaml`: `label` has one of `values` on the nodes with an accelerator.

    spot: labels of nodes on spot capacity, each of which is enough; empty if there is no such label.
    unverified: accelerators whose value was not read in a source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    values: dict[str, tuple[str, ...]]
    spot: dict[str, str] = {}
    unverified: tuple[str, ...] = ()
    source: str
    date: datetime.date


@cache
def node_labels() -> dict[str, NodeLabels]:
    """The labels of each kind of cluster, by the values of `batchinfer render --nodes`."""
    text = (resources.files(__package__) / "nodes.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, NodeLabels]).validate_python(yaml.safe_load(text))
