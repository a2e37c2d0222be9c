"""``python -m benchmarks.paper``: reproduce the DSN paper's tables and figures from one plan.

``run PLAN`` trains and tests what a plan names, on a folder's data sets; after an interruption, run
the same command again to continue. ``time`` times the networks of the rows; use an idle machine.
``report`` makes tables and figures.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.paper.archives import open_archive
from benchmarks.paper.plan import PLANS, read_plan
from benchmarks.paper.report import write_report
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import dask_pool, local_pool, sweep
from benchmarks.paper.tables.cells import counted
from benchmarks.paper.times import TIMES_NAME, measure


def complain(text: str) -> None:
    print(text, file=sys.stderr)


def run(arguments: argparse.Namespace) -> int:
    """Run a plan and report; return 1 if a job failed or a data set could not be read."""
    archive = open_archive(arguments.archive)
    for name, message in archive.broken.items():
        complain(f"left out: {name}: {message}")
    jobs = read_plan(arguments.plan, archive, left_out=lambda what: complain(f"left out: {what}"))
    out = arguments.out = arguments.out or Path("paper") / Path(arguments.plan).stem
    sets = counted(len({job.dataset for job in jobs}), "data set")
    source = arguments.archive or "aeon (for an archive: --archive DIR)"
    print(f"{counted(len(jobs), 'job')} on {sets} of {source}, rows in {out}")
    address = arguments.scheduler
    if arguments.device == "cuda" and address is None and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU, but torch sees none; omit the option")
    pool = local_pool(arguments.workers) if address is None else dask_pool(address)
    failed = sweep(jobs, archive, out, pool, arguments.device)
    for job, message in failed.items():
        complain(f"FAILED: {job}: {message}")
    if len(failed) < len(jobs):
        report(arguments)
    if not failed and not archive.broken:
        return 0
    complain(
        f"{len(jobs) - len(failed)} of {len(jobs)} jobs done; {len(failed)} failed, "
        f"{counted(len(archive.broken), 'data set')} could not be read"
    )
    return 1


def report(arguments: argparse.Namespace) -> int:
    page = write_report(read_rows(arguments.out / ROWS_NAME), arguments.out / "report")
    print(f"wrote {page}")
    return 0


def time(arguments: argparse.Namespace) -> int:
    times = arguments.out / TIMES_NAME
    if added := measure(read_rows(arguments.out / ROWS_NAME), times):
        print(f"measured the networks of {counted(added, 'data set')}: {times}")
    else:
        print("nothing to measure: no data set has two different unmeasured networks")
    return report(arguments)


def folder(text: str) -> Path:
    return Path(text).expanduser()  # make hands "~" over as it is


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    running = commands.add_parser("run", help="train and test what a plan names")
    plans = ", ".join(sorted(path.stem for path in PLANS.glob("*.toml")))
    running.add_argument("plan", help=f"a .toml file, or one of {plans}")
    running.add_argument(
        "--archive", type=folder, metavar="DIR",
        help="a folder with NAME.npz files or pairs NAME_TRAIN and NAME_TEST (default: the sets "
        "bundled with aeon)",
    )  # fmt: skip
    running.add_argument(
        "--out", type=folder, metavar="DIR", help="folder for rows and report (default: paper/PLAN)"
    )
    where = running.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="number of single-threaded processes (default: one for each available core)",
    )  # fmt: skip
    where.add_argument(
        "--scheduler", metavar="ADDRESS",
        help="address of a Dask cluster (pip install distributed) that runs the jobs",
    )  # fmt: skip
    running.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="where to train networks (default: cpu); cuda uses CUDA graphs, and the rows have no "
        "times",
    )  # fmt: skip
    running.set_defaults(command=run)
    for command, what in (
        (report, "make tables and figures from the rows"),
        (time, "measure the networks of the rows"),
    ):
        of_rows = commands.add_parser(command.__name__, help=what)
        of_rows.add_argument("out", type=folder, help="the folder of a sweep")
        of_rows.set_defaults(command=command)
    arguments = parser.parse_args(argv)
    try:
        return arguments.command(arguments)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        complain("interrupted; run the same command again to continue")
        return 130


if __name__ == "__main__":
    # What stops a job of a cluster is like Ctrl-C: workers end, and it says how to go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(main())
