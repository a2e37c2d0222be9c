"""Compare exported networks with PyTorch, on this processor and on emulated ones.

    python -m benchmarks.edge [--archive DIR | --run runs/GunPoint-seed0]

Trains networks for 100 epochs, exports them, and predicts test sets on each processor whose tools
are installed. For other processors, it prints what to install. Rows are written to
``benchmarks/results`` one by one; after an interruption, run it again to add the missing rows.
docs/edge.md shows them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.edge import measure, report, targets
from benchmarks.recording import read_lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edge", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--archive", type=Path, metavar="DIR",
                        help=f"folder of data sets, for {', '.join(measure.ARCHIVE)}")  # fmt: skip
    parser.add_argument("--run", type=Path, metavar="FOLDER",
                        help="measure only this run of `python -m sparseconv train`, and write "
                        "edge.jsonl to its folder")  # fmt: skip
    parser.add_argument("--data", metavar="NAME_OR_PATH",
                        help="data set of --run (default: where the run found it)")  # fmt: skip
    arguments = parser.parse_args(argv)
    machines = targets.available()
    try:
        if arguments.run is None:
            out, networks = measure.RESULTS, measure.trained(arguments.archive)
        else:
            out = arguments.run / "edge.jsonl"
            networks = [measure.load(arguments.run, arguments.data)]
        for network in networks:
            measure.measure(network, machines, out)
        print(report.cost_table(read_lines(out)).markdown())
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
