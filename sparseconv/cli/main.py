"""The command line, ``python -m sparseconv``."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sparseconv._version import __version__
from sparseconv.cli import export, info, profile, prune, train
from sparseconv.cli.options import INTERRUPTED, PROG

REFUSED = 2  # exit code: argparse's for bad usage
PIPE_CLOSED = 141  # as the shell counts SIGPIPE
ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Exit codes: 0, 1 (wrong result), 2 (invalid input or another error), 130 (interrupted), 141
    (output closed by its reader).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every encoding has ≥ or a file's name
            stream.reconfigure(errors="backslashreplace")
    args, rest = _parser().parse_known_args(argv)
    # Refused here, since argparse would show the usage of the whole program; bench parses its own.
    if rest and args.run is not bench:
        args.command.error("unrecognized arguments: " + " ".join(rest))
    args.rest = rest
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # of `... | head`: what was asked for has been read
        with contextlib.suppress(OSError):  # a stream without a descriptor needs none
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (ValueError, OSError, RuntimeError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return REFUSED
    return code


def _parser() -> argparse.ArgumentParser:
    """Build the parser; each command's help is the docstring of its ``run``."""
    parser = argparse.ArgumentParser(
        prog=PROG, description="Weight-sparse 1-D convolution for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"sparseconv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (info, train, prune, profile, export):
        text = inspect.getdoc(module.run) or ""
        name = module.__name__.rpartition(".")[2]
        first = text.partition("\n")[0]
        # Options are not abbreviated: --epoch could be a typing error for another one.
        command = commands.add_parser(name, help=first, description=text, allow_abbrev=False)
        command.set_defaults(run=module.run, command=command)
        module.add_options(command)
    command = commands.add_parser("bench", help=inspect.getdoc(bench), add_help=False)
    command.set_defaults(run=bench)
    return parser


def bench(arguments: argparse.Namespace) -> int:
    """Time the sparse kernels and dense PyTorch (in a copy of the repository)."""
    if not (ROOT / "benchmarks" / "bench").is_dir():
        raise RuntimeError(
            "expected the folder benchmarks of sparseconv's repository, which is not installed "
            f"with the package, but {ROOT} has none; in a copy of the repository, run `pip install "
            "--no-build-isolation --editable '.[tsc]'`, then `python -m sparseconv bench`"
        )
    sys.path.insert(0, str(ROOT))  # of an editable installation, used from another folder
    from benchmarks.bench import command

    return command.main(arguments.rest)
