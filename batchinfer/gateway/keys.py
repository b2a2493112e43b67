"""API keys: made once and shown once; the root holds only their hashes."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from batchinfer.errors import UserError
from batchinfer.gateway.names import LOCAL_OWNER, is_owner
from batchinfer.gateway.root import GatewayRoot
from batchinfer.storage import join

PREFIX = "sk-bi-"
"""How keys begin, so that scanners for secrets know them."""

KNOWN_SECONDS = 5.0
"""Seconds for which a key that was looked up counts as known. Longer, and a revoked key works longer; shorter, and a
store is asked at each call."""

_MOST_KNOWN = 10_000

_KEY = re.compile(r"sk-bi-[A-Za-z0-9_-]{43}")
_HASH = re.compile(r"[0-9a-f]{64}")


class KeyLimits(BaseModel):
    """What the owner of a key may take. None: no limit, or that of engines.yaml. Months are calendar months in UTC."""

    model_config = ConfigDict(frozen=True)

    requests_per_minute: int | None = None
    max_file_bytes: int | None = None
    requests_per_month: int | None = None
    tokens_per_month: int | None = None
    usd_per_month: float | None = None


class KeyRecord(BaseModel):
    """A key without its secret. `created_at` is in seconds since 1970, `ending` are the key's last letters."""

    model_config = ConfigDict(frozen=True)

    name: str
    owner: str
    created_at: int
    ending: str
    labels: dict[str, str] = {}
    limits: KeyLimits = field(default_factory=KeyLimits)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call of the API."""

    owner: str
    labels: Mapping[str, str] = field(default_factory=dict)
    limits: KeyLimits = field(default_factory=KeyLimits)


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as `keys list` shows it."""

    key_id: str
    record: KeyRecord
    revoked: bool


def _hash(key: str) -> str:
    # No salt and no slow hash: a key is 256 random bits, which nobody guesses from its hash.
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(root: GatewayRoot, name: str, owner: str, labels: Mapping[str, str], limits: KeyLimits) -> str:
    """Make a key for `owner`, and return it: it can never be read again. Raises UserError."""
    if not is_owner(owner) or owner == LOCAL_OWNER:
        raise UserError(
            f"{owner!r:.80} cannot be an owner", "take small letters, digits, - and _, as in team-a; not local"
        )
    if not re.fullmatch(r"[\w .@-]{1,80}", name):
        raise UserError(f"{name!r:.100} cannot be the name of a key", "take up to 80 letters, digits, spaces, . @ _ -")
    if any(one.record.name == name and not one.revoked for one in list_keys(root)):
        raise UserError(f"there is a key with the name {name!r}", "revoke it first, or take another name")
    key = f"{PREFIX}{secrets.token_urlsafe(32)}"
    made = KeyRecord(
        name=name, owner=owner, created_at=int(time.time()), ending=key[-4:], labels=dict(labels), limits=limits
    )
    root.storage.create(join(root.uri, "keys", f"{_hash(key)}.json"), made.model_dump_json(indent=1).encode())
    return key


def list_keys(root: GatewayRoot) -> list[ListedKey]:
    """All keys that were ever made, the oldest first."""
    names = {entry.uri.rsplit("/", 1)[-1] for entry in root.storage.list(join(root.uri, "keys"))}
    found = []
    for name in names:
        hashed = name.removesuffix(".json")
        data = root.read(join(root.uri, "keys", name)) if _HASH.fullmatch(hashed) and name.endswith(".json") else None
        if data is not None:
            found.append(ListedKey(hashed[:12], KeyRecord.model_validate_json(data), f"{hashed}.revoked" in names))
    return sorted(found, key=lambda one: (one.record.created_at, one.record.name))


def revoke_key(root: GatewayRoot, name: str) -> None:
    """Let the key with that name or id not work any more. Its record stays. Raises UserError."""
    named = [one for one in list_keys(root) if name in (one.record.name, one.key_id) and not one.revoked]
    if not named:
        raise UserError(f"there is no key {name!r:.100} that works", "`batchinfer keys list` has the names")
    for entry in list(root.storage.list(join(root.uri, "keys"))):
        hashed = entry.uri.rsplit("/", 1)[-1].removesuffix(".json")
        if any(hashed.startswith(one.key_id) for one in named) and _HASH.fullmatch(hashed):
            mark = json.dumps({"revoked_at": int(time.time())}).encode()
            root.storage.create(join(root.uri, "keys", f"{hashed}.revoked"), mark)


def require_keys(root: GatewayRoot, what: str) -> None:
    """Raise UserError if calls need no key. `what` would let anybody in."""
    if not KeyRing(root).required():
        raise UserError(
            f"{what} would let anybody in who reaches it: the gateway has no keys",
            f"make one first: batchinfer keys create NAME --owner TEAM --root {root.uri}; or listen at 127.0.0.1",
        )


class KeyRing:
    """Looks keys up, and knows those of the last seconds. Thread-safe."""

    def __init__(self, root: GatewayRoot) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, Caller | None]] = {}
        self._required: tuple[float, bool] = (0.0, False)

    def required(self) -> bool:
        """Whether calls need a key: once there was one, all do, even if every key is revoked."""
        now = time.monotonic()
        until, required = self._required
        # Once true it stays true: keys are revoked, never deleted.
        if not required and now >= until:
            required = any(True for _ in self._root.storage.list(join(self._root.uri, "keys")))
            self._required = (now + KNOWN_SECONDS, required)
        return required

    def caller(self, key: str | None) -> Caller | None:
        """Whose key it is; the local owner where no key is needed, None for a key that does not work."""
        if not self.required():
            return Caller(LOCAL_OWNER)
        if key is None or _KEY.fullmatch(key) is None:
            return None
        hashed, now = _hash(key), time.monotonic()
        with self._lock:
            until, known = self._known.get(hashed, (0.0, None))
        if now < until:
            return known
        found = self._look_up(hashed)
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[hashed] = (now + KNOWN_SECONDS, found)
        return found

    def _look_up(self, hashed: str) -> Caller | None:
        data = self._root.read(join(self._root.uri, "keys", f"{hashed}.json"))
        if data is None or self._root.storage.stat(join(self._root.uri, "keys", f"{hashed}.revoked")) is not None:
            return None
        record = KeyRecord.model_validate_json(data)
        return Caller(record.owner, record.labels, record.limits)
