"""LocalStack's own S3 on loopback, from a virtual environment of its own: its pins do not go with the project's.

`make soak` makes the environment (`.venv-localstack`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.support import ROOT

PYTHON = ROOT / ".venv-localstack" / "bin" / "python"
START_SECONDS = 180
"""It takes 5 s on a quiet machine; shorter, and a busy one fails the tests that it serves."""


class LocalStack:
    """Serves S3 alone, keeps everything below `folder`, and asks nothing of the network."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))},
            "SERVICES": "s3",
            "EAGER_SERVICE_LOADING": "1",
            "GATEWAY_LISTEN": f"127.0.0.1:{port}",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DISABLE_EVENTS": "1",
            "FILESYSTEM_ROOT": str(folder),
            "LOCALSTACK_VOLUME_DIR": str(folder),
        }

    def __enter__(self) -> LocalStack:
        with (self._folder / "localstack.log").open("wb") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "localstack.runtime.main"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError((self._folder / "localstack.log").read_text()[-2000:])
            time.sleep(0.5)
        return self

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/_localstack/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()
