"""The command. `python -m batchinfer` serves clusters where the package is a working directory, not installed."""

from batchinfer import signals


def main() -> None:
    """Take the signals before anything is imported that takes time, then run the command."""
    signals.take()
    from batchinfer.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
