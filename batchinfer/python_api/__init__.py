"""The Python API: a job and its runs as objects, over the use cases that the commands call."""
