"""``python -m sparseconv profile``: the sparse layers of a trained or of a fresh network."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseconv import datasets
from sparseconv.cli.options import add_option, resumed_settings
from sparseconv.core.checks import count
from sparseconv.core.files import check_writable, write_whole
from sparseconv.measure import machine
from sparseconv.measure.memory import retain_freed_memory
from sparseconv.measure.table import Table
from sparseconv.models import DSN
from sparseconv.ops.backends import extension
from sparseconv.rocket import RocketModel
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import (
    CONFIG_NAME,
    DATA,
    MODEL_NAME,
    NETWORK,
    RECIPE,
    TrainedRun,
    load_run,
    read_config,
)

BATCH = 16  # series, where neither a run nor a data set says how many
_SHAPE = ("channels", "classes", "length")


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "profile",
        help="measure each sparse layer beside the same layer dense",
        description="Measure each sparse layer of a Dynamic Sparse Network beside the same layer "
        "dense: of a trained one (the folder of a run, or its checkpoint.pt; its best epoch, with "
        "the pattern that it has grown), of a fresh one for a data set, or of a fresh one for "
        "series of --channels, --length and --classes. Of a run of --model pocket: the features of "
        "its random kernels.",
    )
    command.set_defaults(run=_profile)
    command.add_argument(
        "source",
        nargs="?",
        metavar="RUN_OR_DATA",
        help="results folder or checkpoint of `train`; or a data set as `train` accepts it",
    )
    for name, text in (
        ("channels", "channels of a series, where no run and no data set is named"),
        ("classes", "number of classes, likewise"),
        ("length", "samples of a series (default: the run's or the data set's)"),
        ("batch", f"series in a batch (default: as in training, else {BATCH})"),
        ("threads", "threads for torch (default: the run's, else torch's own)"),
    ):
        command.add_argument(f"--{name}", type=int, metavar="X", help=text)
    command.add_argument(
        "--inference", action="store_true", help="eval mode, no gradients, forward only"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    group = command.add_argument_group("network", "of a fresh one; a run knows its own")
    for name, default in (NETWORK | {"seed": RECIPE["seed"]} | DATA).items():
        add_option(group, name, default)


def _profile(args: argparse.Namespace) -> int:
    options = NETWORK | DATA | {"seed": RECIPE["seed"]}
    given = {name: value for name, value in vars(args).items() if name in options}
    folder = _run_folder(args.source)
    asked = {name: getattr(args, name) for name in _SHAPE if getattr(args, name) is not None}
    if args.source is not None and (extra := [name for name in asked if name != "length"]):
        raise ValueError(
            f"{args.source} says how many {extra[0]} there are; omit --{extra[0]}, or name no "
            "run and no data set"
        )
    if folder is not None and read_config(folder).get("model", "dsn") == "pocket":
        _check_kernels_options(args, given, asked)
        print(_profile_kernels(load_run(args.source), args))
        return 0
    if folder is not None:
        model, shape, threads = _trained(folder, Path(args.source), given)
    else:
        model, shape = _fresh(args.source, asked, options | given)
        threads = torch.get_num_threads()
    for name, value in (("batch", args.batch), ("length", args.length)):
        if value is not None:
            shape[name] = count(f"--{name}", value)
    threads = count("--threads", threads if args.threads is None else args.threads)
    if args.json is not None:
        check_writable(args.json)

    retain_freed_memory()  # as train() does
    model.train(not args.inference)
    # Random series: no kernel's time depends on the numbers in them.
    sizes = (shape[name] for name in ("batch", "channels", "length"))
    x = torch.randn(*sizes, generator=torch.Generator())
    from sparseconv.profiling import profile  # needed by this command only

    with machine.threads(threads):
        found = profile(model, x, backward=not args.inference)
    if args.json is not None:
        write_whole(args.json, json.dumps(found.to_dict(), indent=2) + "\n")
    print(found)
    return 0


def _run_folder(source: str | None) -> Path | None:
    """The folder of the run that ``source`` names, if it names one."""
    if source is None:
        return None
    path = Path(source)
    if path.name == MODEL_NAME and (path.parent / CONFIG_NAME).exists():
        return path.parent
    if path.suffix == ".pt" and not path.is_dir():
        if not (path.parent / CONFIG_NAME).exists():
            raise ValueError(
                f"{path} needs the {CONFIG_NAME} of its run beside it, but there is none; name the "
                "results folder of a run"
            )
        return path.parent
    return path if (path / CONFIG_NAME).exists() else None


def _trained(
    folder: Path, source: Path, given: Mapping[str, Any]
) -> tuple[DSN, dict[str, int], int]:
    """The network of a run in its best epoch, the shape of its batches, and its threads."""
    settings = resumed_settings(folder, given)
    run = load_run(source, backend=settings["backend"])
    data = run.config["data"]
    batch = Recipe(**{name: settings[name] for name in RECIPE}).batch_size_for(data["n_train"])
    shape = {"batch": batch, "channels": data["n_channels"], "length": data["n_timepoints"]}
    assert isinstance(run.model, DSN)
    return run.model, shape, settings["threads"]


def _check_kernels_options(
    args: argparse.Namespace, given: Mapping[str, Any], asked: Mapping[str, int]
) -> None:
    idle = [*given, *asked, *(name for name in ("inference", "json") if getattr(args, name))]
    if idle:
        raise ValueError(
            f"--{idle[0].replace('_', '-')} is not for random kernels, whose prediction alone is "
            "measured, on series of the length that they were drawn for; omit it"
        )


def _profile_kernels(run: TrainedRun, args: argparse.Namespace) -> str:
    """Time of the features and of the whole prediction of one series, alone and in a batch."""
    from sparseconv.measure import peaks, timing
    from sparseconv.rocket.features import kernel_features, operations

    assert isinstance(run.model, RocketModel)
    bank, threads = run.model.bank, int(run.config["machine"]["threads"])
    threads = count("--threads", threads if args.threads is None else args.threads)
    batch = count("--batch", 100 if args.batch is None else args.batch)
    sizes = batch, bank.series_channels, bank.series_length
    X = torch.randn(*sizes, generator=torch.Generator().manual_seed(0)).numpy()
    work, rocket = operations(bank), bank.kind == "rocket"
    rows = []
    with machine.threads(threads):
        for n in sorted({1, batch}):
            calls: dict[str, Callable[[], object]] = {
                "features": partial(kernel_features, X[:n], bank),
                "prediction": partial(run.model.predict, X[:n]),
            }
            if rocket and extension is not None and threads == 1:  # others may hold the cores
                (peak,) = peaks.measure([threads], [str(extension.isa())], ["float32"])
                loop = peaks.loop(peak)
                calls["peak"] = loop.call
            times = timing.interleave(calls, rounds=15)
            each = {name: f"{1e6 * np.median(times[name]) / n:.1f}" for name in list(calls)[:2]}
            share = "-"
            if "peak" in times:
                flops = 2 * work * n / times["features"]
                share = f"{np.median(flops / (loop.flops / times['peak'])):.0%}"
            rows.append((str(n), each["features"], each["prediction"], share))
    kinds = "multiply-adds" if rocket else "comparisons"
    return "\n".join(
        (
            f"{bank}, threads: {threads}",
            f"{work:,} {kinds} a series; microseconds of one series:",
            Table(("batch", "features", "prediction", "of FMA peak"), rows).markdown(),
        )
    )


def _fresh(
    source: str | None, asked: Mapping[str, int], settings: Mapping[str, Any]
) -> tuple[DSN, dict[str, int]]:
    """A network as training would begin with it, for a data set or for a shape alone."""
    if source is None:
        if missing := [name for name in _SHAPE if name not in asked]:
            raise ValueError(
                "profile needs a run, a data set, or all of --channels, --classes and --length, "
                f"but --{missing[0]} is missing"
            )
        channels, classes = asked["channels"], asked["classes"]
        shape = {"batch": BATCH, "channels": channels, "length": asked["length"]}
    else:
        data = datasets.load(source, nan_to_zero=settings["nan_to_zero"])
        channels, classes = data.n_channels, len(data.classes)
        batch = Recipe().batch_size_for(len(data.X_train))
        shape = {"batch": batch, "channels": channels, "length": data.n_timepoints}
    torch.manual_seed(Recipe(seed=settings["seed"]).seed)
    return DSN(channels, classes, **{name: settings[name] for name in NETWORK}), shape
