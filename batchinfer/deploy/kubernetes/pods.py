"""The pods of a job: resources, volumes and placement of head, worker and submitter, and their restrictions. Pure."""

from __future__ import annotations

from typing import Any

from batchinfer.catalog import GIB, accelerators, node_labels
from batchinfer.deploy.kubernetes.options import HOME, SPEC_FOLDER, Options
from batchinfer.errors import ResourceError
from batchinfer.planner import Plan

CACHE_FOLDER = f"{HOME}/.cache"
USER = 1000

CPUS_OF_A_GPU = 3
"""CPUs of a worker for each GPU: for vLLM's engine and tokenizing, Ray Data's readers and the commit. At 4, workers
would not fit the smallest GPU machines, which have 4 and share them with the node's system pods."""

WORKER_GIB, WORKER_GIB_OF_A_GPU = 6, 6
"""GiB of a worker: for Ray and its object store, and for vLLM's process of each GPU. Weights need none, because vLLM
copies them to the GPU file by file."""

CPU_WORKER_CPUS, CPU_WORKER_GIB = 8, 32
"""CPUs and GiB of a worker without a GPU, for one replica with its weights and KV cache."""

DISK_GIB = 20
"""GiB for logs and Ray's spilled objects, besides the downloaded weights. Kubernetes evicts a pod that needs more."""


def gpus_of_a_pod(plan: Plan) -> int:
    """GPUs of one worker pod: its share of the pipeline stages, each with a whole tensor-parallel group."""
    return -(-plan.pipeline_parallel // plan.nodes_per_replica) * plan.tensor_parallel if plan.num_gpus else 0


def head(spec_name: str, labels: dict[str, str], options: Options, image: str) -> dict[str, Any]:
    """The template of the head, on which only the driver runs. It is kept off spot capacity."""
    spec = _pod(options, _container("ray-head", image, options, {"cpu": "2", "memory": "8Gi"}, {"cpu": "2"}))
    container = spec["containers"][0]
    container["ports"] = [
        {"name": name, "containerPort": port}
        for name, port in (("gcs", 6379), ("dashboard", 8265), ("client", 10001), ("metrics", 8080))
    ]
    container["volumeMounts"].append({"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True})
    spec["volumes"].append({"name": "spec", "configMap": {"name": spec_name}})
    spot = node_labels()[options.nodes].spot
    if spot:
        keep_off = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in spot.items()]
        spec["affinity"] = _node_affinity([keep_off])
    return _template(labels, spec)


def worker(plan: Plan, labels: dict[str, str], options: Options, image: str) -> dict[str, Any]:
    """The template of the pods of a replica: one, or `plan.nodes_per_replica` of them."""
    gpus = gpus_of_a_pod(plan)
    memory = WORKER_GIB + WORKER_GIB_OF_A_GPU * gpus if gpus else CPU_WORKER_GIB
    # Weights that are quantized while loading are downloaded in 16 bits.
    stored = (plan.weight_bytes_per_gpu or 0) * max(1, plan.num_gpus) * (2 if plan.online else 1)
    weights = -(-stored // GIB)
    disk = f"{DISK_GIB + weights}Gi"
    limits = {"memory": f"{memory}Gi", "ephemeral-storage": disk}
    if gpus:
        limits[f"{accelerators()[plan.accelerator].vendor}.com/gpu"] = str(gpus)
    requests = {**limits, "cpu": str(CPUS_OF_A_GPU * gpus if gpus else CPU_WORKER_CPUS)}
    spec = _pod(options, _container("ray-worker", image, options, requests, limits))
    container = spec["containers"][0]
    container["ports"] = [{"name": "metrics", "containerPort": 8080}]
    # NCCL and Ray's object store share memory between processes; a pod's own /dev/shm has 64 MiB.
    spec["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{memory // 2}Gi"}})
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    spec["volumes"].append({"name": "models", "emptyDir": {"sizeLimit": disk}})
    container["volumeMounts"].append({"name": "models", "mountPath": CACHE_FOLDER})
    spec["tolerations"] = _tolerations(plan, options)
    spec.update(_placement(plan, options))
    return _template(labels, spec)


def submitter(labels: dict[str, str], options: Options, image: str) -> dict[str, Any]:
    """The template of the pod that submits the job to the head and follows its log. KubeRay sets the command."""
    spec = _pod(options, _container("ray-job-submitter", image, options, {"cpu": "200m", "memory": "512Mi"}))
    return _template(labels, spec | {"restartPolicy": "Never"})


def _template(labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    """A pod template without empty lists."""
    spec = {key: value for key, value in spec.items() if value != []}
    spec["containers"] = [{k: v for k, v in c.items() if v != []} for c in spec["containers"]]
    return {"metadata": {"labels": labels}, "spec": spec}


def _pod(options: Options, container: dict[str, Any]) -> dict[str, Any]:
    volumes = []
    for number, mount in enumerate(options.mounts):
        volumes.append({"name": f"mount-{number}", "persistentVolumeClaim": {"claimName": mount.claim}})
        container["volumeMounts"].append({"name": f"mount-{number}", "mountPath": mount.path})
    return {
        "serviceAccountName": options.service_account,
        # A Service named vllm would set VLLM_PORT in every pod of the namespace, which vLLM reads as its own setting.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # Seconds between SIGTERM and SIGKILL. A spot machine has only 30 to 120 seconds left.
        "terminationGracePeriodSeconds": 30,
        "containers": [container],
        "volumes": volumes,
    }


def _container(
    name: str, image: str, options: Options, requests: dict[str, str], limits: dict[str, str] | None = None
) -> dict[str, Any]:
    """A container. KubeRay adds the readiness and liveness probes that fit the Ray version."""
    limits = {"memory": requests["memory"]} if limits is None else {"memory": requests["memory"]} | limits
    made: dict[str, Any] = {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "huggingface", "key": "token", "optional": True}},
            },
        ],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [],
    }
    if options.env_secrets:
        made["envFrom"] = [{"secretRef": {"name": secret}} for secret in options.env_secrets]
    return made


def _tolerations(plan: Plan, options: Options) -> list[dict[str, str]]:
    found = []
    if plan.num_gpus:
        key = f"{accelerators()[plan.accelerator].vendor}.com/gpu"
        found.append({"key": key, "operator": "Exists", "effect": "NoSchedule"})
    if options.spot:
        for key, value in node_labels()[options.nodes].spot.items():
            found.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    return found


def _placement(plan: Plan, options: Options) -> dict[str, Any]:
    """The nodes of a worker: a node selector if each label has one value, otherwise a node affinity."""
    known = node_labels()[options.nodes]
    wanted: dict[str, tuple[str, ...]] = {key: (value,) for key, value in options.node_selector.items()}
    if plan.num_gpus and not wanted:
        if plan.accelerator not in known.values:
            raise ResourceError(
                f"the catalog has no label for {options.nodes} nodes with {plan.accelerator}",
                "give one with --node-selector KEY=VALUE, or another --nodes",
            )
        wanted[known.label] = known.values[plan.accelerator]
    if options.spot and not known.spot:
        raise ResourceError(
            f"{options.nodes} nodes have no label that marks spot capacity",
            "say --nodes gke or --nodes eks, or leave --spot out and select such nodes with --node-selector",
        )
    spot = list(known.spot.items()) if options.spot else []
    if len(spot) <= 1 and all(len(values) == 1 for values in wanted.values()):
        selector = {key: values[0] for key, values in wanted.items()} | dict(spot)
        return {"nodeSelector": selector} if selector else {}
    both = [{"key": key, "operator": "In", "values": list(values)} for key, values in wanted.items()]
    # Terms are alternatives; the expressions of one term must all match.
    terms = [[*both, {"key": key, "operator": "In", "values": [value]}] for key, value in spot] or [both]
    return {"affinity": _node_affinity(terms)}


def _node_affinity(terms: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": expressions} for expressions in terms]
            }
        }
    }
