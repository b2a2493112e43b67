"""Recurring jobs: a spec with a schedule and the time go in, the runs that are due are run."""
