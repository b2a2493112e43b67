"""The use case of `batchinfer render`: check and plan a spec, then write the manifests."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Sequence
from typing import Any

import yaml

from batchinfer.catalog import GIB
from batchinfer.deploy.kubernetes.manifests import manifests, require_gpus_named
from batchinfer.deploy.kubernetes.options import Options
from batchinfer.deploy.kubernetes.pods import CPU_WORKER_GIB
from batchinfer.errors import SpecError
from batchinfer.execution.checks import check
from batchinfer.execution.model_checks import require_model
from batchinfer.execution.plan_job import plan_job, plan_of
from batchinfer.jobspec import JobSpec
from batchinfer.planner import Plan, assumed_cluster


def render_job(spec: JobSpec, options: Options, sample: bool = True) -> list[dict[str, Any]]:
    """The manifests of the job, planned for nodes with the spec's accelerator. Raises UserError.

    `sample` False: the input is not read, so it need not be reachable from this machine. The layout is then chosen for
    prompts of unknown length, without an estimate of time and cost.
    """
    require_gpus_named(spec)
    require_reachable(spec, options)
    return manifests(spec, _planned(spec, sample), options)


def _planned(spec: JobSpec, sample: bool) -> Plan:
    cluster = assumed_cluster(spec, CPU_WORKER_GIB * GIB)
    if sample:
        return plan_job(check(spec, uuid.uuid4().hex, access=False), cluster)
    return plan_of(spec, cluster, require_model(spec, access=False))


def require_reachable(spec: JobSpec, options: Options) -> None:
    """Raise SpecError for paths of this machine, which pods cannot read unless a volume has them."""
    places = {"input.uri": spec.input.uri, "output.uri": spec.output.uri}
    if spec.cache is not None:
        places["cache.uri"] = spec.cache.uri
    if os.path.isdir(spec.model.source):
        places["model.source"] = spec.model.source
    if spec.model.lora is not None and os.path.isdir(spec.model.lora.path):
        places["model.lora.path"] = spec.model.lora.path
    for key, uri in places.items():
        uri = uri.removeprefix("file://")
        if "://" in uri or any(mount.holds(uri) for mount in options.mounts):
            continue
        raise SpecError(
            f"{key} is {uri}, a path on this machine, which pods cannot see",
            "use an s3:// URI, or an absolute path on a volume that --mount CLAIM=/folder gives them",
        )


def dump(documents: Sequence[dict[str, Any]]) -> str:
    """The objects as one YAML text, one document for each."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and no anchors, because pods have equal labels."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_PLAIN = re.compile(r"[A-Za-z_/][^\n]*")
_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text, quoted if any YAML version could read it as another type.

    PyYAML quotes only what its own YAML 1.1 reads as a number. kubectl's reader also knows YAML 1.2 (`0o17`, `12e45`),
    and other readers know the `y` and `n` of YAML 1.1.
    """
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    style = "|" if "\n" in text else None if plain else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
