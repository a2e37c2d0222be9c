"""Measure other authors' networks and classifiers with these kernels, for the documentation.

    python -m benchmarks.studies unpruned

A study measures the rows that its file lacks, and saves each at once: run an interrupted study
again to continue.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sparseconv.core.files import check_writable

STUDIES = (
    "published_networks", "unpruned", "classifiers", "blocks", "densities", "networks", "dilation",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--archive", type=Path, metavar="DIR",
                        help="folder of data sets, for classifiers and blocks")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to which rows are added")
    arguments = parser.parse_args(argv)
    study = import_module(f"benchmarks.studies.{arguments.study}")
    out = arguments.out or study.RESULTS
    try:
        check_writable(out)
        study.measure(out, arguments.archive)
    except ValueError as error:
        parser.error(str(error))
    print(study.section(out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
