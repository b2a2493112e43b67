"""SIGINT, SIGTERM and SIGHUP: the handler only notes the signal, and a thread acts on it.

A handler that raises would interrupt the main thread anywhere: in an import, a lock or a call into Ray. Also, Python
runs handlers only between its own instructions, which a call into Ray may delay for minutes. So the interpreter's C
handler writes the signal's number into a pipe, and a thread reads the pipe.

The effect of a signal depends on the state of the command:

- By default the command leaves: it runs its clean-ups, prints one line and ends with exit code 4.
- In `with handled(action)`, `action` decides, for example to let the shards in flight finish.
- After `let_end(True)` the work is done or has failed: the command ends by itself, with its own exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from batchinfer.errors import Stopped

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = Stopped.exit_code
"""The exit code of a command that a signal stopped."""

END_SECONDS = 60.0
"""Seconds that a command has to end by itself after a signal, for example to write its report to a slow store. Shorter,
and a slow store loses the report."""
CLEAN_SECONDS = 15.0
"""Seconds for all clean-ups together. The longest, which ends the processes of a local cluster, needs one or two."""

Action = Callable[[str, int], None]
"""Is called with the name of the signal, and the number of signals so far."""


class _Signals:
    """The state of this process's signal handling."""

    def __init__(self) -> None:
        self.taken = False
        self.owned = False
        """Whether the process is a command, which may be ended from here. A notebook's process may not."""
        self.count = 0
        self.ending = False
        self.stderr = 2
        self.writer = -1
        """The end of the pipe that the interpreter's handler writes to."""
        self.actions: list[Action] = []
        self.clean_ups: list[Callable[[], None]] = []
        self.timer: threading.Timer | None = None
        self.leaving = threading.Lock()


_state = _Signals()


def take() -> None:
    """Handle the signals of this process, which is a command. Called in the main thread, as early as possible."""
    _state.owned = True
    _take()


def _take() -> None:
    if not _state.taken:
        _state.taken = True
        reader, _state.writer = os.pipe()
        os.set_blocking(_state.writer, False)
        threading.Thread(target=_read, args=(reader,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=_forget)
    _install()


def retake() -> None:
    """Install a command's handlers again, because Ray replaces SIGTERM's by one that raises SystemExit."""
    if _state.owned and threading.current_thread() is threading.main_thread():
        _install()


def _install() -> None:
    signal.set_wakeup_fd(_state.writer, warn_on_full_buffer=False)
    for number in NUMBERS:
        # An ignored SIGHUP stays ignored, because `nohup` and systemd set that on purpose.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _noted)


def ignore() -> None:
    """Ignore the signals in a process that is ending. Handlers would not do, because the interpreter resets them before
    its end."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _noted(number: int, frame: FrameType | None) -> None:
    """Nothing: the interpreter has written the number into the pipe."""


def _forget() -> None:
    """In a forked child, restore the default handlers, because the pipe is the parent's."""
    if threading.current_thread() is threading.main_thread() and _state.taken:
        signal.set_wakeup_fd(-1)
        for number in NUMBERS:
            if signal.getsignal(number) is _noted:
                signal.signal(number, signal.SIG_DFL)
    _state.taken = _state.owned = False
    _state.actions.clear()
    _state.clean_ups.clear()


def _read(reader: int) -> None:
    while True:
        for number in os.read(reader, 100):
            if number in NUMBERS:
                _state.count += 1
                _act(signal.Signals(number).name)


def _act(name: str) -> None:
    if _state.actions:
        _state.actions[-1](name, _state.count)
    elif not _state.ending:
        leave(f"stopped by {name}: the same command begins again, or goes on where it was")
    elif _state.timer is None:
        leave_after(END_SECONDS, f"stopped by {name}: the end of the command took longer than {END_SECONDS:g} s")


@contextlib.contextmanager
def handled(action: Action) -> Iterator[None]:
    """A context in which a signal calls `action`, in another thread.

    In a process that is no command (a notebook, a test) signals are handled only in the context, and only if the
    context is in the main thread.
    """
    borrowed = contextlib.nullcontext() if _state.owned else as_found()
    with borrowed:
        if not _state.owned and threading.current_thread() is threading.main_thread():
            _take()
        _state.actions.append(action)
        try:
            yield
        finally:
            _state.actions.remove(action)


@contextlib.contextmanager
def as_found() -> Iterator[None]:
    """A context at whose end the main thread's handlers, and the pipe that an event loop reads, are those of its begin.

    In another thread it does nothing, because handlers belong to the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NUMBERS}
    pipe = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(pipe)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(pipe)


@contextlib.contextmanager
def cleaning(clean_up: Callable[[], None], after_others: bool = False) -> Iterator[None]:
    """While it lasts, a command that leaves calls `clean_up` before; the last one registered is called first.

    `after_others`: it is called after all others, as the release of a lock, after which nothing may be written.
    """
    _state.clean_ups.insert(0 if after_others else len(_state.clean_ups), clean_up)
    try:
        yield
    finally:
        _state.clean_ups.remove(clean_up)


def let_end(ending: bool) -> None:
    """Set whether the command's work is done or has failed, so that it ends by itself."""
    _state.ending = ending


def is_ending() -> bool:
    """See `let_end`."""
    return _state.ending


def speak_to(stderr: int) -> int:
    """Print the last line to this file descriptor from now on. Returns the previous descriptor."""
    before, _state.stderr = _state.stderr, stderr
    return before


def pending() -> bool:
    """Whether a signal has come."""
    return _state.count > 0


def let_leave() -> None:
    """Wait for the end of the process if `leave` is ending it: what fails meanwhile, fails because of that."""
    if _state.leaving.locked():
        # More than `leave` needs, so that the code and the one line are its own.
        time.sleep(2 * CLEAN_SECONDS)


def leave_after(seconds: float, line: str) -> None:
    """Leave the command after `seconds`, unless it has ended by then. In a process that is no command, do nothing."""
    if _state.owned:
        _state.timer = threading.Timer(seconds, leave, (line,))
        _state.timer.daemon = True
        _state.timer.start()


def leave(line: str) -> None:
    """End the command now, whatever its other threads do: clean up, print one line, exit with code 4."""
    if not _state.leaving.acquire(blocking=False):
        return
    cleaning_up = threading.Thread(target=_clean_up, name="clean-up", daemon=True)
    cleaning_up.start()
    cleaning_up.join(CLEAN_SECONDS)
    with contextlib.suppress(OSError):
        os.write(_state.stderr, f"error: {line}\n".encode())
    os._exit(STOPPED)


def _clean_up() -> None:
    for clean_up in reversed(list(_state.clean_ups)):
        # The process ends even if a clean-up fails. What is left is no more than `kill -9` leaves.
        with contextlib.suppress(Exception):
            clean_up()
