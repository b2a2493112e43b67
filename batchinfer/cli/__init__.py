"""The command line: each command parses its options, calls one use case, prints and exits."""

from batchinfer.cli import compare as compare
from batchinfer.cli import costs as costs
from batchinfer.cli import explain as explain
from batchinfer.cli import gateway as gateway
from batchinfer.cli import render as render
from batchinfer.cli import run as run
from batchinfer.cli import run_batch as run_batch
from batchinfer.cli import schedule as schedule
from batchinfer.cli import submit as submit
from batchinfer.cli import tried as tried
from batchinfer.cli.app import app, main

__all__ = ["app", "main"]
