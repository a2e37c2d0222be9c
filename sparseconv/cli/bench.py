"""``python -m sparseconv bench``: the entry to ``benchmarks/bench`` of the repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(arguments: argparse.Namespace) -> int:
    """Time the sparse kernels and dense PyTorch (in a copy of the repository)."""
    if not (ROOT / "benchmarks" / "bench").is_dir():
        raise RuntimeError(
            "expected the folder benchmarks of sparseconv's repository, which is not installed "
            f"with the package, but {ROOT} has none; in a copy of the repository, run `pip install "
            "--no-build-isolation --editable '.[tsc]'`, then `python -m sparseconv bench`"
        )
    sys.path.insert(0, str(ROOT))  # of an editable installation, used from another folder
    from benchmarks.bench.command import main

    return main(arguments.rest)
