"""``python -m sparseconv train --model pocket``: random kernels, pruned."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.cli.results import check_free, data_facts
from sparseconv.core.checks import count
from sparseconv.core.files import check_writable, write_whole
from sparseconv.core.folders import claimed
from sparseconv.measure import machine
from sparseconv.measure.table import Table
from sparseconv.rocket.bank import KINDS
from sparseconv.training.run_folder import CONFIG_NAME, DATA, MODEL_NAME, POCKET

_HELP = {
    "kernels": "kind of random kernels",
    "n_kernels": "how many are drawn, as aeon counts them",
    "keep": "what to keep: a share (0.35), a number (500), or cv, which chooses by 5 folds",
    "k": "weight of the ridge in the selection, or cv",
    "n_iter": "iterations of the selection; 1: by magnitude",
    "refit": "fit a new ridge classifier on what is kept",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of ``--model pocket`` to ``train``; ``--seed`` is there already."""
    group = command.add_argument_group("pocket", "with --model pocket only")
    for name, text in _HELP.items():
        flag = "--" + name.replace("_", "-")
        kwargs: dict[str, Any] = {"default": argparse.SUPPRESS}
        kwargs["help"] = f"{text} (default: {POCKET[name]})"
        if name == "kernels":
            kwargs["choices"] = KINDS
        elif name == "refit":
            kwargs["action"] = argparse.BooleanOptionalAction
        else:
            kwargs |= {"type": int if name in ("n_kernels", "n_iter") else number_or_cv}
            kwargs["metavar"] = "X"
        group.add_argument(flag, **kwargs)


def number_or_cv(text: str) -> int | float | str:
    if text == "cv":
        return text
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    raise argparse.ArgumentTypeError(f'must be a share, a number or "cv", but got {text!r}')


def train(args: argparse.Namespace, given: Mapping[str, Any], out: Path) -> int:
    """Fit, test, and write the results folder."""
    settings = POCKET | DATA | dict(given)
    if args.resume:
        raise ValueError("a pocket model has no epochs to resume; train it again without --resume")
    check_free(out)
    threads = torch.get_num_threads() if args.threads is None else args.threads
    count("--threads", threads)
    data = datasets.load(args.data, nan_to_zero=settings["nan_to_zero"])
    from sparseconv.estimators.pocket import POCKETClassifier  # aeon takes seconds

    options = {name: settings[name] for name in POCKET if name != "seed"}
    classifier = POCKETClassifier(
        **options, random_state=settings["seed"], n_jobs=threads, verbose=not args.quiet
    )
    if not args.quiet:
        print(
            f"{data.name}: {len(data.X_train)} training and {len(data.X_test)} test series, "
            f"{data.n_channels} x {data.n_timepoints}, {len(data.classes)} classes; "
            f"{settings['kernels']}, threads: {threads}; results go to {out}",
            flush=True,
        )
    try:
        with claimed(out):
            check_free(out)  # still
            check_writable(out / CONFIG_NAME)  # before what may take minutes
            return _fit_and_write(classifier, data, settings, threads, out)
    except BaseException as error:
        with contextlib.suppress(OSError):
            out.rmdir()  # it was new, or empty
        if isinstance(error, KeyboardInterrupt) and not out.exists():
            print("\nstopped; nothing was written", file=sys.stderr)
        raise


def _fit_and_write(
    classifier: Any, data: datasets.Dataset, settings: Mapping[str, Any], threads: int, out: Path
) -> int:
    begin = time.perf_counter()
    classifier.fit(data.X_train, data.y_train)
    seconds = time.perf_counter() - begin
    model = replace(classifier.model_, classes=data.classes)
    with machine.threads(threads):
        model.predict(data.X_test[:1])  # the kernels are prepared once
        begin = time.perf_counter()
        guess = model.predict(data.X_test)
        each = (time.perf_counter() - begin) / len(guess)
    correct = int((guess == data.classes[data.y_test]).sum())
    kind = "kernels" if settings["kernels"] == "rocket" else "features"
    found = {
        "test accuracy": f"{correct / len(guess):.4f} ({correct} of {len(guess)})",
        f"{kind} kept": f"{classifier.keep_:,} ({_share(classifier)} of those drawn)",
        "features": f"{model.bank.n_features:,}",
        "ridge of the selection": f"{classifier.k_:g}",
        "fit": f"{seconds:.2f} s",
        "prediction": f"{1e6 * each:.0f} us a series",
    }
    config = {"model": "pocket", "data": data_facts(data, settings)}
    config |= {"pocket": {name: settings[name] for name in POCKET}}
    config |= {"machine": machine.environment_info() | {"threads": threads}}
    write_whole(out / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    model.save(out / MODEL_NAME)
    write_whole(out / "summary.md", _summary(data.name, found, classifier.scores_))
    print(f"{data.name}: test accuracy {found.pop('test accuracy')}")
    width = max(map(len, found))
    print("\n".join(f"  {name:{width}}  {text}" for name, text in found.items()))
    print(f"  {'report':{width}}  {out / 'summary.md'}")
    return 0


def _share(classifier: Any) -> str:
    """What share of the candidates is kept, in percent."""
    drawn = classifier.keep_ / classifier.n_candidates_
    return f"{drawn:.1%}"


def _summary(name: str, found: Mapping[str, str], scores: Mapping[Any, Any] | None) -> str:
    parts = [f"# {name}: random kernels, pruned", Table(("", ""), list(found.items())).markdown()]
    if scores:
        rows = []
        for (k, keep), folds in scores.items():
            mean = math.fsum(folds) / len(folds)
            rows.append((f"{k:g}", f"{keep:,}", f"{100 * mean:.2f}"))
        parts += ["## Folds", Table(("ridge", "kept", "accuracy %"), rows).markdown()]
    return "\n\n".join(parts) + "\n"
