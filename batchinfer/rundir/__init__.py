"""The files of one run, and the only place that knows their names: records go in, committed shards come out."""
