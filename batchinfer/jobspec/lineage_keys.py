"""The keys of `lineage`: where events about a run's input and output are sent."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from batchinfer.jobspec.base import Keys, Place, Text

CONFIGURED = "configured"
"""The value that leaves the transport to the client's own configuration."""


def _target(uri: str) -> str:
    known = r"https?://[^/]+.*|env:[A-Za-z_][A-Za-z0-9_]*|file://.*"
    if ("://" in uri or uri.startswith("env:")) and not re.fullmatch(known, uri):
        raise ValueError(
            "is neither an address nor a file: write https://..., the path of a file, env:NAME for what an environment "
            f"variable holds, or {CONFIGURED} for what openlineage.yml says"
        )
    return uri


class LineageSpec(Keys):
    """Where a command sends OpenLineage events: one when it starts, one when it ends. What cannot be sent is an event
    of the log, and changes nothing of the run.
    """

    openlineage: Annotated[Place, AfterValidator(_target)]
    """An address, as `https://marquez.example.com`, or the path of a file that gets one event a line.

    Needs an extra: `pip install 'batchinfer[lineage]'`. Events are posted to `/api/v1/lineage` of the address, unless
    it has a path of its own; `OPENLINEAGE_API_KEY` in the environment is the bearer's token. `env:NAME` is for an
    address that an environment variable holds; `configured` for the client's own `openlineage.yml` or
    `OPENLINEAGE_URL`."""
    namespace: Text = Field(default="batchinfer", min_length=1)
    """The namespace of the job. Its name is that of the spec."""
