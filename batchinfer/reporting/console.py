"""What a person or a program sees of a run: a progress bar on a terminal, otherwise one JSON line an event. Ray's and
vLLM's chatter goes to a log file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from batchinfer import events, signals
from batchinfer.accounting.money import money
from batchinfer.accounting.records import ShardRecord
from batchinfer.errors import BatchinferError, StorageError
from batchinfer.execution.progress import Listener, Progress
from batchinfer.outlet import Outlet
from batchinfer.rundir.ownership import LOG_MARK
from batchinfer.rundir.paths import Layout
from batchinfer.storage import LocalStorage, Stores, storage_for
from batchinfer.temporary import temporary_file

_LOG_HEADER = LOG_MARK + b": what Ray, vLLM and their workers printed, session after session.\n"


class Chatter:
    """A context in which everything that this process and Ray's workers print goes to a file.

    File descriptors are redirected, because the native code of Ray and vLLM does not use Python's streams. `stdout`
    and `stderr` are the real streams, for batchinfer's own output. A store cannot append, so the log of a run in a
    store stays on this machine until the run ends, and is uploaded then.

    Without `redirects` the streams stay the caller's, and the file holds only what is written with `write_line`.
    """

    def __init__(self, stores: Stores, redirects: bool = True) -> None:
        self._stores = stores
        self._redirects = redirects
        self._log = 2
        self._destination = ""
        self.stdout: TextIO = sys.stdout
        self.stderr: TextIO = sys.stderr
        self.path = ""
        self.kept = False
        self._saved: list[int] = []
        self._leaving = contextlib.ExitStack()
        self._spoke_to = 2

    def __enter__(self) -> Chatter:
        sys.stdout.flush()
        sys.stderr.flush()
        self._leaving.enter_context(signals.cleaning(self._drop))
        if self._redirects:
            self._saved = [os.dup(1), os.dup(2)]
            self.stdout = _outlet(self._saved[0], sys.stdout)
            self.stderr = _outlet(self._saved[1], sys.stderr)
            self._spoke_to = signals.speak_to(self._saved[1])
        handle, self.path = temporary_file(".log")
        self._redirect(handle)
        return self

    def _redirect(self, handle: int) -> None:
        if not self._redirects:
            before, self._log = self._log, handle
            if before != 2:
                os.close(before)
            return
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.close(handle)

    def keep_at(self, output: str) -> None:
        """Append the log so far, and everything printed from now on, to `_run/run.log` of the run at `output`."""
        path = Layout(output).log
        if not isinstance(storage_for(output, self._stores), LocalStorage):
            self._destination = path
            return
        sys.stdout.flush()
        sys.stderr.flush()
        # Created with its mark if absent; the mark of an existing log was checked before the run began.
        LocalStorage().create(path, _LOG_HEADER)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        # As in `write_line`: the log of a full disk lacks its beginning.
        with contextlib.suppress(OSError), open(self.path, "rb") as before, os.fdopen(os.dup(handle), "ab") as after:
            shutil.copyfileobj(before, after)
        self._redirect(handle)
        os.unlink(self.path)
        self.path = path
        self.kept = True

    def write_line(self, line: str) -> None:
        """Write one of batchinfer's own lines to the log."""
        # A full disk must not end the run because of its log.
        with contextlib.suppress(OSError):
            os.write(self._log, f"{line}\n".encode(errors="backslashreplace"))

    def _drop(self) -> None:
        """Delete the log unless it is kept."""
        if not self.kept:
            os.unlink(self.path)

    def keep(self) -> str:
        """Keep the log at its present path after the run. Returns the path."""
        self.kept = True
        return self.path

    @property
    def is_kept(self) -> bool:
        """Whether the log outlives the run, at `path` or in the run's store."""
        return self.kept or bool(self._destination)

    def _send(self, failed: bool) -> None:
        """Append the log to the one in the run's store. If that fails, the log stays on this machine.

        Raises the StorageError unless the run itself `failed`, whose error matters more."""
        storage = storage_for(self._destination, self._stores)
        try:
            before = storage.read(self._destination) if storage.stat(self._destination) else _LOG_HEADER
            with open(self.path, "rb") as file:
                storage.put(self._destination, before + file.read())
        except StorageError as error:
            self.kept = True
            if not failed:
                error.remedy += f"; the results are complete, and the log is {self.path}"
                raise

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._leaving.close()
        if self._redirects:
            signals.speak_to(self._spoke_to)
            for stream, saved in zip((1, 2), self._saved, strict=True):
                os.dup2(saved, stream)
                os.close(saved)
            self.stdout.close()
            self.stderr.close()
        else:
            os.close(self._log)
        try:
            if self._destination:
                self._send(kind is not None)
        finally:
            if not self.kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)


def _outlet(descriptor: int, like: TextIO) -> TextIO:
    """A copy of a standard stream that does not fail when its reader has gone."""
    encoding = getattr(like, "encoding", None) or "utf-8"
    stream = os.fdopen(os.dup(descriptor), "w", buffering=1, encoding=encoding, errors="backslashreplace")
    return cast(TextIO, Outlet(stream))


class TerminalListener:
    """A progress bar: rows, tokens/s, cost so far, time left."""

    def __init__(self, chatter: Chatter) -> None:
        self._chatter = chatter
        self._console = Console(file=chatter.stderr)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[cost]}"),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID | None = None
        self._leaving = contextlib.ExitStack()

    def event(self, name: str, **values: Any) -> None:
        if name in events.BEGINNINGS:
            self._chatter.keep_at(values["output"])
        line = events.plain_line(name, values)
        self._chatter.write_line(f"batchinfer: {line}")
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def begin(self, progress: Progress) -> None:
        self._task = self._bar.add_task("loading", total=progress.rows_total, **_fields(progress))
        self._bar.update(self._task, completed=progress.rows_done)
        self._bar.start()
        # The bar hides the cursor: a command that a signal ends must show the cursor again.
        self._leaving.enter_context(signals.cleaning(self._bar.stop))

    def advance(self, progress: Progress, record: ShardRecord) -> None:
        if self._task is not None:
            self._bar.update(self._task, description="running", completed=progress.rows_done, **_fields(progress))

    def end(self) -> None:
        self._bar.stop()
        self._leaving.close()


def _fields(progress: Progress) -> dict[str, Any]:
    left = progress.seconds_left
    return {
        "speed": f"{progress.tokens_per_second:,.0f} tokens/s",
        "cost": money(progress.cost_usd),
        "left": "" if left is None else f"{int(left) // 60}:{int(left) % 60:02d} left",
    }


class JsonListener:
    """One JSON line an event, on stderr."""

    def __init__(self, chatter: Chatter) -> None:
        self._chatter = chatter
        self._log = events.json_log(lambda line: print(line, file=chatter.stderr, flush=True))
        self._ids: dict[str, Any] = {}

    def event(self, name: str, **values: Any) -> None:
        if name in events.BEGINNINGS:
            self._chatter.keep_at(values["output"])
            self._ids = {"run_id": values["run_id"]}
        if self._chatter.path:
            self._chatter.write_line(f"batchinfer: {events.plain_line(name, values)}")
        self._log.info(name, **self._ids | values)

    def begin(self, progress: Progress) -> None:
        self._log.info("running", **self._ids, **_rows(progress))

    def advance(self, progress: Progress, record: ShardRecord) -> None:
        left = progress.seconds_left
        self._log.info(
            "shard committed",
            run_id=record.run_id,
            shard_id=record.shard_id,
            replica_id=record.replica_id,
            attempt=record.attempt,
            rows=record.rows,
            rows_failed=record.rows_failed,
            seconds=round(record.wall_seconds, 3),
            **_rows(progress),
            tokens_per_second=round(progress.tokens_per_second, 1),
            cost_usd=round(progress.cost_usd, 6),
            seconds_left=None if left is None else round(left, 1),
        )

    def end(self) -> None:
        pass


def _rows(progress: Progress) -> dict[str, int]:
    """The rows of an event; `selected_from` stands in it if not all rows of the input run."""
    rows = {"rows_done": progress.rows_done, "rows_total": progress.rows_total}
    return rows if progress.selected_from is None else rows | {"selected_from": progress.selected_from}


def event_log() -> Listener:
    """One JSON line an event on stderr, for a process that starts other commands and does not redirect their output."""
    return JsonListener(Chatter({}))


@contextlib.contextmanager
def attending(stores: Stores) -> Iterator[Listener]:
    """A progress bar if stderr is a terminal, otherwise JSON lines, while the chatter goes to a file. An error that is
    not the user's mistake names that file."""
    with Chatter(stores) as chatter:
        listener = TerminalListener(chatter) if sys.stderr.isatty() else JsonListener(chatter)
        with events.heard_by(listener.event), log_named(chatter):
            yield listener


@contextlib.contextmanager
def log_named(chatter: Chatter) -> Iterator[None]:
    """A context in which an error that is not the user's mistake becomes a BatchinferError that names the log."""
    try:
        yield
    except BatchinferError as error:
        if chatter.is_kept and error.exit_code == 1:
            error.remedy += f"; the log is {chatter.keep()}"
        raise
    except Exception as error:
        # A bug or an unforeseen failure: the traceback goes to the log, one line to the user.
        chatter.write_line(traceback.format_exc())
        raise BatchinferError(f"{type(error).__name__}: {error}", f"the whole of it is in {chatter.keep()}") from error
