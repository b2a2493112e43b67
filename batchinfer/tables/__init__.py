"""Tables of Delta Lake and Iceberg: which files and rows a snapshot has, and one commit of a run's results.

`delta` and `iceberg` are the only places that know the libraries, which are extras.
"""
