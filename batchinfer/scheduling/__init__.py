"""Recurring jobs: the runs that are due by a spec's schedule."""
