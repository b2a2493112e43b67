"""The options of `batchinfer render`: image, cluster, capacity. All are checked here."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field
from typing import Literal

from batchinfer import __version__
from batchinfer.errors import UserError

Nodes = Literal["gpu-operator", "gke", "eks"]

SPEC_FOLDER = "/etc/batchinfer"
HOME = "/home/ray"
"""Of the user in the image; models are kept below it."""

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
"""The rules of k8s.io/apimachinery `validation.go`: IsDNS1123Label, IsDNS1123Subdomain, IsValidLabelValue,
IsQualifiedName."""

_HOST = r"(?:[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?)*(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)
"""An image's name by the rules of distribution/reference: lower case after the registry's host."""

RESERVED_LABELS = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
)
"""Labels by which the NetworkPolicy selects the pods. Another value would leave Ray's ports open."""

_RESERVED_PREFIXES = ("ray.io/", "batchinfer/")

TAKEN_FOLDERS = (SPEC_FOLDER, HOME, "/dev", "/proc", "/sys", "/etc", "/usr", "/bin", "/lib", "/sbin")
"""Folders that the pods need: the spec, downloaded models, shared memory, the image's programs. A volume there would
hide them."""


def _is_subdomain(text: str) -> bool:
    return len(text) <= 253 and bool(_DNS_SUBDOMAIN.fullmatch(text))


@dataclass(frozen=True, slots=True)
class Mount:
    """A PersistentVolumeClaim, and the folder at which every pod mounts it."""

    claim: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Mount:
        """The mount for the text CLAIM=/folder. Raises UserError."""
        claim, _, path = text.partition("=")
        plain = path == posixpath.normpath(path) or path == posixpath.normpath(path) + "/"
        if not _is_subdomain(claim) or not path.startswith("/") or path.startswith("//") or path == "/" or not plain:
            raise UserError(f"--mount {text!r} is not CLAIM=/folder", "write for example --mount corpora=/data")
        if ":" in path:
            raise UserError(
                f"--mount {text!r}: a folder in a pod may have no colon", "write for example --mount corpora=/data"
            )
        made = cls(claim, path.rstrip("/"))
        taken = next((f for f in TAKEN_FOLDERS if made.holds(f) or cls("", f).holds(made.path)), None)
        if taken is not None:
            raise UserError(f"--mount {text!r} would hide {taken} of the pods", "use a folder of its own, as /data")
        return made

    def holds(self, uri: str) -> bool:
        """Whether the local path `uri` lies in the folder."""
        place = posixpath.normpath(uri)
        return place == self.path or place.startswith(self.path + "/")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a job on Kubernetes. `image` empty: the image of this version from k8s/Dockerfile.

    nodes: the kind of GPU labels on the nodes (catalog/nodes.yaml); node_selector: labels instead of these.
    labels: labels of the job and its pods, such as a queue or a team. env_secrets: Secrets whose keys become
    environment variables. service_account: the name of an existing ServiceAccount. Raises UserError for values that
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
        if not _DNS_LABEL.fullmatch(self.namespace):
            raise UserError(
                f"--namespace {self.namespace!r} is not a valid Kubernetes name", "use up to 63 of a-z, 0-9 and dashes"
            )
        for option, values in (("--service-account", (self.service_account,)), ("--env-secret", self.env_secrets)):
            for value in values:
                if not _is_subdomain(value):
                    raise UserError(f"{option} {value!r} is not a valid Kubernetes name", "use a-z, 0-9 and dashes")
        for option, pairs in (("--label", self.labels), ("--node-selector", self.node_selector)):
            for key, value in pairs.items():
                prefix, slash, name = key.rpartition("/")
                if (slash and not _is_subdomain(prefix)) or not _LABEL_NAME.fullmatch(name):
                    raise UserError(
                        f"{option} {key}={value}: {key!r} is not a valid Kubernetes label key",
                        "write for example team=search or example.com/team=search",
                    )
                if not _LABEL_VALUE.fullmatch(value):
                    raise UserError(
                        f"{option} {key}={value} is not a valid Kubernetes label",
                        "a value has up to 63 letters, digits, dashes, dots and underscores",
                    )
        for key in self.labels:
            if key in RESERVED_LABELS or key.startswith(_RESERVED_PREFIXES):
                raise UserError(
                    f"--label {key} is reserved: by such labels the NetworkPolicy and KubeRay find the pods",
                    "choose another key, as team or example.com/team",
                )
        folders = [mount.path for mount in self.mounts]
        twice = next((path for path in folders if folders.count(path) > 1), None)
        if twice is not None:
            raise UserError(f"two --mount name the folder {twice}", "give each volume a folder of its own")

    def image_for(self, accelerator: str) -> str:
        """The image to run on the accelerator."""
        return self.image or f"batchinfer:{__version__}-{'cpu' if accelerator == 'cpu' else 'gpu'}"


def _require_fixed(image: str) -> None:
    """Raise UserError unless the image has a fixed tag or digest: a resumed job must run the same image."""
    name = image.rpartition("/")[2]
    if re.search(r"\s", image):
        raise UserError(f"--image {image!r} holds blanks", "give one image, as registry.example.com/batchinfer:1.2-gpu")
    if not _IMAGE.fullmatch(image):
        raise UserError(
            f"--image {image!r} is not an image name",
            "write it in lower case, as registry.example.com/batchinfer:1.2",
        )
    if "@sha256:" not in image and (":" not in name or name.endswith((":latest", ":"))):
        raise UserError(
            f"--image {image!r} names no fixed version: what it is changes between two pods",
            "give a tag other than latest, or a digest",
        )
