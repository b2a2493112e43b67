"""Kept answers as Parquet files: what an answer looks like there, and when a file is believed. Pure."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchinfer.engine import Completion

ALL = "all"
"""The prefix of a file with answers of any hash."""

PREFIXES = tuple("0123456789abcdef")

_NAME = re.compile(r"(all|[0-9a-f])-([0-9]{13})-([0-9a-f]{32})\.parquet")
"""Prefix of the keys, milliseconds since 1970, hash of the content."""

_IDENTITY = b"batchinfer.answers"

KEY_BYTES = 32
"""Length of a request's hash. Files of many teams may be crafted against a shorter one; here none is known to be."""

SCHEMA = pa.schema(
    [pa.field("key", pa.binary(KEY_BYTES), False), pa.field("answer", pa.string(), False), ("embedding", pa.binary())]
)

_TEXTS = ("texts", "finish_reasons", "logprobs", "probabilities", "score", "truncated_tokens", "reasoning")


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """One answer: the hash of its request, all that it says as JSON, and its vector of float32, little-endian."""

    key: bytes
    answer: str
    embedding: bytes | None

    @property
    def prefix(self) -> str:
        return self.key.hex()[0]

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(self.key) + len(self.answer) + len(self.embedding or b"") + 200


def kept(key: bytes, made: Completion, usd: float) -> KeptAnswer:
    """The answer as it is kept; `usd`: what it cost."""
    said: dict[str, Any] = {name: getattr(made, name) for name in _TEXTS}
    said |= {"tokens": made.input_tokens + made.output_tokens, "usd": usd}
    vector = None if made.embedding is None else made.embedding.astype("<f4").tobytes()
    return KeptAnswer(key, json.dumps(said), vector)


def completion(answer: str, embedding: bytes | None) -> Completion | None:
    """The inverse of `kept`, as the answer of an equal request; None for what is no answer."""
    try:
        said = json.loads(answer)
        return Completion(
            input_tokens=0,
            cached_tokens=0,
            output_tokens=0,
            embedding=None if embedding is None else np.frombuffer(embedding, "<f4").astype(np.float32),
            reused_tokens=int(said["tokens"]),
            saved_usd=float(said["usd"]),
            **{name: said[name] for name in _TEXTS},
        )
    except (KeyError, TypeError, ValueError):
        return None


def file_of(identity: str, prefix: str, answers: Sequence[KeptAnswer], at_ms: int) -> tuple[str, bytes]:
    """The name and the bytes of a file with these answers, in the order of their keys."""
    rows = sorted(answers, key=lambda one: one.key)
    table = pa.table(
        [[one.key for one in rows], [one.answer for one in rows], [one.embedding for one in rows]],
        schema=SCHEMA.with_metadata({_IDENTITY: identity}),
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    data = sink.getvalue()
    return f"{prefix}-{at_ms:013d}-{_hash(data)}.parquet", data


def prefix_of(name: str) -> str | None:
    """The prefix that a file's name tells; None for a file of somebody else."""
    found = _NAME.fullmatch(name)
    return found[1] if found is not None else None


def age_of(name: str) -> str:
    """What files of answers are sorted by, from the oldest to the newest."""
    return name.partition("-")[2]


def table_of(identity: str, name: str, data: bytes) -> pa.Table | None:
    """The answers in a file; None unless every byte is as it was written, for this identity."""
    found = _NAME.fullmatch(name)
    if found is None or _hash(data) != found[3]:
        return None
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError, ValueError):
        return None
    if not table.schema.equals(SCHEMA) or (table.schema.metadata or {}).get(_IDENTITY) != identity.encode():
        return None
    return table


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
