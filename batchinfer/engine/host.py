"""The engine's host: a process of its own that imports vLLM, holds the engine and serves one replica.

Why it is not the replica itself. vLLM takes 13 seconds of CPU to import, and its engine is one more process. A Ray
worker must not be forked (it shares its sockets and has dozens of threads), so an engine that a replica starts
imports everything a second time. The host is started afresh, runs no other thread of Python's while it loads, and may
be forked: what it has imported its engine has too. Nor does Ray's own work share an interpreter with the tokenizer.

The two talk over a pair of sockets. The replica sends the spec and the plan, then (number, prompts) for each call; it
closes its end when it leaves. The host sends that it is ready, or the exception that loading raised; then
(number, what, value) of each call, and number 0 for the engine's steps.
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
"""What an engine gets to end its processes, before its host is killed and the replica's guard kills the rest."""

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from batchinfer.engine import host; host.main()"

_KEPT_LINES = 400
"""Of what an engine prints: a traceback of vLLM's, through several processes, has some 100."""
_LAST_WORDS_SECONDS = 2.0
_ERROR = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception|Interrupt)): (\S.*)")

_hosts: set[int] = set()


def host_processes() -> frozenset[int]:
    """The process ids of the hosts of this process. Their engines may be killed under them: they say so, and hand
    over what was finished."""
    return frozenset(_hosts)


def load_engine(spec: JobSpec, plan: Plan, fork: bool = False) -> Engine:
    """Load the model in this process. `fork`: see `VllmEngine`."""
    # Imported here: vLLM takes seconds to import.
    if spec.model.source == SCRIPTED:
        from batchinfer.engine.scripted import ScriptedEngine

        return ScriptedEngine(spec)
    from batchinfer.engine.vllm import VllmEngine

    return VllmEngine(spec, plan, fork)


def last_error(lines: Sequence[str]) -> str | None:
    """The last error that an engine printed ("ValueError: ..."), other than those that point to an earlier one."""
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
    """An engine in a process of its own; see `engine.base.Engine`. Raises EngineError and ResourceError as the engine
    itself does."""

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
                # A process of the engine that is left may hold the pipe open.
                self._saying.join(_LAST_WORDS_SECONDS)
                cause = last_error(list(self._said))
                if cause is not None and cause not in started.message:
                    started.message += f"; the engine's own last error: {cause}"
            raise started
        # Only now: a host that still loads may be killed with all that it has started.
        _hosts.add(self._process.pid)
        threading.Thread(target=self._listen, name="engine-host", daemon=True).start()

    def generate(
        self, prompts: Sequence[Prompt], begun: Callable[[int], None], finished: Callable[[int], None]
    ) -> list[Completion]:
        call, number = _Call(begun, finished), next(self._numbers)
        with self._lock:
            self._calls[number] = call
            if self._death is None:
                # A host that is gone is noticed by `_listen`, which answers every call.
                with contextlib.suppress(OSError):
                    self._pipe.send((number, list(prompts)))
            else:
                call.done.set()
        call.done.wait()
        answer = call.answer
        if answer is None:
            # With its host go all of the call's rows, also those that were finished, and what says which were running.
            raise EngineDied(self._death or "", [None] * len(prompts), range(len(prompts)))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def steps(self) -> int:
        return self._steps

    def close(self) -> None:
        # The end of the stream is what the host leaves at; a close alone would not wake the thread that reads.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            end.shutdown(socket.SHUT_WR)
        self._ending()
        _hosts.discard(self._process.pid)

    def _repeat(self) -> None:
        """Print what the host and its engine print, and keep the end of it."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace")
            self._said.append(text.rstrip())
            # Whoever reads the log may be gone.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
                sys.stderr.flush()

    def _ending(self) -> str:
        """Wait for the host to end, for as long as that may take; what it ended with."""
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
        # An EngineDied loses its completions on the way: it comes in parts.
        call.answer = EngineDied(*value) if isinstance(value, tuple) else value
        call.done.set()


class _Host:
    """The other end: answers calls, each in a thread, until the replica closes its end."""

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
            # A GPU's engine is started afresh, as vLLM says for a process that may have touched CUDA.
            engine = load_engine(spec, plan, fork=plan.accelerator == "cpu")
        except Exception as error:
            # Whatever loading raises is the replica's to hear: this process has nobody else to tell.
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
            # A call without an answer would wait for ever.
            found = _known(error)
        self._send((number, "answer", found))

    def _beat(self, engine: Engine) -> None:
        steps, wake = -1, threading.Event()
        while not wake.wait(_BEAT_SECONDS):
            if engine.steps != steps:
                steps = engine.steps
                self._send((0, "steps", steps))

    def _send(self, message: Any) -> None:
        # Answers may be large, and whoever counts rows should not wait for one to be packed.
        packed = ForkingPickler.dumps(message)
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send_bytes(packed)


def _known(error: Exception) -> BatchinferError:
    """An exception that is sure to arrive as it left: another process may not be able to make it again."""
    if isinstance(error, BatchinferError):
        return error
    traceback.print_exception(error)
    return EngineError(f"{type(error).__name__}: {error}", "the log says where")


def main() -> None:
    """Serve the replica at the other end of the socket whose file descriptor is the first argument."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    pipe = Connection(descriptor)
    # Else an engine that was forked from here would hold it open, and a host that dies would not be missed.
    os.register_at_fork(after_in_child=pipe.close)
    _Host(pipe).serve()
    sys.stdout.flush()
    sys.stderr.flush()
    # What is left is a second's work of forgetting vLLM, for which the replica would have to wait.
    os._exit(0)
