"""``python -m sparseconv export``: a trained network as C."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from sparseconv.cli.results import data_of_run, load_network


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "export",
        help="write a trained network as C for microcontrollers",
        description="Write the network of a run as C99 without dependencies: NAME.c, NAME.h, "
        "NAME_test.c with series of the training set, and README.md with sizes and cost. With "
        "--int8 the training set calibrates it.",
    )
    command.set_defaults(run=_export)
    command.add_argument("run_folder", metavar="RUN", help="results folder of `train`")
    command.add_argument("--int8", action="store_true", help="int8 weights and activations")
    command.add_argument(
        "--name", default="dsn", help="a C identifier that begins every name (default: dsn)"
    )
    command.add_argument(
        "--out", type=Path, help="folder, new or empty (default: RUN/c-float32 or RUN/c-int8)"
    )
    command.add_argument(
        "--data", metavar="NAME_OR_PATH",
        help="the data set of the run, as `train` accepts it (default: the name in the run)",
    )  # fmt: skip


def _export(args: argparse.Namespace) -> int:
    run, model = load_network(args.run_folder)
    data = data_of_run(run.config["data"], args.data, args.run_folder)
    from sparseconv.edge import export_c  # torch's observers take a moment to import

    weights = "int8" if args.int8 else "float32"
    folder = Path(args.run_folder)
    out = args.out or (folder if folder.is_dir() else folder.parent) / f"c-{weights}"
    series, classes = torch.from_numpy(data.X_train), list(map(str, data.classes))
    export_c(
        model, series, out, name=args.name, weights=weights,
        calibration=series if args.int8 else None, classes=classes,
    )  # fmt: skip
    files = ", ".join(sorted(file.name for file in out.iterdir()))
    print(f"{data.name}, {weights}: {out} holds {files}\nclasses, from 0: {', '.join(classes)}")
    return 0
