"""A package, so that processes that tests start find `tests.support` from the repository's folder."""
