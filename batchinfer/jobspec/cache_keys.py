"""The keys of `cache`: where answers are kept for the runs to come."""

from __future__ import annotations

from batchinfer.jobspec.base import Keys, Place


class CacheSpec(Keys):
    """Answers that are kept across runs, jobs and teams.

    A request that is the same to the last token, for the same model and sampling, gets the answer that an earlier run
    had: `reused` is true, and no tokens are booked. Needs temperature 0 or a seed in each prompt's sampling.
    """

    uri: Place
    """The folder or bucket of the answers, as `s3://team/answers`. Any number of runs may use it at once.

    Files there may be deleted at any time: what is gone runs again. Whoever can write there decides what your runs
    answer."""
