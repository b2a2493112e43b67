"""`batchinfer render`: the job as manifests for Kubernetes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from batchinfer.cli.app import Overrides, SpecPath, app

Repeated = list[str] | None

Target = Annotated[Literal["k8s"], typer.Option("--for", help="What to render for: k8s, a cluster with KubeRay.")]
Image = Annotated[
    str, typer.Option(help="Container image with a fixed tag or digest. Default: batchinfer:VERSION-gpu or -cpu.")
]
Namespace = Annotated[str, typer.Option(help="Namespace of the objects.")]
Labelled = Annotated[
    Literal["gpu-operator", "gke", "eks"],
    typer.Option("--nodes", help="Whose node labels name the GPU: gpu-operator, gke or eks."),
]
Spot = Annotated[bool, typer.Option("--spot", help="Run workers on spot capacity, and the head on regular capacity.")]
Account = Annotated[str, typer.Option(help="ServiceAccount of the pods. It needs read and write access to the bucket.")]
Selector = Annotated[
    Repeated,
    typer.Option(
        "--node-selector", metavar="KEY=VALUE", help="Select nodes by this label instead of the GPU's. Repeatable."
    ),
]
Label = Annotated[
    Repeated,
    typer.Option(
        "--label", metavar="KEY=VALUE", help="Label of the job and its pods, such as a queue or a team. Repeatable."
    ),
]
Volume = Annotated[
    Repeated,
    typer.Option("--mount", metavar="CLAIM=/FOLDER", help="Mount this volume claim into every pod. Repeatable."),
]
Secrets = Annotated[
    Repeated,
    typer.Option("--env-secret", metavar="NAME", help="Secret whose keys become environment variables. Repeatable."),
]
Sample = Annotated[
    bool,
    typer.Option(
        "--sample/--no-sample", help="Sample the input for the plan. --no-sample needs no access to the input."
    ),
]


@app.command()
def render(
    spec: SpecPath,
    target: Target,
    overrides: Overrides = None,
    image: Image = "",
    namespace: Namespace = "default",
    nodes: Labelled = "gpu-operator",
    spot: Spot = False,
    service_account: Account = "batchinfer",
    node_selector: Selector = None,
    labels: Label = None,
    mounts: Volume = None,
    env_secrets: Secrets = None,
    sample: Sample = True,
) -> None:
    """Print the planned job as a RayJob, or as a RayCronJob if it has a schedule; start nothing."""
    from batchinfer.deploy.kubernetes import Mount, Options, dump, render_job
    from batchinfer.jobspec import key_values, load

    options = Options(
        image=image,
        namespace=namespace,
        nodes=nodes,
        spot=spot,
        service_account=service_account,
        node_selector=dict(key_values("--node-selector", node_selector or [], "pool=gpu")),
        labels=dict(key_values("--label", labels or [], "team=search")),
        mounts=tuple(Mount.parse(text) for text in mounts or []),
        env_secrets=tuple(env_secrets or []),
    )
    print(dump(render_job(load(spec, overrides or []), options, sample)), end="")
