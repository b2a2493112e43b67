"""The command. `python -m batchinfer` works on clusters where the package is a working directory, not installed."""

import sys

from batchinfer import signals
from batchinfer.errors import UserError
from batchinfer.outlet import open_standard_streams
from batchinfer.start_up import require_process


def main() -> None:
    """Handle signals before the slow imports, then run the command."""
    signals.take()
    open_standard_streams()
    try:
        require_process()
    except UserError as error:
        print(f"error: {error.message}\n  -> {error.remedy}", file=sys.stderr)
        sys.exit(error.exit_code)
    from batchinfer.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
