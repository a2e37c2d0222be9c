"""``python -m benchmarks.paper``: the tables and figures of the DSN paper, from runs of one plan.

``run PLAN`` trains and tests what a plan names, on the data sets of a folder; stopped at any
instant, the same command goes on. ``time`` measures the networks of the rows, when the machine does
nothing else. ``report`` makes tables and figures of the rows and times.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.archives import open_archive
from benchmarks.paper.plan import PLANS, read_plan
from benchmarks.paper.report import write_report
from benchmarks.paper.rows import ROWS_NAME, read_rows
from benchmarks.paper.sweep import dask_pool, local_pool, sweep
from benchmarks.paper.tables.cells import counted
from benchmarks.paper.times import TIMES_NAME, measure


def run(arguments: argparse.Namespace) -> int:
    """Run a plan and report; 1 if a job failed or a data set could not be read."""
    archive = open_archive(arguments.archive)
    for name, message in archive.broken.items():
        print(f"left out: {name}: {message}", file=sys.stderr)
    if archive.broken:
        print("a plan that asks for the cheapest sets takes others instead", file=sys.stderr)
    jobs = read_plan(
        arguments.plan, archive, lambda what: print(f"left out: {what}", file=sys.stderr)
    )
    if arguments.out is None:
        arguments.out = Path("paper") / Path(arguments.plan).stem
    sets = counted(len({job.dataset for job in jobs}), "data set")
    print(
        f"{counted(len(jobs), 'job')} on {sets} of "
        f"{arguments.archive or 'aeon (--archive DIR: of an archive)'}, rows in {arguments.out}"
    )
    address = arguments.scheduler
    if arguments.device == "cuda" and address is None and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU, but torch sees none; leave it out")
    pool = local_pool(arguments.workers) if address is None else dask_pool(address)
    failed = sweep(jobs, archive, arguments.out, pool, arguments.device)
    for job, message in failed.items():
        print(f"FAILED: {job}: {message}", file=sys.stderr)
    bad = len(failed) + len(archive.broken)
    if bad:
        names = f" ({', '.join(archive.broken)})" if archive.broken else ""
        print(
            f"{len(jobs) - len(failed)} of {len(jobs)} jobs done; {len(failed)} failed, "
            f"{counted(len(archive.broken), 'data set')} could not be read{names}",
            file=sys.stderr,
        )
    if len(failed) < len(jobs):
        report(arguments)
    return 1 if bad else 0


def report(arguments: argparse.Namespace) -> int:
    """Make tables and figures of the rows that are there."""
    page = write_report(_rows(arguments), arguments.out / "report")
    print(f"wrote {page}")
    return 0


def time(arguments: argparse.Namespace) -> int:
    """Measure the networks of the rows, and report."""
    times = arguments.out / TIMES_NAME
    if added := measure(_rows(arguments), times):
        print(f"measured the networks of {counted(added, 'data set')}: {times}")
    else:
        print("nothing to measure: no data set has two networks that differ and were not measured")
    return report(arguments)


def _rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    if not arguments.out.is_dir():
        state = "is no folder" if arguments.out.exists() else "does not exist"
        raise ValueError(f"{arguments.out} {state}; name the folder that a sweep wrote")
    return read_rows(arguments.out / ROWS_NAME)


def cores() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def filled(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def folder(text: str) -> Path:
    # "" would be the current one, and make hands "~" over as it is.
    return Path(filled(text)).expanduser()


def positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, but got {text!r}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    running = commands.add_parser("run", help="train and test what a plan names")
    plans = ", ".join(sorted(path.stem for path in PLANS.glob("*.toml")))
    running.add_argument("plan", help=f"a .toml file, or one of {plans}")
    running.add_argument(
        "--archive", type=folder, metavar="DIR",
        help="a folder with NAME.npz files or NAME_TRAIN.ts and NAME_TEST.ts (default: the sets "
        "that aeon brings along)",
    )  # fmt: skip
    running.add_argument(
        "--out", type=folder, metavar="DIR", help="for rows and report (default: paper/PLAN)"
    )
    where = running.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=positive, default=cores(), metavar="N",
        help="processes, one thread each (default: as many as cores that this one may use)",
    )  # fmt: skip
    where.add_argument(
        "--scheduler",
        type=filled,
        metavar="ADDRESS",
        help="of a Dask cluster that runs the jobs",
    )
    running.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="where networks are trained; on a GPU as CUDA graphs, and their rows have no times "
        "(default: cpu)",
    )  # fmt: skip
    running.set_defaults(command=run)
    reporting = commands.add_parser("report", help="make tables and figures of the rows")
    reporting.add_argument("out", type=folder, help="the folder of a sweep")
    reporting.set_defaults(command=report)
    timing = commands.add_parser("time", help="measure the networks of the rows")
    timing.add_argument("out", type=folder, help="the folder of a sweep")
    timing.set_defaults(command=time)
    arguments = parser.parse_args(argv)
    # What stops a job of a cluster is like Ctrl-C: workers end, and it says how to go on.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code: int = arguments.command(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where, why = error.filename or "a file", error.strerror or error
        print(f"error: {where} cannot be used ({why}); choose another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
