"""The entrypoint of a RayJob of KubeRay: `python -m batchinfer.deploy.ray_jobs.entrypoint COMMAND...`.

KubeRay starts a second cluster whenever a job has failed, up to `backoffLimit`, whatever the exit code. After an exit
code in `FINAL`, a second cluster would not help, so this entrypoint stops its own job. KubeRay then counts the job as
complete: state STOPPED, exit code and message in the log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from batchinfer.errors import Stopped, TooManyFailedRows, UserError

FINAL = (UserError.exit_code, TooManyFailedRows.exit_code, Stopped.exit_code)
"""Exit codes that a second cluster would repeat: a user's mistake, too many failed rows, a stop or a spent budget."""

STOP_SECONDS = 60.0
"""Seconds that Ray has to end this process after `stop_job`; it needs about one. Later, the job counts as failed."""


def main() -> int:
    """Run the command as a child and wait for its end. Ray sends signals to the child too."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # A handler, not SIG_IGN, which the child would inherit.
        signal.signal(number, lambda *_: None)
    code = subprocess.Popen([sys.executable, "-m", "batchinfer", *sys.argv[1:]]).wait()
    if code in FINAL:
        print(f"exit code {code}: stopping the job, since a second cluster would not mend that", flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _stop_own_job()
    return code if code >= 0 else 1


def _stop_own_job() -> None:
    """Ask Ray to stop the job of this process. If that fails, the job counts as failed with the command's exit code."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    job_id = config.get("metadata", {}).get("job_submission_id")
    if job_id is None:
        return
    try:
        from ray.job_submission import JobSubmissionClient

        JobSubmissionClient().stop_job(job_id)
    except Exception as error:
        # A failed stop of any kind must not replace the command's exit code.
        print(f"the job could not be stopped: {error}", file=sys.stderr, flush=True)
        return
    time.sleep(STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
