"""A plan as Kubernetes objects: ConfigMap, NetworkPolicy, and RayJob or RayCronJobs. Pure, except for today's date.

Field names are those of KubeRay's `ray.io/v1` (1.6) and of Kubernetes. The worker group holds the replicas: each
"replica" of the group is `numOfHosts` pods, which together run one replica of the model.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from batchinfer import __version__
from batchinfer.deploy.kubernetes.kuberay_cron import firings
from batchinfer.deploy.kubernetes.options import SPEC_FOLDER, Options
from batchinfer.deploy.kubernetes.pods import gpus_of_a_pod, head, submitter, worker
from batchinfer.errors import ResourceError, SpecError
from batchinfer.jobspec import JobSpec, to_yaml
from batchinfer.planner import Plan

LONGEST_NAME = 36
"""Characters that KubeRay allows in the name of a RayCronJob, because it appends to that name for jobs and clusters."""

ENTRYPOINT = "batchinfer.deploy.ray_jobs.entrypoint"

CLIENT_LABEL = "batchinfer/dashboard-client"
"""Pods with this label (value "true") may reach the dashboard and submit jobs."""

LARGEST_CONFIG_MAP = 2**20
"""Bytes of keys and values that the API server accepts (`ValidateConfigMap`, MaxSecretSize)."""

_CLOCK_NOTE = "; this one for the ticks that KubeRay passes over when the clock changes"

TTL_SECONDS = 600
IDLE_SECONDS = 300


def manifests(spec: JobSpec, plan: Plan, options: Options) -> list[dict[str, Any]]:
    """The objects that run the job as planned, in the order in which to apply them. Raises UserError."""
    _require_queue_to_reach(spec, options)
    name = object_name(spec.name)
    pinned = {"job.yaml": to_yaml(pin(spec, plan))}
    _require_small(pinned)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(f"{name}-spec", name, options)}
    job = _ray_job(spec, plan, options, name)
    notes = _annotations(plan)
    about = _metadata(name, name, options) | {"annotations": notes}
    if spec.schedule is None:
        made = [{"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": about, "spec": job}]
    else:
        schedule = spec.schedule
        made = []
        for number, firing in enumerate(firings(schedule.cron, schedule.timezone, datetime.now(UTC).date())):
            # Each firing runs only what is due, so extra firings do nothing.
            called = name if number == 0 else object_name(f"{spec.name}-clock")
            told = {"batchinfer/schedule": f"{schedule.cron}, {schedule.timezone}" + (_CLOCK_NOTE if number else "")}
            about = _metadata(called, name, options) | {"annotations": notes | told}
            when = {"schedule": firing.cron, "timeZone": firing.timezone}
            ray = {"kind": "RayCronJob", "metadata": about, "spec": {**when, "jobTemplate": job}}
            made.insert(0, {"apiVersion": "ray.io/v1"} | ray)
    return [config | {"data": pinned}, network_policy(name, options), *made]


def _require_small(data: dict[str, str]) -> None:
    size = sum(len(key) + len(value.encode()) for key, value in data.items())
    if size > LARGEST_CONFIG_MAP:
        raise SpecError(
            f"the spec has {size:,} bytes, and a ConfigMap takes {LARGEST_CONFIG_MAP:,}",
            "put long texts into the input, as a column, instead of into the template",
        )


def pin(spec: JobSpec, plan: Plan) -> JobSpec:
    """The spec with the planned layout, so that the run in the pods has the layout that the pods were made for."""
    resources: dict[str, Any] = {"accelerator": plan.accelerator}
    if plan.num_gpus:
        resources |= {"tensor_parallel": plan.tensor_parallel, "pipeline_parallel": plan.pipeline_parallel}
    if plan.min_replicas == plan.max_replicas:
        resources["replicas"] = plan.max_replicas
    return spec.model_copy(update={"resources": spec.resources.model_copy(update=resources)})


def object_name(job_name: str) -> str:
    """The job's name for Kubernetes: a-z, 0-9 and dashes. If that changes the name, a part of its hash is appended."""
    plain = re.sub(r"[^a-z0-9]+", "-", job_name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"job-{plain}"
    if plain == job_name and len(plain) <= LONGEST_NAME:
        return plain
    digest = hashlib.sha256(job_name.encode()).hexdigest()[:6]
    return f"{plain[: LONGEST_NAME - 7].rstrip('-')}-{digest}"


def network_policy(name: str, options: Options) -> dict[str, Any]:
    """A policy by which only the job's pods reach its Ray ports; KubeRay's operator and labelled clients reach the
    dashboard."""
    ours = {"app.kubernetes.io/instance": name}

    def pods(label: str, value: str) -> dict[str, Any]:
        return {"podSelector": {"matchLabels": {label: value}}}

    def anywhere(label: str, value: str) -> dict[str, Any]:
        return {"namespaceSelector": {}} | pods(label, value)

    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(name, name, options),
        "spec": {
            "podSelector": {"matchLabels": ours},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": ours}}]},
                {
                    "from": [anywhere("app.kubernetes.io/name", "kuberay-operator"), pods(CLIENT_LABEL, "true")],
                    "ports": [{"protocol": "TCP", "port": 8265}],
                },
                {
                    "from": [anywhere("app.kubernetes.io/name", "prometheus")],
                    "ports": [{"protocol": "TCP", "port": 8080}],
                },
            ],
        },
    }


def _ray_job(spec: JobSpec, plan: Plan, options: Options, name: str) -> dict[str, Any]:
    image = options.image_for(plan.accelerator)
    labels = _labels(name) | {k: v for k, v in options.labels.items() if not _is_queue(k)}
    budget = spec.limits.max_cost_usd is not None or spec.limits.max_runtime_hours is not None
    command = "run" if spec.schedule is None else "schedule run-due"
    return {
        "entrypoint": f"python -m {ENTRYPOINT} {command} {SPEC_FOLDER}/job.yaml",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_SECONDS,
        # After a lost head, a second cluster resumes the run. The entrypoint keeps KubeRay from starting one after
        # other failures. With a budget there is no second cluster, which could spend the hours again.
        "backoffLimit": 0 if budget else 1,
        "submitterPodTemplate": submitter(labels, options, image),
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            # KubeRay makes a token for each cluster, stores it in a Secret and mounts it in the pods.
            "authOptions": {"mode": "token"},
            **_autoscaling(plan),
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                # Without CPUs for Ray, so that no engine runs on the driver's node.
                "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
                "template": head(f"{name}-spec", labels, options, image),
            },
            "workerGroupSpecs": [_worker_group(plan, options, labels, image)],
        },
    }


def _autoscaling(plan: Plan) -> dict[str, Any]:
    if plan.min_replicas == plan.max_replicas:
        return {"enableInTreeAutoscaling": False}
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": IDLE_SECONDS,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        },
    }


def _worker_group(plan: Plan, options: Options, labels: dict[str, str], image: str) -> dict[str, Any]:
    # A replica on the CPU needs half a Ray CPU, so a pod with one holds at most two replicas.
    params = {} if plan.num_gpus else {"num-cpus": "1"}
    template = worker(plan, labels, options, image)
    group = re.sub(r"[^a-z0-9]+", "-", plan.accelerator.lower())
    return {
        "groupName": f"{group}-x{gpus_of_a_pod(plan)}" if plan.num_gpus else "cpu",
        "replicas": plan.min_replicas,
        "minReplicas": plan.min_replicas,
        "maxReplicas": plan.max_replicas,
        "numOfHosts": plan.nodes_per_replica,
        "rayStartParams": params,
        "template": template,
    }


def _metadata(name: str, instance: str, options: Options) -> dict[str, Any]:
    return {"name": name, "namespace": options.namespace, "labels": _labels(instance) | options.labels}


def _labels(instance: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "batchinfer",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/managed-by": "batchinfer",
    }


def _annotations(plan: Plan) -> dict[str, str]:
    layout = f"TP{plan.tensor_parallel} x PP{plan.pipeline_parallel} on {plan.accelerator}" if plan.num_gpus else "CPU"
    low, high = plan.min_replicas, plan.max_replicas
    replicas = f"{high}" if low == high else f"{low} to {high}"
    found = {"batchinfer/plan": f"{plan.model}, {plan.quantization}: {layout}, replicas: {replicas}"}
    if plan.estimate is not None:
        hours, cost = plan.estimate.hours, plan.estimate.cost_usd
        found["batchinfer/estimate"] = (
            f"{hours.mid:.2g} h ({hours.low:.2g} to {hours.high:.2g}), "
            f"${cost.mid:,.2f} (${cost.low:,.2f} to ${cost.high:,.2f})"
        )
    return found


def _is_queue(key: str) -> bool:
    return key.startswith("kueue.x-k8s.io/")


def _require_queue_to_reach(spec: JobSpec, options: Options) -> None:
    """Raise SpecError for a queue label on a schedule: KubeRay 1.6 does not copy a RayCronJob's labels to its RayJobs,
    so Kueue would ignore these jobs."""
    queued = [key for key in options.labels if _is_queue(key)]
    if spec.schedule is not None and queued:
        raise SpecError(
            f"--label {queued[0]} does not reach the jobs of a schedule: KubeRay passes no labels on to them",
            "set a default queue for the namespace in Kueue, or leave the schedule out of the spec",
        )


def require_gpus_named(spec: JobSpec) -> None:
    """Raise ResourceError if `resources.accelerator` is auto: pods must request a GPU type, and there is no cluster to
    detect it on."""
    if spec.resources.accelerator == "auto":
        raise ResourceError(
            "resources.accelerator is auto, and there is no cluster to look at here",
            "name it, as with --set resources.accelerator=H100; `batchinfer gpus` lists them",
        )
