"""OpenAI's Batch API in front of runs: files, batches, keys. The runs are the state.

Everything is an object below one folder, the root. A batch is a run folder; what a client asked and what became of it
are small objects beside the run's own files, each created if absent. No process keeps anything that another one needs.
"""
