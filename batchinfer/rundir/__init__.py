"""The files of a run, and the commits of its shards. Only this package knows the names of the files."""
