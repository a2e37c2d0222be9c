"""``python -m sparseconv train``."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.cli import options, results
from sparseconv.core.files import claimed, write_whole
from sparseconv.core.generators import Drawing
from sparseconv.measure import machine
from sparseconv.measure.table import Table
from sparseconv.models import DSN
from sparseconv.report import figures
from sparseconv.running import predict_log_proba
from sparseconv.training.loop import CHECKPOINT_NAME
from sparseconv.training.recipe import Recipe
from sparseconv.training.run_folder import MODEL_NAME, MODELS, RECIPE, read_config

SETTINGS = MODELS["dsn"] | {"pocket": MODELS["pocket"]["pocket"]}


def add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    data = f"one of {', '.join(datasets.BUNDLED)}; a folder that contains NAME_TRAIN and NAME_TEST "
    data += "(.ts, .arff, .tsv, .csv, .txt or no extension); the path of either file; a .npz file "
    data += "with X_train, y_train, X_test and y_test"
    add(
        "data", metavar="NAME_OR_PATH", nargs="?", help=f"{data} (default with --resume: the run's)"
    )
    models = "a Dynamic Sparse Network (default), or random kernels pruned with POCKET"
    add("--model", choices=tuple(MODELS), default="dsn", help=models)
    out = "results folder, new or empty (default: runs/NAME-seedSEED, or runs/NAME-pocket-seedSEED)"
    add("--out", type=Path, help=out)
    add("--resume", action="store_true", help="resume the run in the results folder")
    threads = "number of threads for torch, on which the last bits of the results depend (default: "
    add("--threads", **options.count(f"{threads}torch's setting, or the run's when resuming)"))
    device = "where to train (default: cpu, or the run's device when resuming)"
    add("--device", choices=("cpu", "cuda"), help=device)
    add("--quiet", **options.QUIET)
    # --epochs and the rest: the fields of training.recipe.Recipe, the arguments of models.DSN, and
    # those of POCKETClassifier.
    for title, settings in SETTINGS.items():
        group = command.add_argument_group(title)
        for name, default in settings.items():
            if not (title == "pocket" and name == "seed"):  # which is there already
                options.add_setting(group, name, default)


def run(args: argparse.Namespace) -> int:
    """Train a Dynamic Sparse Network, or pruned random kernels, on a data set.

    The results folder receives config.json, history.csv (one row per epoch), checkpoint.pt, figures
    and summary.md. The defaults are those of the DSN paper. --model pocket prunes the kernels of
    ROCKET or MiniROCKET, and writes config.json, model.npz and summary.md.
    """
    sections = MODELS[args.model]
    own, every = (
        {name for settings in of.values() for name in settings} for of in (sections, SETTINGS)
    )
    options.refuse_foreign(args, every - own, f"--model {args.model}")
    if args.model == "pocket" and args.device == "cuda":
        raise ValueError("--model pocket runs only on the CPU; omit --device")
    given = {name: value for name, value in vars(args).items() if name in own}
    config: dict[str, Any] = {
        key: {name: given.get(name, default) for name, default in settings.items()}
        for key, settings in sections.items()
    }
    if args.data is None and not (args.resume and args.out):
        raise ValueError(
            "expected a data set to train on, such as GunPoint or my.npz; to resume a run, pass "
            "its folder: --resume --out RUN"
        )
    mark = "" if args.model == "dsn" else f"{args.model}-"
    seed = given.get("seed", RECIPE["seed"])
    out: Path = args.out or Path("runs") / f"{datasets.name_of(args.data)}-{mark}seed{seed}"
    if args.model == "pocket":
        return _pocket(args, config, out)
    if args.resume:
        config = _resumed(out, given)

    machine_then = config.get("machine", {})
    device = args.device or machine_then.get("device", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU, but torch sees none; omit --device")
    # Whatever can be wrong shows before anything is written.
    figures.require_matplotlib()
    if args.resume:
        data = results.data_of_run(config["data"], args.data, out)
    else:
        data = datasets.load(args.data, nan_to_zero=config["data"]["nan_to_zero"])
    with Drawing(Recipe(**config["recipe"]).seed):
        model = DSN(data.n_channels, len(data.classes), **config["network"]).to(device)
    predict_log_proba(model, torch.from_numpy(data.X_test[:1]))  # can the backend run?

    threads = args.threads or int(machine_then.get("threads", 0))
    folder = claimed(out) if args.resume else results.new_folder(out, resumable=True)
    with machine.threads(threads or torch.get_num_threads()), folder:
        if not args.resume:
            facts = results.data_facts(data, config["data"]) | results.path_of(args.data)
            config |= {"data": facts, "machine": machine.environment_info() | {"device": device}}
        elif not args.quiet:
            begun = (out / CHECKPOINT_NAME).exists()
            fresh = "no checkpoint yet; starting from the beginning"
            print("resuming from the checkpoint" if begun else fresh)
        if not args.quiet:
            cost = model.cost(data.n_timepoints)
            patterns = [layer.pattern for layer in model.sparse_layers()]
            density = sum(p.nnz for p in patterns) / sum(p.numel for p in patterns)
            print(
                f"{results.described(data)}\nnetwork with {cost.params:,} parameters (dense: "
                f"{cost.params_dense:,}), density of its sparse layers: {density:.1%}, threads: "
                f"{torch.get_num_threads()}; results are written to {out}",
                flush=True,
            )
        try:
            result, found, summary = results.train_network(
                model, data, config, out, quiet=args.quiet, resume=args.resume
            )
        except KeyboardInterrupt:
            saved = (out / CHECKPOINT_NAME).exists()
            so_far = "" if saved else " before the first epoch was saved"
            print(f"\nstopped{so_far}; to resume: {results.resume_command(out)}", file=sys.stderr)
            return options.INTERRUPTED
    cases = len(data.y_test)
    print(
        f"{data.name}: test accuracy {found / cases:.4f} ({found} of {cases})\n"
        f"  kept epoch {result.best_epoch} of {len(result.history)} (training loss "
        f"{result.best_loss:.4g})\n  cost, layers and figures: {summary}"
    )
    return 0


def _resumed(out: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the run's configuration in ``out``; repeated options must match it."""
    config = read_config(out)
    if "recipe" not in config or "pruning" in config:
        kind = "pruned run" if "pruning" in config else f"{config['model']} model"
        raise ValueError(f"{out} contains a {kind}, which cannot be resumed; start a new run")
    known = {name: value for key in MODELS["dsn"] for name, value in config[key].items()}
    for name, value in given.items():
        if value != known[name]:
            raise ValueError(
                f"the run in {out} has {name}={known[name]}, but --{name.replace('_', '-')} is "
                f"{value}; omit the option, or start a new run with --out"
            )
    return config


def _pocket(args: argparse.Namespace, config: dict[str, Any], out: Path) -> int:
    """Fit and test pruned random kernels, and write the results folder."""
    if args.resume:
        raise ValueError("a pocket model has no epochs to resume; train it again without --resume")
    data = datasets.load(args.data, nan_to_zero=config["data"]["nan_to_zero"])
    from sparseconv.estimators.pocket import POCKETClassifier  # aeon takes seconds

    threads = args.threads or torch.get_num_threads()
    given = dict(config["pocket"])
    classifier = POCKETClassifier(
        random_state=given.pop("seed"), n_jobs=threads, verbose=not args.quiet, **given
    )
    config |= {
        "model": "pocket",
        "data": results.data_facts(data, config["data"]) | results.path_of(args.data),
    }
    config |= {"machine": machine.environment_info() | {"threads": threads}}
    if not args.quiet:
        print(f"{results.described(data)}; {classifier.kernels}, threads: {threads}", flush=True)
    with results.new_folder(out):
        classifier.fit(data.X_train, data.y_train)
        model = replace(classifier.model_, classes=data.classes)
        with machine.threads(threads):
            correct = int((model.predict(data.X_test) == data.classes[data.y_test]).sum())
        results.write_config(out, config)
        model.save(out / MODEL_NAME)
        cases, kept = len(data.y_test), f"{classifier.keep_:,} of {classifier.n_candidates_:,}"
        found = {
            "test accuracy": f"{correct / cases:.4f} ({correct} of {cases})",
            f"{'kernels' if classifier.kernels == 'rocket' else 'features'} kept": kept,
            "features": f"{model.bank.n_features:,}",
            "ridge penalty of the selection": f"{classifier.k_:g}",
        }
        rows = [
            (f"{k:g}", f"{keep:,}", f"{100 * statistics.fmean(folds):.2f}")
            for (k, keep), folds in (classifier.scores_ or {}).items()
        ]
        folds = ["## Folds", Table(("ridge penalty", "kept", "accuracy %"), rows).markdown()]
        table = Table(("", ""), [*found.items()]).markdown()
        parts = [f"# {data.name}: random kernels, pruned", table, *(folds if rows else [])]
        write_whole(out / "summary.md", "\n\n".join(parts) + "\n")
    facts = [f"{name} {text}" for name, text in found.items()]
    print(f"{data.name}:", "\n  ".join([*facts, f"report: {out / 'summary.md'}"]))
    return 0
