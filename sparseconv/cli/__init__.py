"""The command line."""

from sparseconv.cli.main import main

__all__ = ["main"]
