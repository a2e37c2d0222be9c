"""``python -m sparseconv train``: train on a data set and write a results folder."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.cli import pocket
from sparseconv.cli.options import (
    INTERRUPTED,
    PROG,
    add_option,
    add_threads,
    refuse_foreign,
)
from sparseconv.cli.results import data_facts, described, difference, history_writer, new_folder
from sparseconv.core.files import claimed, write_whole
from sparseconv.measure import machine
from sparseconv.models import DSN
from sparseconv.report import figures
from sparseconv.report.training import write_training_report
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import (
    CONFIG_NAME,
    DATA,
    HISTORY_NAME,
    MODELS,
    NETWORK,
    POCKET,
    RECIPE,
    SECTIONS,
    read_config,
)


def add_to(commands: Any) -> None:
    """Add the command to the command line's parser."""
    command = commands.add_parser(
        "train",
        help="train a Dynamic Sparse Network, or pruned random kernels, on a data set",
        description="Train a Dynamic Sparse Network and write a results folder: config.json, "
        "history.csv (a row per epoch), checkpoint.pt, figures and summary.md. The defaults are "
        "the paper's network and recipe. With --model pocket: ROCKET's or MiniROCKET's kernels, "
        "pruned; config.json, model.npz and summary.md.",
    )
    command.set_defaults(run=_train)
    command.add_argument(
        "data",
        metavar="NAME_OR_PATH",
        help=f"one of {', '.join(datasets.BUNDLED)}; a folder with NAME_TRAIN.ts and "
        "NAME_TEST.ts; or a .npz file with X_train, y_train, X_test and y_test",
    )
    command.add_argument(
        "--model", choices=tuple(MODELS), default="dsn",
        help="a Dynamic Sparse Network (default), or random kernels pruned by POCKET",
    )  # fmt: skip
    command.add_argument(
        "--out",
        type=Path,
        help="results folder, new or empty (default: runs/NAME-seedSEED, with --model pocket "
        "runs/NAME-pocket-seedSEED)",
    )
    command.add_argument(
        "--resume", action="store_true", help="resume the run in the results folder"
    )
    add_threads(command, "torch's own; in a resumed run, as before: the last bits depend on it")
    command.add_argument("--quiet", action="store_true", help="print the final summary only")
    # --epochs and the rest: the fields of training.recipe.Recipe, the arguments of models.DSN.
    for title, options in SECTIONS.items():
        group = command.add_argument_group(title)
        for name, default in options.items():
            add_option(group, name, default)
    group = command.add_argument_group("pocket", "with --model pocket only")
    for name in POCKET:
        if name != "seed":  # which is there already
            add_option(group, name, POCKET[name])


def _train(args: argparse.Namespace) -> int:
    own = {name for options in MODELS[args.model].values() for name in options}
    refuse_foreign(args, (DATA | NETWORK | RECIPE | POCKET).keys() - own, f"--model {args.model}")
    given = {name: value for name, value in vars(args).items() if name in own}
    name = Path(args.data).resolve().name.removesuffix(".npz").removesuffix("_TRAIN.ts")
    mark = "" if args.model == "dsn" else f"{args.model}-"
    out: Path = args.out or Path("runs") / f"{name}-{mark}seed{given.get('seed', RECIPE['seed'])}"
    if args.model == "pocket":
        return pocket.train(args, given, out)
    settings = DATA | NETWORK | RECIPE | given
    config: dict[str, Any] = _resumed(out, given) if args.resume else {
        key: {name: settings[name] for name in options} for key, options in SECTIONS.items()
    }  # fmt: skip
    settings = {name: config[key][name] for key, options in SECTIONS.items() for name in options}

    # Whatever can be wrong shows before anything is written.
    figures.require_matplotlib()
    data = datasets.load(args.data, nan_to_zero=settings["nan_to_zero"])
    facts = data_facts(data, settings)
    if args.resume and (different := difference(facts, config["data"])):
        raise ValueError(
            f"{out} holds another run: {data.name} is not its data, {different}; give the data of "
            "that run, or start a new one with --out"
        )
    recipe = Recipe(**config["recipe"])
    torch.manual_seed(recipe.seed)
    model = DSN(data.n_channels, len(data.classes), **config["network"])
    predict_log_proba(model, torch.from_numpy(data.X_test[:1]))  # can the backend run?

    threads = args.threads or int(config.get("machine", {}).get("threads", 0))
    folder = claimed(out) if args.resume else new_folder(out)
    with machine.threads(threads or torch.get_num_threads()), folder:
        if not args.resume:
            config |= {"data": facts, "machine": machine.environment_info()}
            write_whole(out / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
        if not args.quiet:
            cost = model.cost(data.n_timepoints)
            print(
                f"{described(data)}\nnetwork of {cost.params:,} parameters (dense "
                f"{cost.params_dense:,}), threads: {torch.get_num_threads()}; results go to {out}",
                flush=True,
            )
        try:
            result = train(
                model, data.X_train, data.y_train, recipe,
                out=out, resume=args.resume, progress=not args.quiet,
                on_epoch=history_writer(out / HISTORY_NAME),
            )  # fmt: skip
        except KeyboardInterrupt:
            again = shlex.join(["train", args.data, "--out", str(out), "--resume"])
            print(f"\nstopped; to resume: {PROG} {again}", file=sys.stderr)
            return INTERRUPTED
        history_writer(out / HISTORY_NAME)(result.history)
        log_proba = predict_log_proba(model, torch.from_numpy(data.X_test))
    correct, cases = int((log_proba.argmax(1).numpy() == data.y_test).sum()), len(data.y_test)
    summary = write_training_report(
        out,
        dataset_name=data.name,
        model=model,
        history=result.history,
        cost=model.cost(data.n_timepoints),
        test_accuracy=correct / cases,
        config={name: value for section in config.values() for name, value in section.items()},
    )
    print(
        f"{data.name}: test accuracy {correct / cases:.4f} ({correct} of {cases})\n"
        f"  kept is epoch {result.best_epoch} of {len(result.history)}, training loss "
        f"{result.best_loss:.4g}\n  cost, layers and figures: {summary}"
    )
    return 0


def _resumed(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the configuration of the run in ``out``; options given again must agree with it."""
    if not (out / CONFIG_NAME).exists():
        raise ValueError(
            f"nothing to resume: {out / CONFIG_NAME} does not exist; name the folder of a run with "
            "--out, or omit --resume"
        )
    config = read_config(out)
    if config.get("model", "dsn") != "dsn":
        raise ValueError(f"{out} holds a {config['model']} model, which has no epochs to resume")
    if "pruning" in config:
        raise ValueError(f"{out} holds a pruned run, whose fine-tuning is not resumed; prune again")
    known = {name: value for key in SECTIONS for name, value in config[key].items()}
    for name, value in given.items():
        if value != known[name]:
            raise ValueError(
                f"the run in {out} has {name}={known[name]}, but --{name.replace('_', '-')} asks "
                f"for {value}; omit the option, or start a new run with --out"
            )
    return config
