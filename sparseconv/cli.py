"""The command line: ``python -m sparseconv info``, ``… train``, ``… profile`` and ``… bench``."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.bench import command as bench_command
from sparseconv.core.files import write_whole
from sparseconv.dst.update import GROWTHS
from sparseconv.measure import machine
from sparseconv.models import DSN
from sparseconv.models.dsn import INITS, PADDINGS
from sparseconv.ops.backends import BACKENDS, available_backends, untried
from sparseconv.report import figures
from sparseconv.report.training import write_training_report
from sparseconv.training.data import digest
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import CHECKPOINT_NAME, TrainingResult, train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import (
    CONFIG_NAME,
    DATA,
    HISTORY_NAME,
    NETWORK,
    RECIPE,
    read_config,
)

PROG = "python -m sparseconv"
INTERRUPTED, REFUSED = 130, 2  # exit codes: the shell's for SIGINT, argparse's for bad usage

_CHOICES = {"init": INITS, "padding": PADDINGS, "grow": GROWTHS, "backend": ("auto", *BACKENDS)}
_HELP = {
    "sparsity": "inactive share of each kernel group's region; 0 is the dense network",
    "nf": "channels between modules; a module has three times as many",
    "kernel_size": "taps of the sparse convolutions",
    "depth": "number of modules",
    "n_groups": "kernel groups of growing reach; 1 for none",
    "init": "first pattern: the first taps of every kernel, or at random",
    "padding": "right-replicate looks forward; centred-zeros is the paper's for UCR 2018",
    "backend": "what computes the sparse convolutions",
    "epochs": "passes over the training set",
    "lr": "Adam's learning rate at the start",
    "lr_min": "where its cosine over the epochs ends",
    "weight_decay": "Adam's L2 penalty",
    "batch_size": "series in a batch; by default a tenth of the training set, from 2 to 16",
    "update_every_epochs": "epochs between two changes of the pattern",
    "update_every_steps": "optimizer steps between two changes, instead of epochs",
    "skip_step_at_update": "leave out the optimizer step where the pattern changes",
    "decay_share": "share of all steps over which the pruned share falls",
    "prune_fraction": "share of active weights moved by the first update",
    "prune_floor": "share moved by the last updates",
    "grow": "which weights become active: random, of largest gradient, or never any",
    "seed": "of the first weights, of the order of batches and of growth",
    "nan_to_zero": "read missing values as 0, as the paper does on UCR 85",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (a wrong result), 2 (refused) or
    130 (interrupted).
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return REFUSED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG, description="Weight-sparse 1-D convolution for PyTorch."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="say what is installed and what can run here")
    info.set_defaults(run=_info)
    bench = commands.add_parser("bench", help="check and time the kernels beside dense PyTorch")
    bench_command.add_arguments(bench)
    bench.set_defaults(run=bench_command.main)

    command = commands.add_parser(
        "train",
        help="train a Dynamic Sparse Network on a data set",
        description="Train a Dynamic Sparse Network and write a results folder: config.json, "
        "history.csv (a row per epoch), checkpoint.pt, figures and summary.md. The defaults are "
        "the paper's network and recipe.",
    )
    command.set_defaults(run=_train)
    command.add_argument(
        "data",
        metavar="NAME_OR_PATH",
        help=f"one of {', '.join(datasets.BUNDLED)}; a folder with NAME_TRAIN.ts and "
        "NAME_TEST.ts; or a .npz file with X_train, y_train, X_test and y_test",
    )
    command.add_argument(
        "--out", type=Path, help="results folder (default: runs/NAME-seedSEED); new or empty"
    )
    command.add_argument(
        "--resume", action="store_true", help="go on with the run in the results folder"
    )
    command.add_argument(
        "--threads",
        type=int,
        metavar="X",
        help="threads for torch (default: torch's own; in a resumed run, as before: the last bits "
        "depend on it)",
    )
    command.add_argument("--quiet", action="store_true", help="print the final summary only")
    for title, options in (("data", DATA), ("network", NETWORK), ("recipe", RECIPE)):
        group = command.add_argument_group(title)
        for name, default in options.items():
            add_option(group, name, default)

    from sparseconv import profile_command  # it is made of this module's options

    profile_command.add_to(commands)
    return parser


def add_option(group: argparse._ArgumentGroup, name: str, default: Any) -> None:
    """One option; left out of the parsed arguments unless it is given."""
    flag = "--" + name.replace("_", "-")
    shown = "" if default is None else f" (default: {default})"
    kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _HELP[name] + shown}
    if isinstance(default, bool):
        kwargs |= {"action": argparse.BooleanOptionalAction}
    elif name in _CHOICES:
        kwargs |= {"choices": _CHOICES[name]}
    else:
        kwargs |= {"type": float if isinstance(default, float) else int, "metavar": "X"}
    group.add_argument(flag, **kwargs)


def _info(_: argparse.Namespace) -> int:
    facts, versions = machine.environment_info(), machine.versions()
    missing = [name for name in machine.OPTIONAL_PACKAGES if name not in versions]
    lines = [
        ("versions", ", ".join(f"{name} {versions[name]}" for name in machine.CORE_PACKAGES)),
        ("processor", f"{facts['cpu']} ({facts['system']})"),
        ("ISA", machine.isa()),
        ("threads", f"torch uses {facts['threads']} of {facts['cores']} cores"),
        *((f"backend {name}", state) for name, state in available_backends().items()),
        *((f"{name} kernels", words) for name, words in untried().items()),
        *((name, versions[name]) for name in machine.OPTIONAL_PACKAGES if name in versions),
        *((name, "not installed: pip install 'sparseconv[tsc]'") for name in missing),
        *((name, os.environ[name]) for name in machine.VARIABLES if name in os.environ),
    ]
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name:{width}}  {text}" for name, text in lines))
    return 0


def _train(args: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(args).items() if name in DATA | NETWORK | RECIPE}
    name = Path(args.data).resolve().name.removesuffix(".npz")
    out: Path = args.out or Path("runs") / f"{name}-seed{given.get('seed', RECIPE['seed'])}"
    settings = resumed_settings(out, given) if args.resume else _fresh(out, given)

    # Whatever can be wrong shows before anything is written.
    figures.require_matplotlib()
    data = datasets.load(args.data, nan_to_zero=settings["nan_to_zero"])
    recipe = Recipe(**{name: settings[name] for name in RECIPE})
    threads = settings["threads"] if args.threads is None else args.threads
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, but got {threads}")
    torch.manual_seed(recipe.seed)
    model = DSN(data.n_channels, len(data.classes), **{name: settings[name] for name in NETWORK})
    predict_log_proba(model, torch.from_numpy(data.X_test[:1]))  # can the backend run?

    with machine.threads(threads):
        config = _config(out, data, settings, resume=args.resume)
        if not args.quiet:
            print(_describe(data, model, out), flush=True)
        try:
            result = train(
                model, data.X_train, data.y_train, recipe,
                out=out, resume=args.resume, progress=not args.quiet,
                on_epoch=_history_writer(out / HISTORY_NAME),
            )  # fmt: skip
        except KeyboardInterrupt:
            again = shlex.join(["train", args.data, "--out", str(out), "--resume"])
            print(f"\nstopped; to go on: {PROG} {again}", file=sys.stderr)
            return INTERRUPTED
        _history_writer(out / HISTORY_NAME)(result.history)
        log_proba = predict_log_proba(model, torch.from_numpy(data.X_test))
    correct = int((log_proba.argmax(1).numpy() == data.y_test).sum())
    print(_conclude(data, model, result, correct))

    summary = write_training_report(
        out,
        dataset_name=data.name,
        model=model,
        history=result.history,
        cost=model.cost(data.n_timepoints),
        test_accuracy=correct / len(data.y_test),
        config={name: value for section in config.values() for name, value in section.items()},
    )
    print(f"  report     {summary}")
    return 0


def _fresh(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    if out.exists() and not out.is_dir():
        raise ValueError(f"the results folder {out} is a file; choose another with --out")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    # What a run leaves that ended before its first checkpoint is in nobody's way.
    if found - {CONFIG_NAME, f"{CONFIG_NAME}.partial", f"{CHECKPOINT_NAME}.partial"}:
        if CONFIG_NAME in found:
            raise ValueError(
                f"{out} holds a run already; go on with it with --resume, or choose another folder "
                "with --out"
            )
        raise ValueError(
            f"expected a new or empty results folder, but {out} holds other files; choose another "
            "with --out"
        )
    return DATA | NETWORK | RECIPE | {"threads": torch.get_num_threads()} | dict(given)


def resumed_settings(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the run in ``out``; those given again must agree."""
    if not (out / CONFIG_NAME).exists():
        raise ValueError(
            f"nothing to resume: {out / CONFIG_NAME} does not exist; name the folder of a run with "
            "--out, or leave --resume away"
        )
    config = read_config(out)
    settings = {
        name: config[section][name]
        for section, options in (("data", DATA), ("network", NETWORK), ("recipe", RECIPE))
        for name in options
    }
    for name, value in given.items():
        if value != settings[name]:
            raise ValueError(
                f"the run in {out} has {name}={settings[name]}, but --{name.replace('_', '-')} "
                f"asks for {value}; leave the option away, or start a new run with --out"
            )
    return settings | {"threads": int(config["machine"]["threads"])}


def _config(
    out: Path, data: datasets.Dataset, settings: Mapping[str, Any], *, resume: bool
) -> dict[str, Any]:
    """Write config.json, or read that of a resumed run."""
    path = out / CONFIG_NAME
    facts = {
        "name": data.name,
        "n_train": len(data.X_train),
        "n_test": len(data.X_test),
        "n_channels": data.n_channels,
        "n_timepoints": data.n_timepoints,
        "classes": data.classes.tolist(),
        "test_sha256": digest(torch.from_numpy(data.X_test), torch.from_numpy(data.y_test)),
        **{name: settings[name] for name in DATA},
    }
    if resume:
        config: dict[str, Any] = json.loads(path.read_text())
        for name, value in facts.items():
            if (there := config["data"].get(name)) != value:
                raise ValueError(
                    f"{out} holds another run, its data differs: {name} is {there!r} there, but "
                    f"now {value!r}; give the data of that run, or start a new one with --out"
                )
        return config
    config = {
        "data": facts,
        "network": {name: settings[name] for name in NETWORK},
        "recipe": {name: settings[name] for name in RECIPE},
        "machine": machine.environment_info(),
    }
    text = json.dumps(config, indent=2) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return config


def _history_writer(path: Path) -> Callable[[list[dict[str, Any]]], None]:
    """Write the whole history at the first call, then add each epoch's row as it comes."""
    begun = False

    def write(history: list[dict[str, Any]]) -> None:
        nonlocal begun
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=history[0], lineterminator="\n")
        if begun:
            writer.writerow(history[-1])
            with path.open("a", encoding="utf-8") as file:
                file.write(text.getvalue())
        else:
            writer.writeheader()
            writer.writerows(history)
            write_whole(path, text.getvalue())
        begun = True

    return write


def _describe(data: datasets.Dataset, model: DSN, out: Path) -> str:
    cost = model.cost(data.n_timepoints)
    return (
        f"{data.name}: {len(data.X_train)} training and {len(data.X_test)} test series, "
        f"{data.n_channels} x {data.n_timepoints}, {len(data.classes)} classes\n"
        f"network of {cost.params:,} parameters (dense {cost.params_dense:,}), "
        f"threads: {torch.get_num_threads()}; results go to {out}"
    )


def _conclude(data: datasets.Dataset, model: DSN, result: TrainingResult, correct: int) -> str:
    cost, cases = model.cost(data.n_timepoints), len(data.y_test)
    minutes, seconds = divmod(round(sum(row["seconds"] for row in result.history)), 60)
    executed, dense = cost.macs_executed / 1e6, cost.macs_dense / 1e6
    paper, paper_dense = cost.flops_paper / 1e6, cost.flops_paper_dense / 1e6
    return "\n".join(
        (
            f"{data.name}: test accuracy {correct / cases:.4f} ({correct} of {cases})",
            f"  parameters {cost.params:,} ({cost.params / cost.params_dense:.1%} of the dense "
            f"network's {cost.params_dense:,})",
            f"  FLOPs      {paper:,.2f} M a series as the paper counts (dense {paper_dense:,.2f}); "
            f"{executed:,.2f} M multiply-accumulates executed (dense {dense:,.2f})",
            f"  training   {minutes} min {seconds:02} s, {len(result.history)} epochs; kept is "
            f"epoch {result.best_epoch} with training loss {result.best_loss:.4g}",
        )
    )
