"""``python -m sparseconv profile``: the sparse layers of a trained network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from sparseconv.cli.options import add_threads, at_least
from sparseconv.cli.results import load_network
from sparseconv.core.files import check_writable, write_whole
from sparseconv.measure import machine
from sparseconv.measure.memory import retain_freed_memory
from sparseconv.training.recipe import Recipe


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "profile",
        help="measure each sparse layer beside the same layer dense",
        description="Measure each sparse layer of a trained Dynamic Sparse Network beside the same "
        "layer dense, with the pattern of its best epoch.",
    )
    command.set_defaults(run=_profile)
    command.add_argument(
        "run_folder", metavar="RUN", help="results folder of `train`, or its checkpoint.pt"
    )
    for name, text in (
        ("length", "samples of a series (default: those of the training series)"),
        ("batch", "series in a batch (default: as in training)"),
    ):
        command.add_argument(f"--{name}", type=at_least(1), metavar="X", help=text)
    add_threads(command, "as in training")
    command.add_argument(
        "--inference", action="store_true", help="eval mode, no gradients, forward only"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")


def _profile(args: argparse.Namespace) -> int:
    run, model = load_network(args.run_folder)
    data = run.config["data"]
    batch = args.batch or Recipe(**run.config["recipe"]).batch_size_for(data["n_train"])
    length = args.length or data["n_timepoints"]
    if args.json is not None:
        check_writable(args.json)

    retain_freed_memory()  # as train() does
    model.train(not args.inference)
    # Random series: no kernel's time depends on the numbers in them.
    x = torch.randn(batch, data["n_channels"], length, generator=torch.Generator())
    from sparseconv.profiling import profile  # needed by this command only

    with machine.threads(args.threads or int(run.config["machine"]["threads"])):
        found = profile(model, x, backward=not args.inference)
    if args.json is not None:
        write_whole(args.json, json.dumps(found.to_dict(), indent=2) + "\n")
    print(found)
    return 0
