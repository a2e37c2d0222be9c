"""``python -m sparseconv profile``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sparseconv.cli.options import QUIET, RUN, count
from sparseconv.cli.results import load_network
from sparseconv.core.files import check_writable, write_whole
from sparseconv.measure import machine
from sparseconv.measure.machine import retain_freed_memory
from sparseconv.training.recipe import Recipe


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run_folder", **RUN)
    add("--length", **count("time steps per series (default: as in the training series)"))
    add("--batch", **count("series per batch (default: as in training)"))
    add("--threads", **count("number of threads for torch (default: as in training)"))
    add("--inference", action="store_true", help="eval mode, no gradients, forward only")
    add("--quiet", **QUIET)
    add("--json", type=Path, metavar="FILE", help="also write all measurements to this JSON file")


def run(args: argparse.Namespace) -> int:
    """Compare each sparse layer of a trained network with the same layer made dense.

    The network has the pattern of its best epoch.
    """
    trained, model = load_network(args.run_folder)
    data = trained.config["data"]
    batch = args.batch or Recipe(**trained.config["recipe"]).batch_size_for(data["n_train"])
    length = args.length or data["n_timepoints"]
    if args.json is not None:
        check_writable(args.json)

    retain_freed_memory()  # as train() does
    model.train(not args.inference)
    # Random series: no kernel's time depends on the numbers in them.
    x = torch.randn(batch, data["n_channels"], length, generator=torch.Generator())
    from sparseconv.profiling import profile  # needed by this command only

    with machine.threads(args.threads or int(trained.config["machine"]["threads"])):
        found = profile(model, x, training=not args.inference, verbose=not args.quiet)
    if args.json is not None:
        write_whole(args.json, json.dumps(found.to_dict(), indent=2) + "\n")
    print(found)
    return 0
