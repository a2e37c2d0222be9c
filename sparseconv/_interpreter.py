"""Refuse a sub-interpreter before torch is imported there, which would never return."""

from __future__ import annotations

import contextlib
import importlib


def check() -> None:
    """Do nothing in the main interpreter.

    Raises:
        ImportError: this is another one.
    """
    for name in ("_interpreters", "_xxsubinterpreters"):  # Python 3.13; before
        with contextlib.suppress(ModuleNotFoundError):
            interpreters = importlib.import_module(name)
            if interpreters.get_current() != interpreters.get_main():
                raise ImportError(
                    "sparseconv runs in the main interpreter only, but this is a sub-interpreter, "
                    "where `import torch` waits for ever; use a process instead, and under "
                    "mod_wsgi `WSGIApplicationGroup %{GLOBAL}`"
                )
            return


check()
