"""The engine's host: a separate process that imports vLLM, holds the engine and serves one replica.

Why the replica does not do this itself: importing vLLM takes 13 seconds of CPU, and vLLM's engine is one more process.
A Ray worker must not be forked (it has dozens of threads, and a fork would share its sockets). So an engine that a
replica starts would import everything again. The host starts fresh and runs no other Python thread while it loads, so
the engine can be forked from it with all its imports. Also, Ray's work does not share an interpreter with the
tokenizer.

Replica and host exchange messages over a socket pair. The replica sends the spec and the plan, then (number, prompts)
for each call; it closes its end when it leaves. The host sends None when the engine is loaded, or the exception of the
loading. Then it sends (number, what, value) for each call, and the number 0 for the engine's steps.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from batchinfer.engine.base import Completion, Engine, EngineDied
from batchinfer.errors import BatchinferError, EngineError
from batchinfer.jobspec import SCRIPTED, JobSpec
from batchinfer.planner import Plan
from batchinfer.prompting.prompts import Prompt

_BEAT_SECONDS = 0.25
_LEAVE_SECONDS = 40.0
"""Seconds for an engine to end its processes; then the host is killed, and the replica's guard kills the rest. Shorter
kills engines that would end by themselves."""

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from batchinfer.engine import host; host.main()"

_KEPT_LINES = 400
"""Lines of the engine's output that are kept for its last error. A traceback of vLLM through several processes has
about 100; fewer lines may lose the error."""
_LAST_WORDS_SECONDS = 2.0
_ERROR = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception|Interrupt)): (\S.*)")

_hosts: set[int] = set()


def host_processes() -> frozenset[int]:
    """The process ids of this process's hosts. Kill their engines, not the hosts: a host reports the death and returns
    the finished rows."""
    return frozenset(_hosts)


def load_engine(spec: JobSpec, plan: Plan, fork: bool = False) -> Engine:
    """Load the model in this process. `fork`: see `VllmEngine`."""
    # The engines are imported here because vLLM takes seconds to import.
    if spec.model.source == SCRIPTED:
        from batchinfer.engine.scripted import ScriptedEngine

        return ScriptedEngine(spec)
    from batchinfer.engine.vllm import VllmEngine

    return VllmEngine(spec, plan, fork)


def last_error(lines: Sequence[str]) -> str | None:
    """The last error that an engine printed ("ValueError: ..."), without errors that refer to an earlier root cause."""
    for line in reversed(lines):
        found = _ERROR.search(line)
        if found is not None and "root cause" not in line:
            return f"{found[1]}: {found[2]}"[:500]
    return None


class _Call:
    def __init__(self, begun: Callable[[int], None], finished: Callable[[int], None]) -> None:
        self.told = {"begun": begun, "finished": finished}
        self.answer: list[Completion] | Exception | None = None
        self.done = threading.Event()


class HostedEngine:
    """An engine in a host process; see `engine.base.Engine`. Raises the EngineError and ResourceError of the engine."""

    def __init__(self, spec: JobSpec, plan: Plan) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._saying = threading.Thread(target=self._repeat, name="engine-output", daemon=True)
        self._saying.start()
        self._pipe = Connection(ours.detach())
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._death: str | None = None
        self._steps = 0
        try:
            self._pipe.send((spec, plan))
            started = self._pipe.recv()
        except (EOFError, OSError):
            started = EngineError(
                f"the process that loads {spec.model.source} ended: {self._ending()}",
                "its own messages in the log say why; a system that is out of memory kills it",
            )
        if isinstance(started, Exception):
            self.close()
            if isinstance(started, EngineError):
                # Wait a limited time: a remaining process of the engine may keep the pipe open.
                self._saying.join(_LAST_WORDS_SECONDS)
                cause = last_error(list(self._said))
                if cause is not None and cause not in started.message:
                    started.message += f"; the engine's own last error: {cause}"
            raise started
        # Registered after loading, because a host that is still loading may be killed with all its processes.
        _hosts.add(self._process.pid)
        threading.Thread(target=self._listen, name="engine-host", daemon=True).start()

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        call, number = _Call(begun, finished), next(self._numbers)
        with self._lock:
            self._calls[number] = call
            if self._death is None:
                # `_listen` notices a dead host and ends every call.
                with contextlib.suppress(OSError):
                    self._pipe.send((number, list(prompts)))
            else:
                call.done.set()
        call.done.wait()
        answer = call.answer
        if answer is None:
            # The host died with the finished rows of this call, so every row is missing and counts as running.
            raise EngineDied(self._death or "", [None] * len(prompts), range(len(prompts)))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def steps(self) -> int:
        return self._steps

    def close(self) -> None:
        # The host leaves at the end of the stream. Closing the pipe alone would not wake the thread that reads.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            end.shutdown(socket.SHUT_WR)
        self._ending()
        _hosts.discard(self._process.pid)

    def _repeat(self) -> None:
        """Print the output of the host and its engine, and keep its last lines."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace")
            self._said.append(text.rstrip())
            # The reader of stderr may be gone.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
                sys.stderr.flush()

    def _ending(self) -> str:
        """Wait for the host to end, and kill it after _LEAVE_SECONDS. Returns its exit code or signal as text."""
        try:
            code = self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, what, value = self._pipe.recv()
                if number == 0:
                    self._steps = value
                elif what == "answer":
                    self._answer(self._calls.pop(number), value)
                else:
                    self._calls[number].told[what](value)
        with self._lock:
            self._death = "the process of the engine ended"
            left, self._calls = self._calls, {}
            for call in left.values():
                call.done.set()
        self._pipe.close()

    @staticmethod
    def _answer(call: _Call, value: Any) -> None:
        # An EngineDied arrives as a tuple, because pickling it would lose its completions.
        call.answer = EngineDied(*value) if isinstance(value, tuple) else value
        call.done.set()


class _Host:
    """The host's end of the socket pair: runs each call in a thread, until the replica closes its end."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def serve(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            engine = self._load(*self._pipe.recv())
            if engine is None:
                return
            threading.Thread(target=self._beat, args=(engine,), daemon=True).start()
            try:
                while True:
                    threading.Thread(target=self._call, args=(engine, *self._pipe.recv()), daemon=True).start()
            finally:
                engine.close()

    def _load(self, spec: JobSpec, plan: Plan) -> Engine | None:
        try:
            # Engines for a GPU are not forked: vLLM advises against it for a process that may have initialised CUDA.
            engine = load_engine(spec, plan, fork=plan.accelerator == "cpu")
        except Exception as error:
            # Any error of loading is sent to the replica, which reports it.
            self._send(_known(error))
            return None
        self._send(None)
        return engine

    def _call(self, engine: Engine, number: int, prompts: list[Prompt]) -> None:
        try:
            found: Any = engine.generate(
                prompts,
                lambda rows: self._send((number, "begun", rows)),
                lambda rows: self._send((number, "finished", rows)),
            )
        except EngineDied as death:
            found = (str(death), list(death.completions), list(death.running))
        except Exception as error:
            # Every error is sent as an answer: the replica waits without a timeout.
            found = _known(error)
        self._send((number, "answer", found))

    def _beat(self, engine: Engine) -> None:
        steps, wake = -1, threading.Event()
        while not wake.wait(_BEAT_SECONDS):
            if engine.steps != steps:
                steps = engine.steps
                self._send((0, "steps", steps))

    def _send(self, message: Any) -> None:
        # Pickled before the lock is taken, so that a large answer does not delay the counts of rows.
        packed = ForkingPickler.dumps(message)
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send_bytes(packed)


def _known(error: Exception) -> BatchinferError:
    """The error as one of this package's types: the replica may be unable to unpickle others."""
    if isinstance(error, BatchinferError):
        return error
    traceback.print_exception(error)
    return EngineError(f"{type(error).__name__}: {error}", "the log says where")


def main() -> None:
    """Serve the replica at the other end of the socket whose file descriptor is the first argument."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    pipe = Connection(descriptor)
    # A forked engine must not keep the pipe open: otherwise the replica would not notice that the host died.
    os.register_at_fork(after_in_child=pipe.close)
    _Host(pipe).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip Python's own exit, which takes a second to release vLLM while the replica waits.
    os._exit(0)
