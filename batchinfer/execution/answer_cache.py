"""Answers kept across runs in a folder or a bucket (`cache`): read by a replica when it needs them, and added to.

`<uri>/<identity>/<prefix>-<milliseconds>-<hash>.parquet`. An identity is everything that shapes an answer besides its
prompt (`answer_identity`), and `about.json` beside the files says which it is. A file has answers whose keys begin
with its prefix, and is created whole, never changed. Its name has the hash of its bytes, so that a damaged file, or
one of somebody else, is not believed: its answers run again.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batchinfer import events
from batchinfer.catalog.accelerators import device_cost
from batchinfer.engine import Completion
from batchinfer.engine.vllm_private import VLLM
from batchinfer.errors import BatchinferError, StorageError
from batchinfer.execution.answer_files import (
    ALL,
    KEY_BYTES,
    PREFIXES,
    KeptAnswer,
    age_of,
    completion,
    file_of,
    kept,
    prefix_of,
    table_of,
)
from batchinfer.execution.answer_identity import identity, name_of, prints_the_time
from batchinfer.execution.reuse import request_keys
from batchinfer.jobspec import SCRIPTED, JobSpec, StoreSpec
from batchinfer.model.fingerprint import fingerprint
from batchinfer.model.resolve import tokenizer_folder
from batchinfer.model.tokenizer_files import chat_template_text
from batchinfer.planner import Plan
from batchinfer.prompting.answers import OutputCheck
from batchinfer.prompting.prompts import Prompt
from batchinfer.prompting.row_sampling import RowSampling
from batchinfer.storage import REQUESTS_AT_ONCE, Storage, Stores, join, storage_for

WRITTEN_SECONDS = 60.0
"""Seconds after which an answer is written. A replica that is killed loses so many for the cache, not for the run."""

WRITTEN_ROWS = 50_000
WRITTEN_BYTES = 32 * 2**20
"""Answers, and their bytes, that are written before that. More are lost by a kill; fewer make many small files."""

SPLIT_ROWS = 1000
"""Answers from which they are written by prefix. Fewer go into one file, so that small jobs make few."""

READ_BYTES = 2 * 2**30
"""Bytes of answers, unpacked, that a replica keeps on its machine's disk. Older files are left out beyond."""

LARGEST_FILE = 2 * WRITTEN_BYTES
"""Bytes. What is larger was not written here."""

RETRY_SECONDS = 10.0
"""Seconds for which a request to the cache's store is sent again. Answers can be made without it, while GPUs wait."""

_PARAMETERS = 500
"""Keys of one look-up: SQLite takes 999 values or more in a statement."""


class AnswerCache:
    """The kept answers of a job, for one replica. Safe to use from several threads.

    No error of its store fails a run: what cannot be read runs, and what cannot be written is not kept. `local`: see
    `replica.with_local_model`.
    """

    def __init__(self, job: JobSpec, plan: Plan, local: Callable[[JobSpec, Plan], tuple[JobSpec, Plan]]) -> None:
        assert job.cache is not None
        self._uri, self._price = job.cache.uri, plan.price_per_gpu_hour
        self._storage = storage_for(self._uri, _hasty(job.storage))
        self._steps = job.step_jobs
        self._samplings = [RowSampling(step) for step in self._steps]
        self._checks = [OutputCheck(step.output, step.sampling.max_tokens) for step in self._steps]
        self._answers = _Answers(self._storage, self._uri)
        self._written = _WrittenAnswers(self._storage, self._uri)
        self._plan, self._local = plan, local
        # The weights are hashed while the engine loads them.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fingerprint")
        self._early = self._pool.submit(self._identities)
        self._names: list[str | None] | None = None
        self._naming = threading.Lock()

    def found(self, prompts: Sequence[Prompt]) -> list[Completion | None]:
        """The kept answers to the prompts, None for a prompt without one."""
        made: list[Completion | None] = [None] * len(prompts)
        by_step: dict[str, dict[bytes, list[int]]] = {}
        for place, (name, key) in enumerate(self._keys(prompts)):
            if name is not None:
                by_step.setdefault(name, {}).setdefault(key, []).append(place)
        for name, places in by_step.items():
            for key, answer, embedding in self._answers.of(name, list(places)):
                for place in places[key]:
                    made[place] = completion(answer, embedding)
        return made

    def keep(self, prompts: Sequence[Prompt], made: Sequence[Completion], gpu_seconds: float) -> None:
        """Keep the answers that the engine gave, and that fit. `gpu_seconds`: device-seconds of all of them."""
        tokens = sum(one.input_tokens + one.output_tokens for one in made)
        usd = device_cost(gpu_seconds, self._price) / tokens if tokens else 0.0
        for prompt, one, (name, key) in zip(prompts, made, self._keys(prompts), strict=True):
            if name is not None and one.error is None and self._fits(prompt, one):
                self._written.add(name, kept(key, one, usd * (one.input_tokens + one.output_tokens)))

    def close(self) -> None:
        """Write what is left."""
        self._pool.shutdown(cancel_futures=True)
        self._written.close()

    def _fits(self, prompt: Prompt, made: Completion) -> bool:
        """Whether the answer is whole and has its shape: one that has not would fail a row in each run to come."""
        check, sampling = self._checks[prompt.step], self._samplings[prompt.step].of(prompt)
        if "length" in made.finish_reasons and made.output_tokens < sampling.max_tokens:
            # The context cut it, which another run may have longer.
            return False
        return check.trivial or all(
            check.check(text, reason).problem is None
            for text, reason in zip(made.texts, made.finish_reasons, strict=True)
        )

    def _keys(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str | None, bytes]]:
        """For each prompt the identity of its step, None if its answer is not kept, and the hash of what it asks."""
        names = self._identified()
        for prompt, key in zip(prompts, request_keys(prompts, KEY_BYTES, steps=False), strict=True):
            again = self._samplings[prompt.step].of(prompt).repeats_itself
            yield names[prompt.step] if again else None, key

    def _identities(self) -> list[dict[str, Any] | str]:
        return [identity_here(step, *self._local(step, self._plan)) for step in self._steps]

    def _identified(self) -> list[str | None]:
        with self._naming:
            if self._names is None:
                self._names = [None] * len(self._steps)
                try:
                    abouts = self._early.result()
                    if "" in abouts:
                        # A repository is there once the engine has it.
                        abouts = self._identities()
                except (BatchinferError, OSError) as error:
                    abouts = [str(error)] * len(self._steps)
                for place, about in enumerate(abouts):
                    if isinstance(about, str):
                        events.tell("cache not used", reason=about or "the model's files are not on this machine")
                    else:
                        self._names[place] = name = name_of(about)
                        self._written.describe(name, about)
            return self._names


def identity_here(step: JobSpec, job: JobSpec, plan: Plan) -> dict[str, Any] | str:
    """What shapes the answers of a step, or why that cannot be told: empty if files are not on this machine (yet).

    `job`, `plan`: with a model on this machine.
    """
    template = step.prompt.chat_template or chat_template_text(tokenizer_folder(job, plan.checkpoint))
    if prints_the_time(step, template):
        return "the chat template prints the time, so that each day's prompts are others"
    files = _files(job, plan)
    known = {key: name for key, name in files.items() if name is not None}
    release = "" if job.model.source == SCRIPTED else f"vllm {VLLM.installed()}"
    return identity(step, plan, known, release) if len(known) == len(files) else ""


def _files(job: JobSpec, plan: Plan) -> dict[str, str | None]:
    """By spec key, what the files are that shape answers."""
    model = job.model
    found = {"model.source": fingerprint(plan.checkpoint or model.source, model.revision)}
    if model.lora is not None:
        found["model.lora.path"] = fingerprint(model.lora.path, model.lora.revision)
    if job.engine.tokenizer is not None:
        found["engine.tokenizer"] = fingerprint(job.engine.tokenizer, None)
    return found


def _hasty(stores: Stores) -> dict[str, StoreSpec]:
    """The options of the stores, with little patience."""
    given = {"s3:": StoreSpec(), **stores}
    return {
        prefix: store.model_copy(update={"retry_seconds": min(store.retry_seconds, RETRY_SECONDS)})
        for prefix, store in given.items()
    }


class _Answers:
    """The kept answers that were read. They lie in a temporary file of SQLite, which ends with the process."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._lock = threading.Lock()
        self._files: dict[str, dict[str, list[str]]] = {}
        self._room = READ_BYTES
        # With an empty name SQLite makes a file of its own on the disk once its memory is full, and unlinks it at once.
        self._kept = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._kept.execute("PRAGMA cache_size = -65536")

    def of(self, name: str, keys: Sequence[bytes]) -> list[tuple[bytes, str, bytes | None]]:
        """The answers of an identity to requests with these keys."""
        with self._lock:
            try:
                self._read(name, sorted({key.hex()[0] for key in keys}))
                return [
                    row
                    for start in range(0, len(keys), _PARAMETERS)
                    for row in self._selected(name, keys[start : start + _PARAMETERS])
                ]
            except (StorageError, sqlite3.Error, OSError) as error:
                # Once: each further try would let GPUs wait for a store that is down.
                self._files[name] = {}
                events.tell("cache not read", uri=self._uri, reason=str(error))
                return []

    def _selected(self, name: str, keys: Sequence[bytes]) -> list[tuple[bytes, str, bytes | None]]:
        if not self._has_table(name):
            return []
        marks = ", ".join("?" * len(keys))
        return self._kept.execute(
            f'SELECT key, answer, embedding FROM "{name}" WHERE key IN ({marks})', keys
        ).fetchall()

    def _has_table(self, name: str) -> bool:
        found = self._kept.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", [name])
        return found.fetchone() is not None

    def _read(self, name: str, prefixes: Sequence[str]) -> None:
        """Read the files of these prefixes, unless they were. Each is read once, and whole."""
        if name not in self._files:
            self._files[name] = self._listed(name)
        left = self._files[name]
        wanted = [uri for prefix in (ALL, *prefixes) for uri in left.pop(prefix, ())]
        if not wanted:
            return
        self._kept.execute(
            f'CREATE TABLE IF NOT EXISTS "{name}" (key BLOB PRIMARY KEY, answer TEXT, embedding BLOB) WITHOUT ROWID'
        )
        wanted.sort(key=lambda uri: age_of(uri.rpartition("/")[2]), reverse=True)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            for start in range(0, len(wanted), REQUESTS_AT_ONCE):
                some = wanted[start : start + REQUESTS_AT_ONCE] if self._room > 0 else []
                for uri, data in zip(some, pool.map(self._contents, some), strict=True):
                    self._add(name, uri.rpartition("/")[2], data)

    def _contents(self, uri: str) -> bytes:
        """The file's bytes; none if it was deleted meanwhile."""
        try:
            return self._storage.read(uri)
        except StorageError:
            if self._storage.stat(uri) is None:
                return b""
            raise

    def _listed(self, name: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for entry in self._storage.list(join(self._uri, name)):
            prefix = prefix_of(entry.uri.rpartition("/")[2])
            if prefix is not None and entry.size <= LARGEST_FILE:
                found[prefix].append(entry.uri)
        return found

    def _add(self, name: str, file: str, data: bytes) -> None:
        table = table_of(name, file, data)
        if table is None:
            events.tell("cache file ignored", uri=join(self._uri, name, file))
            return
        self._room -= table.nbytes
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        self._kept.execute("BEGIN")
        self._kept.executemany(f'INSERT OR IGNORE INTO "{name}" VALUES (?, ?, ?)', rows)
        self._kept.execute("COMMIT")


class _WrittenAnswers:
    """Answers that are to be written, and the thread that writes them."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self._uri = storage, uri
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[bytes, KeptAnswer]] = defaultdict(dict)
        self._abouts: dict[str, Mapping[str, Any]] = {}
        self._bytes = 0
        self._rows = 0
        self._since = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="answer-cache", daemon=True)
        self._thread.start()

    def describe(self, name: str, about: Mapping[str, Any]) -> None:
        """Write `about` beside the first answers of the identity."""
        with self._lock:
            self._abouts[name] = about

    def add(self, name: str, answer: KeptAnswer) -> None:
        """Write the answer before long. Dropped if the store does not keep up."""
        with self._lock:
            if self._bytes + answer.size > 2 * WRITTEN_BYTES:
                return
            if not self._rows:
                self._since = time.monotonic()
            self._waiting[name][answer.key] = answer
            self._bytes += answer.size
            self._rows += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def _beat(self) -> None:
        while not self._stop.wait(1.0):
            with self._lock:
                old = self._rows and time.monotonic() - self._since >= WRITTEN_SECONDS
                due = old or self._rows >= WRITTEN_ROWS or self._bytes >= WRITTEN_BYTES
            if due:
                self._write()

    def _write(self) -> None:
        with self._lock:
            waiting, abouts = self._waiting, self._abouts
            self._waiting = defaultdict(dict)
            self._abouts = {name: about for name, about in abouts.items() if name not in waiting}
            self._bytes = self._rows = 0
        try:
            for name, answers in waiting.items():
                if name in abouts:
                    about = json.dumps(abouts[name], indent=2, sort_keys=True).encode()
                    self._storage.create(join(self._uri, name, "about.json"), about)
                for prefix, some in _by_prefix(list(answers.values())).items():
                    file, data = file_of(name, prefix, some, time.time_ns() // 10**6)
                    self._storage.create(join(self._uri, name, file), data)
        except StorageError as error:
            events.tell("cache not written", uri=self._uri, reason=error.message)


def _by_prefix(answers: Sequence[KeptAnswer]) -> dict[str, list[KeptAnswer]]:
    if len(answers) < SPLIT_ROWS:
        return {ALL: list(answers)}
    found: dict[str, list[KeptAnswer]] = {prefix: [] for prefix in PREFIXES}
    for answer in answers:
        found[answer.prefix].append(answer)
    return {prefix: some for prefix, some in found.items() if some}
