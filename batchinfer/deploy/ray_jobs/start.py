"""The entrypoint of a submitted job, on the cluster: sent beside the spec, so it imports nothing but Python's own.

`python start.py VERSION`: become `python -m batchinfer run job.yaml` if batchinfer there is of that version, else
say what is there and exit 2.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Check the version, then run the job in this very process: the signals that Ray sends reach it."""
    wanted = sys.argv[1]
    try:
        from batchinfer import __version__ as found
    except ModuleNotFoundError as error:
        if error.name != "batchinfer":
            raise
        found = "none"
    if found != wanted:
        there = "has no batchinfer" if found == "none" else f"has batchinfer {found}"
        print(f"error: the cluster {there}, this is {wanted}", file=sys.stderr)
        print(f"  -> install batchinfer=={wanted} in the cluster's image, or submit --with-package", file=sys.stderr)
        sys.exit(2)
    print(f"batchinfer {found} on {os.uname().nodename}", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "batchinfer", "run", "job.yaml"])


if __name__ == "__main__":
    main()
