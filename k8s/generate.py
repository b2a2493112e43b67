"""Write the examples in this folder that `batchinfer render` makes: python k8s/generate.py.

rayjob.yaml is jobs/review-70b.yaml, raycronjob.yaml is jobs/summarize.yaml. A test compares them with what this
writes.
"""

from __future__ import annotations

from pathlib import Path

from batchinfer.deploy.kubernetes import Options, dump, render_job
from batchinfer.jobspec import load

FOLDER = Path(__file__).parent
IMAGE = "registry.example.com/batchinfer:0.1.0-gpu"
EXAMPLES = {
    "rayjob": ("review-70b", Options(image=IMAGE, namespace="batch", nodes="gke", labels={"team": "legal"})),
    "raycronjob": ("summarize", Options(image=IMAGE, namespace="batch", nodes="eks", spot=True)),
}


def example_text(name: str) -> str:
    """The example as it stands in its file."""
    job, options = EXAMPLES[name]
    cloud = f"--nodes {options.nodes}" + (" --spot" if options.spot else "")
    labels = "".join(f" --label {key}={value}" for key, value in options.labels.items())
    command = f"batchinfer render jobs/{job}.yaml --for k8s --no-sample --namespace {options.namespace} {cloud}{labels}"
    head = f"# Made by k8s/generate.py: {command} \\\n#   --image {options.image}\n"
    return head + dump(render_job(load(str(FOLDER.parent / "jobs" / f"{job}.yaml"), []), options, sample=False))


def main() -> None:
    """Write every example."""
    for name in EXAMPLES:
        (FOLDER / f"{name}.yaml").write_text(example_text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
