"""What the person who renders says beside the spec: image, cluster, capacity. Checked here, all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from batchinfer import __version__
from batchinfer.errors import UserError

Nodes = Literal["gpu-operator", "gke", "eks"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Mount:
    """A PersistentVolumeClaim, and the folder at which every pod sees it."""

    claim: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Mount:
        """Of CLAIM=/folder. Raises UserError."""
        claim, _, path = text.partition("=")
        if not _NAME.fullmatch(claim) or not path.startswith("/") or path == "/":
            raise UserError(f"--mount {text!r} is not CLAIM=/folder", "write for example --mount corpora=/data")
        return cls(claim, path.rstrip("/"))

    def holds(self, uri: str) -> bool:
        """Whether the local path `uri` lies in the folder."""
        return uri == self.path or uri.startswith(self.path + "/")


@dataclass(frozen=True, slots=True)
class Options:
    """How to run on Kubernetes. `image` empty: the one that k8s/Dockerfile makes, of this version.

    nodes: who labels the nodes with their GPU (catalog/nodes.yaml); node_selector: labels instead of those.
    labels: on the job and its pods, such as a queue's or a team's. env_secrets: Secrets whose keys become
    environment variables. service_account: its name, which must exist. Raises UserError for what
    Kubernetes would refuse.
    """

    image: str = ""
    namespace: str = "default"
    nodes: Nodes = "gpu-operator"
    spot: bool = False
    service_account: str = "batchinfer"
    node_selector: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    env_secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.image:
            _require_fixed(self.image)
        names = {"--namespace": [self.namespace], "--service-account": [self.service_account]}
        for option, values in (names | {"--env-secret": list(self.env_secrets)}).items():
            for value in values:
                if not _NAME.fullmatch(value) or len(value) > (63 if option == "--namespace" else 253):
                    raise UserError(f"{option} {value!r} is no name for Kubernetes", "use a-z, 0-9 and dashes")
        for option, pairs in (("--label", self.labels), ("--node-selector", self.node_selector)):
            for key, value in pairs.items():
                if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                    raise UserError(
                        f"{option} {key}={value} is no label for Kubernetes",
                        "a value has up to 63 letters, digits, dashes, dots and underscores",
                    )

    def image_for(self, accelerator: str) -> str:
        """The image to run on the accelerator."""
        return self.image or f"batchinfer:{__version__}-{'cpu' if accelerator == 'cpu' else 'gpu'}"


def _require_fixed(image: str) -> None:
    """A job that goes on tomorrow must go on with the same image."""
    name = image.rpartition("/")[2]
    if re.search(r"\s", image):
        raise UserError(f"--image {image!r} holds blanks", "give one image, as registry.example.com/batchinfer:1.2-gpu")
    if "@sha256:" not in image and (":" not in name or name.endswith((":latest", ":"))):
        raise UserError(
            f"--image {image!r} names no fixed version: what it is changes between two pods",
            "give a tag other than latest, or a digest",
        )
