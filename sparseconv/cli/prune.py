"""``python -m sparseconv prune``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv import pruning
from sparseconv.cli import options, results
from sparseconv.measure import machine
from sparseconv.models import DSN
from sparseconv.pruning.criteria import EPS
from sparseconv.pruning.sparsity_loss import PUBLISHED_BATCH, PUBLISHED_WEIGHT
from sparseconv.report import figures
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import RECIPE

Data = tuple[Tensor, Tensor]
CRITERIA: dict[str, Callable[[Data, argparse.Namespace], pruning.Criterion]] = {
    "whc": lambda data, args: pruning.WHC(),
    "hc": lambda data, args: pruning.HC(),
    "magnitude": lambda data, args: pruning.Magnitude(),
    "jacobian": lambda data, args: pruning.Jacobian(data),
    "dsp": lambda data, args: pruning.DSP(data, eps=getattr(args, "eps", EPS)),
    "evolutionary": lambda data, args: pruning.Evolutionary(data, seed=args.seed),
}
FINE_TUNING = ("epochs", "lr", "lr_min", "batch_size", "seed")  # the rest is the run's
AMOUNT = ("fraction", "target_macs")
FINDS_OUT = ("dsp", "evolutionary")  # how many filters go
DSP_OPTIONS = ("eps", "silence", "silence_epochs")
EPOCHS = 100


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("run_folder", **options.RUN)
    which = "criterion for the filters to remove (default: whc)"
    add("--criterion", choices=tuple(CRITERIA), default="whc", help=which)
    amount = command.add_mutually_exclusive_group()
    options.add_setting(amount, "fraction", 0.5)
    options.add_setting(amount, "target_macs", None)
    steps = "number of steps in which the filters are removed (default: 1)"
    add("--steps", **options.count(steps), default=1)
    add("--threads", **options.count("number of threads for torch (default: the run's)"))
    add("--data", **options.DATA)
    add("--out", type=Path, help="results folder, new or empty (default: RUN-CRITERION)")
    add("--quiet", **options.QUIET)
    dsp = command.add_argument_group("--criterion dsp")
    options.add_setting(dsp, "eps", EPS)
    published = f"{PUBLISHED_WEIGHT} * {PUBLISHED_BATCH} / batch size"
    options.add_setting(dsp, "silence", PUBLISHED_WEIGHT, published)
    epochs = "number of epochs with this loss (default: --epochs)"
    dsp.add_argument("--silence-epochs", default=argparse.SUPPRESS, **options.count(epochs))
    tuning = command.add_argument_group("fine-tuning", "as in the run, except for these options")
    options.add_setting(tuning, "epochs", EPOCHS)
    for name in FINE_TUNING[1:]:
        options.add_setting(tuning, name, RECIPE[name], "the run's")


def run(args: argparse.Namespace) -> int:
    """Remove whole filters from a trained network, and fine-tune it.

    RUN must contain a Dynamic Sparse Network, and is left unchanged. The smaller network is written
    to a new results folder, with pruning.html. --criterion dsp first trains with a loss that
    silences filters.
    """
    old, network = results.load_network(args.run_folder)
    foreign = [*(AMOUNT if args.criterion in FINDS_OUT else ())]
    foreign += [] if args.criterion == "dsp" else DSP_OPTIONS
    options.refuse_foreign(args, foreign, f"--criterion {args.criterion}")
    folder = results.folder_of(args.run_folder)
    out = args.out or folder.with_name(f"{folder.name}-{args.criterion}")
    figures.require_matplotlib()
    data = results.data_of_run(old.config["data"], args.data, folder)
    given = {name: value for name, value in vars(args).items() if name in FINE_TUNING}
    recipe = Recipe(**{**old.config["recipe"], "epochs": EPOCHS, **given})
    args.seed = recipe.seed
    X, y = (torch.from_numpy(array) for array in (data.X_train, data.y_train))
    threads = args.threads or int(old.config["machine"]["threads"])
    with machine.threads(threads), results.new_folder(out):
        before = results.correct(network, data)
        criterion = CRITERIA[args.criterion]((X, y), args)
        amount = {name: getattr(args, name) for name in AMOUNT if name in args}
        if isinstance(criterion, pruning.DSP):
            _silence(network, X, y, recipe, args)
        elif not amount and criterion.threshold is None:
            amount = {"fraction": 0.5}
        model: Any
        model, report = pruning.prune_filters(network, X[:1], criterion, steps=args.steps, **amount)
        at_once = results.correct(model, data)
        config = {**old.config, "recipe": {name: getattr(recipe, name) for name in RECIPE}}
        config["machine"] = machine.environment_info()
        numbers = old.config.get("pruning", {}).get("filters", {})  # in the unpruned network
        config["pruning"] = {
            "criterion": report.method,
            "filters": {
                layer.name: [numbers[layer.name][i] if numbers else i for i in layer.kept]
                for layer in report.layers
            },
        }
        _, after, summary = results.train_network(model, data, config, out, quiet=args.quiet)
        report = report.measure()
    report.save(out / "pruning.html")
    shares = [f"{found / len(data.y_test):.4f}" for found in (after, before, at_once)]
    lines = [
        "{}: test accuracy {} (before pruning: {}, without fine-tuning: {})".format(
            data.name, *shares
        ),
        *report.summary(), f"report: {out / 'pruning.html'}, {summary}",
    ]  # fmt: skip
    unchanged = all(layer.filters[0] == layer.filters[1] for layer in report.layers)
    if isinstance(criterion, pruning.DSP) and unchanged:
        lines.insert(1, "no filter was silent; increase --silence-epochs or --silence")
    print("\n  ".join(lines))
    return 0


def _silence(model: DSN, X: Tensor, y: Tensor, recipe: Recipe, args: argparse.Namespace) -> None:
    epochs = getattr(args, "silence_epochs", recipe.epochs)
    recipe = Recipe(**{**vars(recipe), "epochs": epochs})
    stages = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    # This loss is a sum over a batch, the other one a mean.
    published = PUBLISHED_WEIGHT * PUBLISHED_BATCH / recipe.batch_size_for(len(X))
    weight = getattr(args, "silence", published)
    penalty = pruning.InstanceSparsity(model, stages, weight)
    train(model, X, y, recipe, verbose=not args.quiet, penalty=penalty)
