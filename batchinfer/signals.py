"""SIGINT, SIGTERM and SIGHUP: what the system calls does nothing but note the signal; a thread does the rest.

A handler that raises does so in the middle of whatever the main thread is at: an import, a lock, a call into Ray. And
Python runs handlers only between its own instructions, which a call into Ray may hold up for minutes. So the numbers
of signals arrive in a pipe, written by the interpreter's own handler, and a thread reads them.

What a signal does depends on where the command is:

- By default the command leaves: it runs its clean-ups, says one line and ends with exit code 4.
- In `with handled(action)`, `action` decides, as for shards in flight, which are to end first.
- After `let_end(True)` the work is done or failed already: the command ends by itself, with its own exit code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = 4
"""The exit code of a command that a signal stopped."""

END_SECONDS = 60.0
"""What a command has to end by itself, as when it writes its report to a slow store, before it is left."""
CLEAN_SECONDS = 15.0
"""What all clean-ups together have: the longest ends the processes of a local cluster, within a second or two."""

Action = Callable[[str, int], None]
"""Takes the name of the signal, and how many have come so far."""


class _Signals:
    """What this process does with signals."""

    def __init__(self) -> None:
        self.taken = False
        self.owned = False
        """Whether the process is a command's, which may be ended from here; a notebook's may not."""
        self.count = 0
        self.ending = False
        self.stderr = 2
        self.actions: list[Action] = []
        self.clean_ups: list[Callable[[], None]] = []
        self.timer: threading.Timer | None = None
        self.leaving = threading.Lock()


_state = _Signals()


def take() -> None:
    """Take the signals for the command that this process is, as early as may be. Only in the main thread."""
    _state.owned = True
    _take()


def _take() -> None:
    if not _state.taken:
        _state.taken = True
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_read, args=(reader,), name="signals", daemon=True).start()
        os.register_at_fork(after_in_child=_forget)
    retake()


def retake() -> None:
    """Again: Ray puts a handler of its own in place of SIGTERM's, which ends the process in its own way."""
    if not _state.taken or threading.current_thread() is not threading.main_thread():
        return
    for number in NUMBERS:
        # `nohup` and systemd have SIGHUP ignored, and mean it.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _noted)


def ignore() -> None:
    """Nothing stops the process any more: it has only to end. The interpreter resets other handlers before its end."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _noted(number: int, frame: FrameType | None) -> None:
    """The interpreter has written the number into the pipe."""


def _forget() -> None:
    """In a child that was forked: its signals are its own, and the pipe is its parent's."""
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
    """While it lasts, `action` decides what a signal does; it is called in a thread of its own.

    In a process that is no command (a notebook, a test) signals are taken only for so long, and only if this is its
    main thread.
    """
    before = None
    if not _state.taken and threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in NUMBERS}
        _take()
    elif _state.taken and not _state.owned and threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in NUMBERS}
        retake()
    _state.actions.append(action)
    try:
        yield
    finally:
        _state.actions.remove(action)
        for number, handler in (before or {}).items():
            signal.signal(number, handler)


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
    """Whether the command has done its work, or failed at it, and has only to end."""
    _state.ending = ending


def is_ending() -> bool:
    """See `let_end`."""
    return _state.ending


def speak_to(stderr: int) -> int:
    """Say the last line to this file descriptor from now on; returns the one before."""
    before, _state.stderr = _state.stderr, stderr
    return before


def pending() -> bool:
    """Has a signal come?"""
    return _state.count > 0


def let_leave() -> None:
    """Wait for the end of the process if `leave` is ending it: what fails meanwhile, fails because of that."""
    if _state.leaving.locked():
        # More than `leave` needs, so that the code and the one line are its own.
        time.sleep(2 * CLEAN_SECONDS)


def leave_after(seconds: float, line: str) -> None:
    """Leave the command unless it has ended by then; in a process that is no command, do nothing."""
    if _state.owned:
        _state.timer = threading.Timer(seconds, leave, (line,))
        _state.timer.daemon = True
        _state.timer.start()


def leave(line: str) -> None:
    """End the command now, whatever its other threads are at: clean up, say one line, exit code 4."""
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
        # The process ends in any case, and what is left behind is what `kill -9` leaves.
        with contextlib.suppress(Exception):
            clean_up()
