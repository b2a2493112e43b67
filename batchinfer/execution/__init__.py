"""Running a job on Ray Data: a checked spec goes in, committed shards and a report come out."""
