from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.integration

# Under `nohup` a process begins with SIGHUP ignored, and so would these.
PRELUDE = (
    "import os, signal, sys, threading, time; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "from batchinfer import signals; "
)


def started(code: str, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that runs `code` with signals taken, once it has made the file `ready`."""
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{PRELUDE}ready = lambda: open({str(ready)!r}, 'w').close()\n{code}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_a_command_that_is_signalled_ends_with_code_4_and_one_line(
    tmp_path: Path, number: signal.Signals, times: int
) -> None:
    process = started("signals.take(); ready(); time.sleep(60)", tmp_path)
    for _ in range(times):
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, "")
    assert err == f"error: stopped by {number.name}: the same command begins again, or goes on where it was\n"


def test_a_main_thread_that_python_cannot_interrupt_does_not_hold_the_command(tmp_path: Path) -> None:
    # The thread waits in C, where no handler of Python's runs.
    code = "import ctypes; signals.take(); ready()"
    code += "\nwhile True: ctypes.CDLL(None).pause()"
    process = started(code, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 4


def test_a_handler_that_another_package_puts_in_place_does_not_take_the_signal_away(tmp_path: Path) -> None:
    code = "signals.take(); signal.signal(signal.SIGTERM, lambda *_: time.sleep(60)); ready(); time.sleep(60)"
    process = started(code, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 4


def test_clean_ups_are_run_last_in_first_out_and_one_that_fails_stops_none(tmp_path: Path) -> None:
    code = """
def fail(): raise OSError
signals.take()
with signals.cleaning(lambda: print("first", flush=True)), signals.cleaning(fail):
    with signals.cleaning(lambda: print("second", flush=True)):
        ready()
        time.sleep(60)
"""
    process = started(code, tmp_path)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, "second\nfirst\n")


def test_what_fails_because_the_command_leaves_adds_no_line_and_has_no_code(tmp_path: Path) -> None:
    code = """
import batchinfer.cli; cli = sys.modules["batchinfer.cli.app"]
from batchinfer.errors import EngineError
gone = threading.Event()
def run():
    ready()
    gone.wait()
    raise EngineError("the cluster is gone")
cli.app = run
signals.take()
def clean_up():
    gone.set()
    time.sleep(0.5)
with signals.cleaning(clean_up):
    cli.main()
"""
    process = started(code, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert err.splitlines() == ["error: stopped by SIGTERM: the same command begins again, or goes on where it was"]


def test_a_lock_in_a_store_is_given_back_after_all_other_clean_ups(tmp_path: Path) -> None:
    code = """
from batchinfer.storage.lease import Lease
def write(data, tag=None):
    print(b'"released": true' in data, flush=True)
    return "tag"
signals.take()
with Lease("s3://b/lock", 3600, 1, write, write, lambda: None):
    with signals.cleaning(lambda: print("other", flush=True)):
        ready()
        time.sleep(60)
"""
    process = started(code, tmp_path)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (4, "False\nother\nTrue\n")


def test_a_command_whose_work_is_done_ends_with_its_own_code(tmp_path: Path) -> None:
    process = started("signals.take(); signals.let_end(True); ready(); time.sleep(2); sys.exit(3)", tmp_path)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (3, "")


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN); signals.take(); ready(); time.sleep(2); print('lived')"
    process = started(code, tmp_path)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "lived\n")


def test_a_forked_child_has_the_signals_of_a_process_of_its_own(tmp_path: Path) -> None:
    code = """
signals.take()
child = os.fork()
if child == 0:
    ready()
    time.sleep(60)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), signals.pending())
"""
    process = started(code, tmp_path)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(child, signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert out == f"{-signal.SIGTERM} False\n"


def test_a_process_that_is_no_command_has_its_handlers_back_afterwards(tmp_path: Path) -> None:
    code = """
heard = []
before = [signal.getsignal(number) for number in signals.NUMBERS]
for _ in range(2):
    with signals.handled(lambda name, count: heard.append(name)):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before
ready()
print(heard)
"""
    process = started(code, tmp_path)
    out, err = process.communicate(timeout=30)
    assert out == "['SIGTERM', 'SIGTERM']\n", err


def test_a_process_that_is_no_command_has_its_handlers_and_its_pipe_back(tmp_path: Path) -> None:
    code = """
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
mine = lambda number, frame: None
signal.signal(signal.SIGINT, mine)
for _ in range(2):
    with signals.handled(lambda name, count: print(name)):
        assert signal.getsignal(signal.SIGINT) is not mine
    # As after a local cluster has started, between two runs.
    signals.retake()
    assert signal.getsignal(signal.SIGINT) is mine
    with signals.as_found():
        signal.signal(signal.SIGTERM, mine)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
assert signal.set_wakeup_fd(-1) == writer
ready()
"""
    process = started(code, tmp_path)
    assert (process.wait(timeout=30), process.communicate()) == (0, ("", ""))


def test_another_thread_than_the_main_one_sets_no_handler(tmp_path: Path) -> None:
    code = """
seen = []
def run():
    with signals.as_found(), signals.handled(lambda name, count: None):
        seen.append(signal.getsignal(signal.SIGINT))
thread = threading.Thread(target=run)
thread.start()
thread.join()
assert seen == [signal.default_int_handler]
ready()
"""
    process = started(code, tmp_path)
    assert (process.wait(timeout=30), process.communicate()) == (0, ("", ""))
