"""The files in k8s/: Kubernetes and KubeRay take them, and they hold no secret and nothing that moves."""

from __future__ import annotations

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import yaml

import batchinfer
from batchinfer.catalog import accelerators, node_labels
from tests.support.kubernetes_schemas import CRDS, pod_templates, require_core, require_custom

FOLDER = Path(__file__).parents[3] / "k8s"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def generator() -> ModuleType:
    spec = spec_from_file_location("generate_examples", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FILES)
def test_kubernetes_takes_the_file(name):
    for document in documents(name):
        require_core(document)


@pytest.mark.skipif(not CRDS.is_dir(), reason="needs KubeRay's CRDs: see BATCHINFER_KUBERAY_CRDS in CONTRIBUTING.md")
def test_kuberay_takes_the_rays():
    kinds = set()
    for document in (document for name in FILES for document in documents(name)):
        if document["apiVersion"] == "ray.io/v1":
            require_custom(document)
            kinds.add(document["kind"])
    assert kinds == {"RayCluster", "RayJob", "RayCronJob", "RayService"}


@pytest.mark.parametrize("name", ["rayjob", "raycronjob"])
def test_the_examples_are_what_render_makes(name):
    assert (FOLDER / f"{name}.yaml").read_text() == generator().example_text(name), "run k8s/generate.py"


def test_no_file_holds_a_secret():
    for name in FILES:
        assert "Secret" not in {document["kind"] for document in documents(name)}
        for template in (t for document in documents(name) for t in pod_templates(document)):
            for container in template["spec"]["containers"]:
                for entry in container.get("env", []):
                    assert "TOKEN" not in entry["name"] or set(entry) == {"name", "valueFrom"}


def test_the_standing_cluster_has_spot_and_on_demand_gpus_behind_probes_and_a_token():
    cluster, policy = documents("raycluster.yaml")
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token", "secretName": "batchinfer-ray"}
    assert spec["rayVersion"] == ray.__version__
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert "spot" in yaml.safe_dump(groups["l40s-spot"]["template"]["spec"]["affinity"])
    assert "affinity" not in groups["h100"]["template"]["spec"]
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    for template in pod_templates(cluster):
        assert chosen <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        assert container["readinessProbe"]
        assert container["livenessProbe"]
        assert template["spec"]["securityContext"]["runAsNonRoot"]


def test_the_service_starts_the_gateway_with_engines_that_are_valid(tmp_path):
    from batchinfer.gateway.engines import load_engines

    configured, service, _ = documents("rayservice.yaml")
    (tmp_path / "engines.yaml").write_text(configured["data"]["engines.yaml"])
    assert list(load_engines(str(tmp_path / "engines.yaml")).engines) == ["qwen2.5-7b"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (FOLDER.parent / f"{module.replace('.', '/')}.py").read_text().count(f"\ndef {name}(") == 1
    for template in pod_templates(service):
        (container,) = template["spec"]["containers"]
        assert application["args"]["engines"].rpartition("/")[0] in [m["mountPath"] for m in container["volumeMounts"]]


def test_images_have_the_version_of_the_package():
    version = batchinfer.__version__
    images = {
        c["image"] for n in FILES for d in documents(n) for t in pod_templates(d) for c in t["spec"]["containers"]
    }
    assert images == {f"registry.example.com/batchinfer:{version}-gpu"}


def test_the_image_is_pinned_and_has_no_root():
    text = (FOLDER / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)
    assert re.fullmatch(r"3\.11\.\d+-slim-\w+", base)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:${PYTHON}"}
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "1000:1000"
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for source in line.split()
    }
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert copied == {entry[1:] for entry in allowed if entry.startswith("!")}
    extras = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"cpu", "gpu"} <= extras.keys()


def test_node_labels_are_of_accelerators_that_there_are():
    for name, known in node_labels().items():
        assert known.values.keys() <= accelerators().keys(), name
        assert set(known.unverified) <= known.values.keys(), name
        values = [value for group in known.values.values() for value in group]
        assert len(values) == len(set(values)), "a label means one accelerator"
