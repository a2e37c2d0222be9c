"""The results of the benchmark as an HTML page."""
