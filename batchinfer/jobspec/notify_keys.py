"""The keys of `notify`: who is told when a run ends."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from batchinfer.jobspec.base import Keys, Place, Text

Occasion = Literal["completed", "failed", "budget"]


def _webhook(uri: str) -> str:
    if not re.match(r"https?://[^/]", uri) and not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*", uri):
        raise ValueError("is not an address: write https://..., or env:NAME for one that an environment variable holds")
    return uri


class NotifySpec(Keys):
    """Whom a command tells when a run ends. What cannot be told is an event, and changes nothing of the run."""

    webhook: Annotated[Place, AfterValidator(_webhook)] | None = None
    """Where a JSON document is posted, up to three times: `https://...`, or `env:NAME` for an address that the
    environment variable NAME holds, because a spec is kept with the results.

    If the environment has `BATCHINFER_WEBHOOK_SECRET`, the request is signed with it: `X-Batchinfer-Signature` is
    `sha256=` and the HMAC of `X-Batchinfer-Timestamp`, a full stop, and the body."""
    command: tuple[Text, ...] | None = Field(default=None, min_length=1)
    """A program and its arguments, run where the run was started, with the same document as its input."""
    on: tuple[Occasion, ...] = Field(default=("completed", "failed", "budget"), min_length=1)
    """The occasions. `completed`: every row is in the output. `failed`: an error ended the command, or more rows failed
    than `limits.max_error_rate`. `budget`: one of `limits` stopped the run, or the run cost more than
    `limits.max_cost_usd`."""

    @model_validator(mode="before")
    @classmethod
    def _on_is_a_name(cls, values: Any) -> Any:
        """YAML 1.1 reads the key `on` as true."""
        return (
            {"on" if key is True else key: value for key, value in values.items()} if type(values) is dict else values
        )

    @model_validator(mode="after")
    def _tells_somebody(self) -> Self:
        if self.webhook is None and self.command is None:
            raise ValueError("needs a webhook or a command")
        return self
