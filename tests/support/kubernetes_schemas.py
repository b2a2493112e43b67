"""Checks Kubernetes objects as an API server does: core objects by schemas that the package `kubernetes-validate`
holds, KubeRay's by the CRDs in the folder that BATCHINFER_KUBERAY_CRDS names (default k8s/crds)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.support import ROOT

CRDS = Path(os.environ.get("BATCHINFER_KUBERAY_CRDS", ROOT / "k8s" / "crds"))
KUBERNETES = "1.37"


def require_core(document: dict[str, Any]) -> None:
    """Raise where a core object, or any pod template in one of KubeRay's, is not as Kubernetes wants it."""
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for template in pod_templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def require_custom(document: dict[str, Any]) -> None:
    """Raise where one of KubeRay's objects does not fit its CRD, or has a key that the CRD would drop."""
    jsonschema.Draft202012Validator(_custom_schema(document["kind"])).validate(document)


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in the object."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key in ("template", "submitterPodTemplate"):
            yield inner
        else:
            yield from pod_templates(inner)


@cache
def _custom_schema(kind: str) -> dict[str, Any]:
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(encoding="utf-8")
    crd = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    versions = {version["name"]: version for version in crd["spec"]["versions"]}
    schema: dict[str, Any] = versions["v1"]["schema"]["openAPIV3Schema"]
    # An API server checks metadata itself; a CRD says no more of it than that it is an object.
    metadata = schema["properties"].pop("metadata")
    _refuse_unknown_keys(schema)
    schema["properties"]["metadata"] = metadata
    return schema


def _refuse_unknown_keys(schema: Any) -> None:
    """A structural schema drops keys that it does not know; a test is to hear of them."""
    if not isinstance(schema, dict):
        return
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for inner in (*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")):
        # An embedded template's metadata: an object, of which nothing is said.
        if not (isinstance(inner, dict) and inner == {"type": "object"}):
            _refuse_unknown_keys(inner)
