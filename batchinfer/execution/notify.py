"""`notify`: tell a webhook or a program how a run ended. Never fatal."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import batchinfer
from batchinfer import events
from batchinfer.accounting.report import Report
from batchinfer.errors import BatchinferError, Stopped
from batchinfer.jobspec import JobSpec
from batchinfer.jobspec.notify_keys import Occasion

SECRET = "BATCHINFER_WEBHOOK_SECRET"
"""The environment variable with the secret that requests are signed with."""

TRIES = 3
ANSWER_SECONDS = 10.0
"""Seconds that a webhook may take to answer. The command waits for three such times at most: a longer wait would hold
up a scheduler for a receiver that is gone."""

COMMAND_SECONDS = 60.0
"""Seconds after which a program is killed."""


def telling(spec: JobSpec, output: str, work: Callable[[], Report]) -> Report:
    """Do the work of a command, and tell those whom `notify` names how it ended. Raises what `work` raises."""
    if spec.notify is None:
        return work()
    try:
        made = work()
    except BatchinferError as error:
        by_budget = isinstance(error, Stopped) and "limits." in error.message
        if by_budget or not isinstance(error, Stopped):
            _tell(spec, "budget" if by_budget else "failed", {"output": output, "error": error.message})
        raise
    over = made.max_cost_usd is not None and made.cost_usd > made.max_cost_usd
    failed = made.error_rate > made.max_error_rate
    shown = made.model_dump(
        mode="json",
        include={"run_id", "output", "rows", "rows_in_input", "rows_failed", "cost_usd", "hours", "labels", "tick"},
    )
    _tell(spec, "failed" if failed else "budget" if over else "completed", shown | {"error": None})
    return made


def _tell(spec: JobSpec, occasion: Occasion, values: dict[str, Any]) -> None:
    notify = spec.notify
    if notify is None or occasion not in notify.on:
        return
    document = {"event": occasion, "job": spec.name, "labels": spec.labels, **values, "at": int(time.time())}
    body = json.dumps(document, ensure_ascii=False).encode()
    ways: list[tuple[Callable[[Any, bytes], None], str | tuple[str, ...] | None]] = [
        (_post, notify.webhook),
        (_run, notify.command),
    ]
    for way, target in ways:
        try:
            if target is not None:
                way(target, body)
        except Exception as error:
            events.tell("notification failed", occasion=occasion, reason=str(error))


def _post(address: str, body: bytes) -> None:
    """Post the body. Tries again after a refusal of the server (5xx), a timeout, or no connection."""
    if address.startswith("env:"):
        name = address.removeprefix("env:")
        address = os.environ.get(name, "")
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"the environment variable {name} holds no address")
    stamp = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"batchinfer/{batchinfer.__version__}",
        "X-Batchinfer-Timestamp": stamp,
    }
    secret = os.environ.get(SECRET)
    if secret:
        signed = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
        headers["X-Batchinfer-Signature"] = f"sha256={signed}"
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(
                urllib.request.Request(address, body, headers, method="POST"), timeout=ANSWER_SECONDS
            ):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 or attempt == TRIES - 1:
                raise ValueError(f"the webhook answered {error.code}") from None
        except OSError as error:
            if attempt == TRIES - 1:
                # Not the address, which may be a secret.
                raise ValueError(f"the webhook cannot be reached: {getattr(error, 'reason', error)}") from None
        time.sleep(2.0**attempt)


def _run(command: Sequence[str], body: bytes) -> None:
    done = subprocess.run(command, input=body, timeout=COMMAND_SECONDS, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"{command[0]} ended with {done.returncode}: {done.stderr[-300:].decode(errors='replace')}")
