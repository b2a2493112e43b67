"""Write constraints.txt: the installed release of each package that the extras of pyproject.toml need, and no other.

`make lock` runs it. A package that somebody installed to try something is not locked.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent

LEFT_OUT = ("apache-tvm-ffi",)
"""The GPU build of vLLM pins another release of it than the CPU build, and both extras share the file."""


def needed(wanted: Iterable[Requirement]) -> dict[str, metadata.Distribution]:
    """The installed packages that `wanted` and their own requirements name, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting, seen = list(wanted), set()
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if (name, frozenset(one.extras)) in seen:
            continue
        seen.add((name, frozenset(one.extras)))
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            # Of the extra for the other kind of machine, or taken out by the Makefile.
            continue
        for text in found[name].requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                waiting.append(inner)
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    found = needed(map(Requirement, [*project["dependencies"], *extras]))
    # A build's local version (`+cpu`) stays out: the other extra has another.
    lines = [f"{one.name}=={one.version.partition('+')[0]}" for name, one in found.items() if name not in LEFT_OUT]
    header = "# Made by `make lock`: the releases that the suite passed with."
    (ROOT / "constraints.txt").write_text("\n".join([header, *sorted(lines, key=str.lower), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
