"""Which weights a model has: a name that is the same wherever the model lies, and another for any other weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from batchinfer.jobspec import SCRIPTED, ModelSpec
from batchinfer.model.resolve import model_facts
from batchinfer.storage import local_path

_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/?$")
"""The end of a repository's folder in the hub's local cache: the commit names all that is in it."""

_READERS = 4
"""Files that are hashed at once. One cannot keep up with a disk; many more slow down the load that runs beside."""


def fingerprint(source: str, revision: str | None) -> str | None:
    """A text that names the files of a model, an adapter or a tokenizer; None if they are not on this machine.

    A folder is read whole: a file that is trained on keeps its name, its size and most of its bytes.
    """
    if source == SCRIPTED:
        return SCRIPTED
    path = local_path(source)
    folder = path if os.path.isdir(path) else model_facts(ModelSpec(source=source, revision=revision)).folder
    if folder is None:
        return None
    commit = _SNAPSHOT.search(folder)
    if commit is not None and folder != path:
        return f"{source}@{commit[1]}"
    files = sorted(_files(folder))
    with ThreadPoolExecutor(_READERS) as pool:
        hashes = list(pool.map(lambda name: _hash(os.path.join(folder, name)), files))
    return hashlib.sha256(json.dumps([files, hashes]).encode()).hexdigest()


def _files(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), folder)


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
