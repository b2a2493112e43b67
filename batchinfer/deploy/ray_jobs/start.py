"""The entrypoint of a submitted job on the cluster. It is sent with the spec, so it imports only the standard library.

`python start.py VERSION` becomes `python -m batchinfer run job.yaml` if the cluster has that version of batchinfer.
Otherwise it prints the cluster's version and exits with 2.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Check the version, then run the job in this process, which receives the signals that Ray sends."""
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
