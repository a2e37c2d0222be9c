"""``python -m sparseconv export``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sparseconv.cli.options import DATA, RUN
from sparseconv.cli.results import data_of_run, folder_of, load_network


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run_folder", **RUN)
    add("--int8", action="store_true", help="int8 weights and activations")
    add("--name", default="dsn", help="C identifier with which every name begins (default: dsn)")
    add("--out", type=Path, help="folder, new or empty (default: RUN/c-float32 or RUN/c-int8)")
    add("--data", **DATA)


def run(args: argparse.Namespace) -> int:
    """Write a trained network as C for microcontrollers.

    The folder receives C99 without dependencies: NAME.c, NAME.h, NAME_test.c with series from the
    training set, and README.md with sizes and cost. With --int8, the network is calibrated on the
    training set.
    """
    trained, model = load_network(args.run_folder)
    data = data_of_run(trained.config["data"], args.data, args.run_folder)
    # torch's observers take a moment to import
    from sparseconv.edge.export import Weights, export_c

    weights: Weights = "int8" if args.int8 else "float32"
    out = args.out or folder_of(args.run_folder) / f"c-{weights}"
    series, classes = torch.from_numpy(data.X_train), list(map(str, data.classes))
    export_c(
        model, series, out, name=args.name, weights=weights,
        calibration=series if args.int8 else None, classes=classes,
    )  # fmt: skip
    files = ", ".join(sorted(file.name for file in out.iterdir()))
    print(f"{data.name}, {weights}: {out} contains {files}\nclasses, from 0: {', '.join(classes)}")
    return 0
