"""The splits of a dataset: which files of a folder belong to the one that the job reads.

Three layouts are known: `save_to_disk` of Hugging Face's datasets, with one split (`state.json`) or several
(`dataset_dict.json`), and a repository of the Hub, whose files or folders have the names of the splits.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from batchinfer.errors import InputError

_DICT, _STATE = "dataset_dict.json", "state.json"

_USUAL = ("train", "test", "validation", "valid", "val", "dev", "eval", "unsupervised")
"""Names that a file or a folder has only if it is a split. Others count only in names as `mine-00000-of-00002`."""


def split_of(name: str) -> str | None:
    """The split that a file below a dataset's folder belongs to, by its name, otherwise by its folder."""
    folder, file = posixpath.split(name)
    told = re.match(r"(.+?)-\d{5}-of-\d{5}", file)
    stem = told[1] if told else file.partition(".")[0]
    if told and stem not in ("data", "part"):
        return stem
    return next((part for part in (stem, posixpath.basename(folder)) if part in _USUAL), None)


def chosen_files(
    root: str, names: Collection[str], suffixes: tuple[str, ...], split: str | None, read: Callable[[str], bytes]
) -> frozenset[str] | None:
    """The files of the split, by their names below `root`; None if the folder is no dataset with splits.

    `read`: the content of a file below `root`. Raises InputError for a split that is not there, and for several of
    which none is chosen.
    """
    if _STATE in names:
        if split is not None:
            raise InputError(f"{root} holds one split, which is not named there", "leave input.split out")
        return _saved(root, "", read)
    if _DICT in names:
        told = _document(root, _DICT, read).get("splits")
        by = {str(one): frozenset({str(one)}) for one in told} if isinstance(told, list) else {}
        one = _choose(root, by, split)
        return _saved(root, f"{one}/", read)
    found: dict[str, set[str]] = {}
    for name in names:
        of = split_of(name) if name.lower().endswith(suffixes) else None
        if of is not None:
            found.setdefault(of, set()).add(name)
    if split is None and ("train" not in found or len(found) == 1):
        return None
    files = found[_choose(root, found, split)]
    folders = sorted({posixpath.dirname(name) for name in files})
    if len(folders) > 1:
        raise InputError(
            f"{root} has the split {split} in {len(folders)} folders: {', '.join(folders[:20])}",
            "set input.uri to one of them",
        )
    return frozenset(files)


def _choose(root: str, there: Mapping[str, Collection[str]], split: str | None) -> str:
    if split is None and len(there) == 1:
        return next(iter(there))
    if split in there:
        return str(split)
    named = ", ".join(sorted(there)) or "none"
    what = f"has no split {split!r}" if split is not None else "is a dataset of several splits"
    raise InputError(f"{root} {what}; its splits: {named}", "choose one of them with input.split")


def _saved(root: str, folder: str, read: Callable[[str], bytes]) -> frozenset[str]:
    """The files that `state.json` lists: other Arrow files beside them are caches."""
    listed = _document(root, f"{folder}{_STATE}", read).get("_data_files")
    try:
        return frozenset(f"{folder}{one['filename']}" for one in listed or ())
    except (TypeError, KeyError):
        raise InputError(f"{root}/{folder}{_STATE} lists no files", "save the dataset again") from None


def _document(root: str, name: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        found = json.loads(read(name))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{root}/{name} is no JSON object", "save the dataset again with save_to_disk")
    return found
