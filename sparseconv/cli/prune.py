"""``python -m sparseconv prune``: remove filters of a trained network, and fine-tune it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv import datasets
from sparseconv.cli.options import add_option, add_threads, at_least, refuse_foreign
from sparseconv.cli.results import data_of_run, history_writer, load_network, new_folder
from sparseconv.core.files import write_whole
from sparseconv.measure import machine
from sparseconv.models import DSN
from sparseconv.pruning import (
    DSP,
    HC,
    WHC,
    Criterion,
    Evolutionary,
    InstanceSparsity,
    Jacobian,
    Magnitude,
    PruningReport,
    prune_filters,
)
from sparseconv.pruning.criteria import EPS
from sparseconv.pruning.sparsity_loss import PUBLISHED_BATCH, PUBLISHED_WEIGHT
from sparseconv.report import figures
from sparseconv.report.training import write_training_report
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import CONFIG_NAME, HISTORY_NAME, RECIPE

Data = tuple[Tensor, Tensor]
CRITERIA: dict[str, Callable[[Data, argparse.Namespace], Criterion]] = {
    "whc": lambda data, args: WHC(),
    "hc": lambda data, args: HC(),
    "magnitude": lambda data, args: Magnitude(),
    "jacobian": lambda data, args: Jacobian(data),
    "dsp": lambda data, args: DSP(data, getattr(args, "eps", EPS)),
    "evolutionary": lambda data, args: Evolutionary(data, seed=args.seed),
}
FINE_TUNING = ("epochs", "lr", "lr_min", "batch_size", "seed")  # the rest is the run's
DSP_OPTIONS = ("eps", "silence", "silence_epochs")
EPOCHS = 100


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "prune",
        help="remove whole filters of a trained network, and fine-tune it",
        description="Remove whole filters of a trained Dynamic Sparse Network, fine-tune what is "
        "left, and write a results folder as `train` does, with pruning.html. The run given is "
        "left as it is. With --criterion dsp the network is first trained further with a loss that "
        "silences filters.",
    )
    command.set_defaults(run=_prune)
    command.add_argument("run_folder", metavar="RUN", type=Path, help="results folder of `train`")
    command.add_argument(
        "--criterion", choices=tuple(CRITERIA), default="whc",
        help="which filters go (default: whc)",
    )  # fmt: skip
    amount = command.add_mutually_exclusive_group()
    dsp = command.add_argument_group("--criterion dsp")
    options: tuple[tuple[Any, str, Any, str], ...] = (
        (amount, "ratio", float, "share of the filters that goes (default: 0.5)"),
        (amount, "target-macs", int, "multiply-adds of one series that may be left"),
        (command, "steps", at_least(1), "remove them in so many steps (default: 1)"),
        (dsp, "eps", float,
         "filters go whose activation is at most this share of the largest of their kernel group "
         f"(default: {EPS})"),
        (dsp, "silence", float,
         "weight of the loss that silences filters (default: "
         f"{PUBLISHED_WEIGHT} * {PUBLISHED_BATCH} / batch size)"),
        (dsp, "silence-epochs", at_least(1), "epochs with it (default: those of fine-tuning)"),
    )  # fmt: skip
    for group, name, kind, text in options:
        group.add_argument(
            f"--{name}", type=kind, default=argparse.SUPPRESS, metavar="X", help=text
        )
    add_threads(command, "the run's")
    command.add_argument(
        "--data", metavar="NAME_OR_PATH",
        help="the run's data set (default: the bundled one of its name)",
    )  # fmt: skip
    command.add_argument(
        "--out", type=Path, help="results folder, new or empty (default: RUN-CRITERION)"
    )
    command.add_argument("--quiet", action="store_true", help="print the final summary only")
    group = command.add_argument_group("fine-tuning", "what the run had, but for these")
    for name in FINE_TUNING:
        if name == "epochs":
            add_option(group, name, EPOCHS)
        else:
            add_option(group, name, RECIPE[name], "the run's")


def _prune(args: argparse.Namespace) -> int:
    run, network = load_network(args.run_folder)
    foreign = ("ratio", "target_macs") if args.criterion == "dsp" else DSP_OPTIONS
    refuse_foreign(args, foreign, f"--criterion {args.criterion}")
    path = args.run_folder.resolve()
    folder = path if path.is_dir() else path.parent
    out = args.out or folder.with_name(f"{folder.name}-{args.criterion}")
    figures.require_matplotlib()
    data = data_of_run(run.config["data"], args.data, folder)
    given = {name: value for name, value in vars(args).items() if name in FINE_TUNING}
    recipe = Recipe(**{**run.config["recipe"], "epochs": EPOCHS, **given})
    args.seed = recipe.seed
    X, y = (torch.from_numpy(array) for array in (data.X_train, data.y_train))
    threads = args.threads or int(run.config["machine"]["threads"])
    with machine.threads(threads), new_folder(out, resumable=False):
        before = _accuracy(network, data)
        criterion = CRITERIA[args.criterion]((X, y), args)
        amount = {name: getattr(args, name) for name in ("ratio", "target_macs") if name in args}
        if isinstance(criterion, DSP):
            _silence(network, X, y, recipe, args)
        elif not amount:
            amount = {"ratio": 0.5}
        model: Any
        model, report = prune_filters(
            network, X[:1], criterion, steps=getattr(args, "steps", 1), **amount
        )
        at_once = _accuracy(model, data)
        config = {**run.config, "recipe": {name: getattr(recipe, name) for name in RECIPE}}
        config["machine"] = machine.environment_info()
        config["pruning"] = {
            "criterion": report.criterion,
            "filters": _numbered(report, run.config.get("pruning", {}).get("filters", {})),
        }
        write_whole(out / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
        result = train(model, X, y, recipe, out=out, progress=not args.quiet,
                       on_epoch=history_writer(out / HISTORY_NAME))  # fmt: skip
        after = _accuracy(model, data)
        report = report.measure()
    report.save(out / "pruning.html")
    summary = write_training_report(
        out, dataset_name=data.name, model=model, history=result.history,
        cost=model.cost(data.n_timepoints), test_accuracy=after,
        config={"criterion": report.criterion, **config["network"], **config["recipe"]},
    )  # fmt: skip
    lines = [
        f"{data.name}: test accuracy {after:.4f} (before {before:.4f}, without fine-tuning "
        f"{at_once:.4f})",
        *report.summary(), f"report: {out / 'pruning.html'}, {summary}",
    ]  # fmt: skip
    if isinstance(criterion, DSP) and all(x.filters[0] == x.filters[1] for x in report.layers):
        lines.insert(1, "nothing was silent: more --silence-epochs or a larger --silence")
    print("\n  ".join(lines))
    return 0


def _numbered(report: PruningReport, before: Mapping[str, Any]) -> dict[str, list[int]]:
    """The filters that each layer kept, by their numbers in the network that was never pruned."""
    return {
        layer.name: [before[layer.name][i] if before else i for i in layer.kept]
        for layer in report.layers
    }


def _silence(model: DSN, X: Tensor, y: Tensor, recipe: Recipe, args: argparse.Namespace) -> None:
    epochs = getattr(args, "silence_epochs", recipe.epochs)
    recipe = Recipe(**{**vars(recipe), "epochs": epochs})
    stages = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    # The loss is a sum over a batch, beside a mean.
    published = PUBLISHED_WEIGHT * PUBLISHED_BATCH / recipe.batch_size_for(len(X))
    weight = getattr(args, "silence", published)
    penalty = InstanceSparsity(model, stages, weight)
    train(model, X, y, recipe, progress=not args.quiet, penalty=penalty)


def _accuracy(model: nn.Module, data: datasets.Dataset) -> float:
    found = predict_log_proba(model, torch.from_numpy(data.X_test)).argmax(1).numpy()
    return float((found == data.y_test).mean())
