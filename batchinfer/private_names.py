"""Names of other packages that are not part of their public interface, looked up at start.

Such a name may move with any release. One that is gone is an error at start, with the name and the release that
batchinfer was made for; a default in its place would turn a rename into a fault that is found much later.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from batchinfer.errors import WrongRelease


@dataclass(frozen=True, slots=True)
class Release:
    """The release of a package whose private names are used."""

    module: str
    """The name that is imported."""
    version: str
    """The release that this code was made for; pyproject.toml pins the same one."""
    distributions: tuple[str, ...]
    """The names under which it is installed."""

    def name(self, path: str) -> Any:
        """What `path` ("package.module:attribute.attribute") is; raises WrongRelease when it is gone."""
        module, _, attributes = path.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for attribute in attributes.split(".") if attributes else ():
                found = getattr(found, attribute)
        except (ImportError, AttributeError) as error:
            raise self.lacks(path.replace(":", ".")) from error
        return found

    def attribute(self, owner: Any, name: str) -> Any:
        """The attribute `name` of an object of the package; raises WrongRelease when it is gone."""
        try:
            return getattr(owner, name)
        except AttributeError as error:
            raise self.lacks(f"{type(owner).__module__}.{type(owner).__name__}.{name}") from error

    def lacks(self, name: str) -> WrongRelease:
        """The error for a name that is gone."""
        return WrongRelease(
            f"{self.module} {self._installed()} has no {name}, which batchinfer uses in {self.module} {self.version}",
            f"install {self.distributions[0]}=={self.version}",
        )

    def _installed(self) -> str:
        for distribution in self.distributions:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        return "of an unknown release"
