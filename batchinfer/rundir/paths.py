"""The paths of the files of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from batchinfer.errors import BatchinferError, OutputError, StorageError
from batchinfer.storage import Storage, Stores, join, storage_for

MANIFEST, REPORT, SKIPPED, LOCK = "/_run/manifest.parquet", "/_run/report.json", "/_run/skipped.json", "/_run/lock"
"""The endings of the URIs of these files, by which runs are found in a listing."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The URIs of the files of the run at `root`. `stores`: how to reach its store."""

    root: str
    stores: Stores = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        return storage_for(self.root, self.stores)

    @property
    def data_folder(self) -> str:
        return join(self.root, "data")

    @property
    def accounting_folder(self) -> str:
        return join(self.root, "accounting")

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that contain every file of a run."""
        return self.data_folder, self.accounting_folder, join(self.root, "_run"), self.batch_folder

    @property
    def kept_input_folder(self) -> str:
        """The rows of a job whose input was in memory, each set of rows in a folder of its own."""
        return join(self.root, "_input")

    @property
    def batch_folder(self) -> str:
        """The results of a batch file of OpenAI's API as files of its own kind."""
        return join(self.root, "batch")

    @property
    def batch_output(self) -> str:
        return join(self.batch_folder, "output.jsonl")

    @property
    def batch_errors(self) -> str:
        return join(self.batch_folder, "errors.jsonl")

    def data(self, shard_id: int) -> str:
        return join(self.data_folder, f"{shard_name(shard_id)}.parquet")

    def accounting(self, shard_id: int, generation: int) -> str:
        suffix = f".retry-{generation}" if generation else ""
        return join(self.accounting_folder, f"{shard_name(shard_id)}{suffix}.parquet")

    @property
    def manifest(self) -> str:
        return self.root.rstrip("/") + MANIFEST

    @property
    def spec(self) -> str:
        return self._of_run("spec.yaml")

    @property
    def plan(self) -> str:
        return self._of_run("plan.json")

    @property
    def plans_folder(self) -> str:
        return self._of_run("plans")

    def plan_of_session(self, session: int) -> str:
        """The plan of one session of the run; `plan` is the last one's."""
        return join(self.plans_folder, f"session-{session:04d}.json")

    @property
    def report(self) -> str:
        return self.root.rstrip("/") + REPORT

    @property
    def page(self) -> str:
        """The report for a browser."""
        return self._of_run("report.html")

    @property
    def replicas(self) -> str:
        """The accounting of the replicas, one row for each."""
        return self._of_run("replicas.parquet")

    @property
    def retry_note(self) -> str:
        return self._of_run("retry.json")

    @property
    def skipped(self) -> str:
        return self.root.rstrip("/") + SKIPPED

    @property
    def published(self) -> str:
        """The tables that hold the run's results."""
        return self._of_run("published.json")

    @property
    def lock(self) -> str:
        return self.root.rstrip("/") + LOCK

    @property
    def log(self) -> str:
        return self._of_run("run.log")

    @property
    def stop(self) -> str:
        """If this file exists, no replica starts another shard."""
        return self._of_run("stop")

    @property
    def journals_folder(self) -> str:
        return self._of_run("replicas")

    def journal(self, replica_id: str) -> str:
        return join(self.journals_folder, f"{replica_id}.json")

    @property
    def events_folder(self) -> str:
        return self._of_run("events")

    def events(self, replica_id: str) -> str:
        """The replica's events, one JSON line each, after a first line that identifies the file."""
        return join(self.events_folder, f"{replica_id}.jsonl")

    @property
    def groups_folder(self) -> str:
        """The rows of a job with `reduce`, one for each group."""
        return self._of_run("groups")

    def groups(self, number: int) -> str:
        return join(self.groups_folder, f"part-{number:04d}.parquet")

    def _of_run(self, name: str) -> str:
        return join(self.root, "_run", name)


@contextlib.contextmanager
def reading(uri: str, remedy: str) -> Iterator[None]:
    """Turn errors of reading a run's file, which may be damaged or foreign, into OutputError with `remedy`."""
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, IsADirectoryError):
            raise OutputError(f"{uri} is a folder, where a run has a file", remedy) from error
        raise
    except BatchinferError:
        raise
    except Exception as error:
        # On damaged bytes Arrow and the parsers raise exceptions of many types.
        raise OutputError(f"{uri} is not what a run of batchinfer wrote there, or it is damaged", remedy) from error


def shard_name(shard_id: int) -> str:
    return f"shard-{shard_id:06d}"
