"""Manifests: what the plan says is what the pods ask for, and Kubernetes takes it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinfer.catalog import node_labels
from batchinfer.deploy.kubernetes import Mount, Options, dump, manifests, render_job
from batchinfer.deploy.kubernetes.manifests import ENTRYPOINT, LONGEST_NAME, object_name, pin
from batchinfer.deploy.kubernetes.pods import SPEC_FOLDER
from batchinfer.errors import ResourceError, SpecError, UserError
from batchinfer.jobspec import JobSpec, load, parse
from tests.support.builders import make_plan, make_spec
from tests.support.commands import forked
from tests.support.kubernetes_schemas import CRDS, pod_templates, require_core, require_custom

pytestmark = pytest.mark.integration
"""A second a test: every object is checked against the schemas of Kubernetes."""

ROOT = Path(__file__).parents[3]
REMOTE_JOBS = [path for path in sorted((ROOT / "jobs").glob("*.yaml")) if path.stem not in ("demo", "nightly")]
"""The others run on this machine."""
REMOTE = {"input": {"uri": "s3://in/docs", "id_column": "id"}, "output": {"uri": "s3://out/docs"}}


def remote_spec(**sections: Any) -> JobSpec:
    return make_spec(**(REMOTE | {"resources": {"accelerator": "H100"}} | sections))


def rendered(spec: JobSpec, *, nodes: Any = "gpu-operator", plan: dict[str, Any] | None = None, **options: Any) -> Any:
    """The job itself (RayJob or RayCronJob) of the spec, with a plan of these values."""
    return manifests(spec, make_plan(**(plan or {})), Options(nodes=nodes, **options))[-1]


def cluster_of(job: dict[str, Any]) -> dict[str, Any]:
    spec = job["spec"]
    return (spec["jobTemplate"] if job["kind"] == "RayCronJob" else spec)["rayClusterSpec"]


def group_of(job: dict[str, Any]) -> dict[str, Any]:
    (group,) = cluster_of(job)["workerGroupSpecs"]
    return group


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return group_of(job)["template"]["spec"]


def limits_of(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["containers"]
    return container["resources"]["limits"]


def accelerator_terms(pod: dict[str, Any]) -> Any:
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return [{e["key"]: (e["operator"], e["values"]) for e in term["matchExpressions"]} for term in terms]


EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "one GPU": ({}, {"tensor_parallel": 1, "num_gpus": 1}, {}),
    "eight GPUs, two nodes": (
        {},
        {"tensor_parallel": 8, "pipeline_parallel": 2, "num_gpus": 16, "nodes_per_replica": 2, "max_replicas": 3},
        {"nodes": "gke", "spot": True},
    ),
    "autoscaled on spot": ({}, {"max_replicas": 6}, {"nodes": "eks", "spot": True, "env_secrets": ("minio",)}),
    "scheduled": ({"schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berlin"}}, {}, {"labels": {"team": "search"}}),
    "queued": ({}, {}, {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}, "mounts": (Mount("corpora", "/data"),)}),
    "on the CPU": (
        {"resources": {"accelerator": "cpu"}},
        {"accelerator": "cpu", "num_gpus": 0, "tensor_parallel": 1},
        {"nodes": "eks"},
    ),
    "on AMD": ({}, {"accelerator": "MI300X"}, {"node_selector": {"amd.com/gpu.family": "AI"}}),
}  # fmt: skip


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    sections, plan, options = EXAMPLES[request.param]
    return manifests(remote_spec(**sections), make_plan(**plan), Options(**options))


def test_kubernetes_takes_every_object_and_every_pod(example):
    for document in example:
        require_core(document)
    assert len(list(pod_templates(example[-1]))) == 3, "head, workers, submitter"


@pytest.mark.skipif(not CRDS.is_dir(), reason="needs KubeRay's CRDs: see BATCHINFER_KUBERAY_CRDS in CONTRIBUTING.md")
def test_kuberay_takes_the_job(example):
    require_custom(example[-1])


def test_the_schema_checks_find_mistakes():
    job = rendered(remote_spec())
    group_of(job)["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        require_core(job)
    if CRDS.is_dir():
        job = rendered(remote_spec())
        cluster_of(job)["workerGroupSpec"] = []
        with pytest.raises(jsonschema.ValidationError):
            require_custom(job)


def test_the_yaml_holds_the_same_objects_and_no_aliases(example):
    text = dump(example)
    assert list(yaml.safe_load_all(text)) == example
    assert not re.search(r"^\s*(- )?[\w./-]+: [&*]", text, re.MULTILINE)


def test_a_replica_is_a_pod_with_its_gpus():
    job = rendered(remote_spec(), plan={"tensor_parallel": 4, "num_gpus": 4, "min_replicas": 3, "max_replicas": 3})
    group = group_of(job)
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"], group["numOfHosts"]) == (3, 3, 3, 1)
    assert limits_of(pod_of(job))["nvidia.com/gpu"] == "4"
    assert cluster_of(job)["enableInTreeAutoscaling"] is False


def test_a_replica_over_nodes_is_as_many_pods_with_whole_tensor_parallel_groups():
    job = rendered(
        remote_spec(),
        plan={"tensor_parallel": 8, "pipeline_parallel": 2, "num_gpus": 16, "nodes_per_replica": 2, "max_replicas": 2,
              "min_replicas": 2},
    )  # fmt: skip
    assert group_of(job)["numOfHosts"] == 2
    assert limits_of(pod_of(job))["nvidia.com/gpu"] == "8"
    three = {"tensor_parallel": 4, "pipeline_parallel": 3, "num_gpus": 12, "nodes_per_replica": 2}
    assert limits_of(pod_of(rendered(remote_spec(), plan=three)))["nvidia.com/gpu"] == "8", "two stages, then one"


@settings(deadline=None, max_examples=50)
@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.integers(1, 6),
    nodes=st.integers(1, 6),
    low=st.integers(1, 4),
    more=st.integers(0, 4),
)
def test_the_pods_of_a_replica_hold_its_gpus_and_tear_no_group(tensor, pipeline, nodes, low, more):
    nodes = min(nodes, pipeline)
    plan = {
        "tensor_parallel": tensor, "pipeline_parallel": pipeline, "num_gpus": tensor * pipeline,
        "nodes_per_replica": nodes, "min_replicas": low, "max_replicas": low + more,
    }  # fmt: skip
    job = rendered(remote_spec(), plan=plan)
    group, gpus = group_of(job), int(limits_of(pod_of(job))["nvidia.com/gpu"])
    assert gpus % tensor == 0
    assert gpus * group["numOfHosts"] >= tensor * pipeline
    assert (gpus - tensor) * group["numOfHosts"] < tensor * pipeline, "no group more than it takes"
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (low, low, low + more)
    assert cluster_of(job)["enableInTreeAutoscaling"] is (more > 0)


def test_the_run_on_the_pods_is_held_to_the_layout_that_they_were_made_for():
    plan = make_plan(tensor_parallel=4, pipeline_parallel=2, num_gpus=8, min_replicas=2, max_replicas=2)
    config, _, job = manifests(remote_spec(), plan, Options())
    spec = parse(config["data"]["job.yaml"])
    resources = spec.resources
    assert (resources.accelerator, resources.replicas) == ("H100", 2)
    assert (resources.tensor_parallel, resources.pipeline_parallel) == (4, 2)
    assert spec.input == remote_spec().input
    head = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    (mount,) = head["containers"][0]["volumeMounts"]
    assert job["spec"]["entrypoint"] == f"python -m {ENTRYPOINT} run {mount['mountPath']}/job.yaml"
    assert head["volumes"] == [{"name": "spec", "configMap": {"name": config["metadata"]["name"]}}]


def test_a_range_of_replicas_stays_one():
    spec = remote_spec(resources={"accelerator": "H100", "replicas": {"min": 1, "max": 5}})
    assert pin(spec, make_plan(max_replicas=5)).resources.replicas == spec.resources.replicas


def test_a_schedule_becomes_a_cron_job_in_its_time_zone():
    job = rendered(remote_spec(schedule={"cron": "30 1 * * 1-5", "timezone": "America/New_York"}))
    assert (job["kind"], job["spec"]["schedule"]) == ("RayCronJob", "30 1 * * 1-5")
    assert job["spec"]["timeZone"] == "America/New_York"
    assert rendered(remote_spec())["kind"] == "RayJob"


def test_a_cron_job_runs_what_is_due_and_a_second_one_covers_the_changes_of_the_clock():
    spec = remote_spec(schedule={"cron": "0 2 * * *", "timezone": "Europe/Berlin"})
    *_, clock, job = manifests(spec, make_plan(), Options())
    assert [each["spec"]["schedule"] for each in (job, clock)] == ["0 2 * * *", "0 3 25-31 3 *"]
    assert job["metadata"]["name"] != clock["metadata"]["name"]
    assert job["spec"]["jobTemplate"] == clock["spec"]["jobTemplate"]
    assert job["spec"]["jobTemplate"]["entrypoint"] == f"python -m {ENTRYPOINT} schedule run-due {SPEC_FOLDER}/job.yaml"
    assert importlib.util.find_spec(ENTRYPOINT)


def test_no_service_of_the_namespace_sets_variables_in_the_pods(example):
    for template in pod_templates(example[-1]):
        assert template["spec"]["enableServiceLinks"] is False


def test_what_ended_is_cleared_away_and_a_spent_budget_is_not_spent_again():
    spec = rendered(remote_spec())["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] == 1
    assert rendered(remote_spec(limits={"max_cost_usd": 5}))["spec"]["backoffLimit"] == 0
    assert rendered(remote_spec(limits={"max_runtime_hours": 5}))["spec"]["backoffLimit"] == 0


def test_secrets_are_named_and_never_held(example):
    text = dump(example)
    assert not re.search(r"(?i)(token|key|password)\s*:\s*(hf_|AKIA)", text)
    for template in pod_templates(example[-1]):
        for container in template["spec"]["containers"]:
            env = {entry["name"]: entry for entry in container["env"]}
            assert set(env["HF_TOKEN"]) == {"name", "valueFrom"}
            assert "RAY_AUTH_TOKEN" not in env, "KubeRay gives it"
            assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))
    assert cluster_of(example[-1])["authOptions"] == {"mode": "token"}


def test_pods_run_without_rights(example):
    for template in pod_templates(example[-1]):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"]["cpu"]
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from(["team", "app.kubernetes.io/instance", "app.kubernetes.io/name", "example.com/app", "app"]),
        st.sampled_from(["batchinfer", "other", ""]),
    )
)
def test_no_label_that_is_taken_opens_the_ports(labels):
    try:
        options = Options(labels=labels)
    except UserError:
        return
    _, policy, job = manifests(remote_spec(), make_plan(), options)
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(chosen <= template["metadata"]["labels"].items() for template in pod_templates(job))


def test_every_pod_is_under_the_network_policy(example):
    _, policy, *_, job = example
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    for template in pod_templates(job):
        assert chosen <= template["metadata"]["labels"].items()
    everywhere = [rule for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert everywhere == []
    open_to_others = [rule for rule in policy["spec"]["ingress"] if "ports" in rule]
    assert [port["port"] for rule in open_to_others for port in rule["ports"]] == [8265, 8080]


def test_gpus_are_found_by_the_labels_of_the_cluster():
    assert pod_of(rendered(remote_spec()))["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    gke = accelerator_terms(pod_of(rendered(remote_spec(), nodes="gke")))
    assert gke == [{"cloud.google.com/gke-accelerator": ("In", ["nvidia-h100-80gb", "nvidia-h100-mega-80gb"])}]
    eks = accelerator_terms(pod_of(rendered(remote_spec(), nodes="eks")))
    assert eks == [{"node.kubernetes.io/instance-type": ("In", ["p5.4xlarge", "p5.48xlarge"])}]
    own = pod_of(rendered(remote_spec(), node_selector={"pool": "big"}))
    assert own["nodeSelector"] == {"pool": "big"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in own["tolerations"]


def test_workers_go_on_spot_and_the_head_keeps_off_it():
    job = rendered(remote_spec(), nodes="eks", spot=True)
    assert [term.keys() - {"node.kubernetes.io/instance-type"} for term in accelerator_terms(pod_of(job))] == [
        {"karpenter.sh/capacity-type"},
        {"eks.amazonaws.com/capacityType"},
    ]
    head = cluster_of(job)["headGroupSpec"]["template"]["spec"]
    assert accelerator_terms(head) == [
        {"karpenter.sh/capacity-type": ("NotIn", ["spot"]), "eks.amazonaws.com/capacityType": ("NotIn", ["SPOT"])}
    ]
    gke = pod_of(rendered(remote_spec(), nodes="gke", spot=True, plan={"accelerator": "L4"}))
    assert gke["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-spot": "true",
    }


def test_processes_of_a_replica_can_share_memory():
    pod = pod_of(rendered(remote_spec()))
    (shm,) = [volume for volume in pod["volumes"] if volume["emptyDir"].get("medium") == "Memory"]
    assert {"name": shm["name"], "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    assert int(shm["emptyDir"]["sizeLimit"][:-2]) < int(limits_of(pod)["memory"][:-2])


def test_a_worker_has_room_for_the_weights_it_downloads():
    def disk(**plan: Any) -> int:
        return int(limits_of(pod_of(rendered(remote_spec(), plan=plan)))["ephemeral-storage"][:-2])

    weights = {"weight_bytes_per_gpu": 35 * 2**30, "num_gpus": 4, "tensor_parallel": 4}
    assert disk(**weights) - disk() == 140
    assert disk(**weights, online=True) - disk() == 280, "downloaded in 16 bits"


def test_images_are_fixed():
    assert "latest" not in dump(manifests(remote_spec(), make_plan(), Options()))
    images = {c["image"] for t in pod_templates(rendered(remote_spec())) for c in t["spec"]["containers"]}
    assert len(images) == 1
    assert re.fullmatch(r"batchinfer:\d+\.\d+\.\d+-gpu", images.pop())
    for image in ("batchinfer", "batchinfer:latest", "localhost:5000/batchinfer", "a b:1"):
        with pytest.raises(UserError, match="--image"):
            Options(image=image)
    for image in ("localhost:5000/batchinfer:1", "batchinfer@sha256:" + "0" * 64):
        assert Options(image=image).image_for("H100") == image


@pytest.mark.parametrize(
    ("sections", "plan", "options", "error"),
    [
        ({}, {"accelerator": "B300"}, {"nodes": "gke"}, "no label for gke nodes with B300"),
        ({}, {}, {"spot": True}, "no label that marks spot"),
        ({"schedule": {"cron": "0 2 * * *"}}, {}, {"labels": {"kueue.x-k8s.io/queue-name": "q"}}, "does not reach"),
        ({}, {}, {"labels": {"team": "search & ads"}}, "--label team=search & ads is not a valid Kubernetes label"),
        ({}, {}, {"namespace": "My_Team"}, "--namespace"),
        ({}, {}, {"namespace": "a.b"}, "--namespace"),
        ({}, {}, {"service_account": "a..b"}, "--service-account"),
        ({}, {}, {"env_secrets": ("a.-b",)}, "--env-secret"),
        ({}, {}, {"image": "registry.example.com/Batchinfer:1"}, "is not an image name"),
        ({}, {}, {"labels": {"a..b/team": "x"}}, "is not a valid Kubernetes label key"),
        ({}, {}, {"labels": {"app.kubernetes.io/instance": "other"}}, "is reserved"),
        ({}, {}, {"labels": {"ray.io/cluster": "other"}}, "is reserved"),
        ({}, {}, {"labels": {"batchinfer/dashboard-client": "true"}}, "is reserved"),
        ({}, {}, {"mounts": (Mount("a", "/data"), Mount("b", "/data"))}, "two --mount name the folder /data"),
        ({"prompt": {"template": "x" * 1_100_000 + "{{ text }}"}}, {}, {}, "longer than 1,048,576"),
    ],
)
def test_what_kubernetes_or_kuberay_would_not_do_is_said_here(sections, plan, options, error):
    with pytest.raises(UserError, match=error):
        manifests(remote_spec(**sections), make_plan(**plan), Options(**options))


@pytest.mark.parametrize(
    "mount",
    ["c=/data:rw", "c=/home/ray/.cache", "c=/home", "c=/etc/batchinfer", "c=/etc", "c=/dev/shm", "c=/data/../etc",
     "c=//data", "c=/", "c=data", "C=/data", "a..b=/data", "c=/data//in"],
)  # fmt: skip
def test_a_mount_that_a_pod_cannot_have_is_refused(mount):
    with pytest.raises(UserError, match="--mount"):
        Mount.parse(mount)


def test_a_place_that_leaves_its_mount_is_a_place_of_this_machine():
    mount = Mount.parse("corpora=/data/")
    assert mount == Mount("corpora", "/data")
    assert mount.holds("/data/in")
    assert not mount.holds("/data/../etc")
    assert not mount.holds("/database")


_OTHER_READERS = re.compile(
    r"""~|null|Null|NULL|y|Y|n|N|yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF
    |[-+]?0b[01_]+|[-+]?0o?[0-7_]+|[-+]?0x[0-9a-fA-F_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])*
    |[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*
    |[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)|=|<<
    |[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt\s].*)?""",
    re.VERBOSE,
)
"""What a reader may take for another type than a text if it is not quoted: the types of YAML 1.1 (yaml.org/type) and
the core schema of YAML 1.2.2, section 10.3.2."""

NUMERALS = st.from_regex(r"[-+]?[0-9.][0-9a-zA-Z_.:+-]{0,8}", fullmatch=True)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(NUMERALS, st.sampled_from(["y", "n", "NO", "0o17", "12e45", "089", "1e3", "~", "=", "1:30"]), st.text())
)
def test_a_text_stays_a_text_for_every_reader_of_yaml(text):
    written = dump([{"labels": {"key": text, text: "value"}}])
    if "\0" not in text and text.isprintable():
        assert yaml.safe_load(written) == {"labels": {"key": text} | {text: "value"}}
    for event in yaml.parse(written):
        if isinstance(event, yaml.ScalarEvent) and event.style is None:
            assert not _OTHER_READERS.fullmatch(event.value), event.value


@settings(deadline=None)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True))
def test_every_job_name_gives_a_name_that_kubernetes_and_kuberay_take(name):
    made = object_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= LONGEST_NAME
    assert made == name or re.search(r"-[0-9a-f]{6}$", made), "two jobs do not get one name"


def test_places_of_this_machine_are_refused_unless_a_volume_has_them(tmp_path):
    spec = make_spec(
        input={"uri": str(tmp_path / "in")},
        output={"uri": str(tmp_path / "out")},
        resources={"accelerator": "cpu"},
    )
    with pytest.raises(SpecError, match=r"input\.uri is .*which pods cannot see"):
        render_job(spec, Options(), sample=False)
    job = render_job(spec, Options(mounts=(Mount("shared", str(tmp_path)),)), sample=False)[-1]
    for template in pod_templates(cluster_of(job)):
        assert {"name": "mount-0", "persistentVolumeClaim": {"claimName": "shared"}} in template["spec"]["volumes"]


def test_an_accelerator_must_be_named():
    with pytest.raises(ResourceError, match="is auto"):
        render_job(make_spec(**REMOTE), Options(), sample=False)


def test_a_sample_of_the_input_gives_time_and_cost(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": [*range(500)], "text": ["word " * 300] * 500}), tmp_path / "in" / "a.parquet")
    spec = make_spec(
        model={"source": "llama-3.1-8b"},
        input={"uri": str(tmp_path / "in"), "id_column": "id"},
        output={"uri": str(tmp_path / "out")},
        resources={"accelerator": "L40S", "replicas": 2},
    )
    options = Options(mounts=(Mount("shared", str(tmp_path)),))
    about = render_job(spec, options)[-1]["metadata"]["annotations"]
    assert re.search(r"^[\d.e-]+ h \(.*\), \$", about["batchinfer/estimate"])
    assert "batchinfer/estimate" not in render_job(spec, options, sample=False)[-1]["metadata"]["annotations"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", REMOTE_JOBS, ids=lambda path: path.stem)
def test_every_example_job_renders_for_each_cloud_that_has_its_gpus(path):
    spec = load(str(path), [])
    having = [name for name, known in node_labels().items() if spec.resources.accelerator in known.values]
    assert "gpu-operator" in having
    for nodes in having:
        documents = render_job(spec, Options(nodes=nodes), sample=False)
        for document in documents:
            require_core(document)
        if CRDS.is_dir():
            require_custom(documents[-1])


def test_the_command_prints_the_yaml_and_nothing_else(tmp_path):
    def render(*arguments: str) -> subprocess.CompletedProcess[str]:
        return forked("render", *arguments, cwd=ROOT)

    done = render("jobs/review-70b.yaml", "--for", "k8s", "--no-sample", "--label", "team=legal", "--nodes", "gke")
    assert (done.returncode, done.stderr) == (0, "")
    documents = list(yaml.safe_load_all(done.stdout))
    assert [document["kind"] for document in documents] == ["ConfigMap", "NetworkPolicy", "RayJob"]
    assert documents[-1]["metadata"]["labels"]["team"] == "legal"
    assert limits_of(pod_of(documents[-1]))["nvidia.com/gpu"] == "4"

    for arguments, message in [
        (("jobs/review-70b.yaml", "--for", "k8s", "--no-sample", "--mount", "data"), "is not CLAIM=/folder"),
        (("jobs/review-70b.yaml", "--for", "k8s", "--no-sample", "--label", "team"), "is not KEY=VALUE"),
        (("jobs/review-70b.yaml", "--for", "nomad"), "nomad"),
        (("jobs/demo.yaml", "--for", "k8s"), "is auto"),
    ]:
        done = render(*arguments)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)
        assert message in done.stderr
