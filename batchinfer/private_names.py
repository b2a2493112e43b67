"""Names of other packages that are not part of their public interface, looked up at start.

Any release may move such a name. A missing name is an error at start, which says the name and the release that
batchinfer was made for. With a default instead, a renamed name would cause a fault much later.
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
    """The name of the imported package."""
    version: str
    """The release that this code was made for; pyproject.toml pins the same one."""
    distributions: tuple[str, ...]
    """The names under which the package may be installed."""

    def name(self, path: str) -> Any:
        """The object at `path` ("package.module:attribute.attribute"); raises WrongRelease if it is missing."""
        module, _, attributes = path.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for attribute in attributes.split(".") if attributes else ():
                found = getattr(found, attribute)
        except (ImportError, AttributeError) as error:
            raise self.lacks(path.replace(":", ".")) from error
        return found

    def attribute(self, owner: Any, name: str) -> Any:
        """The attribute `name` of an object of the package; raises WrongRelease if it is missing."""
        try:
            return getattr(owner, name)
        except AttributeError as error:
            raise self.lacks(f"{type(owner).__module__}.{type(owner).__name__}.{name}") from error

    def lacks(self, name: str) -> WrongRelease:
        """The error for a missing name."""
        return WrongRelease(
            f"{self.module} {self.installed()} has no {name}, which batchinfer uses in {self.module} {self.version}",
            f"install {self.distributions[0]}=={self.version}",
        )

    def installed(self) -> str:
        """The version of the package that is installed."""
        for distribution in self.distributions:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
        return "of an unknown release"
