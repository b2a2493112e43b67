"""`python -m batchinfer`, for clusters where the package is a working directory, not installed."""

from batchinfer.cli import main

main()
