"""``python -m sparseconv train --model pocket``: random kernels, pruned."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparseconv import datasets
from sparseconv.cli.results import data_facts, described, new_folder, write_config
from sparseconv.core.files import write_whole
from sparseconv.measure import machine
from sparseconv.measure.table import Table
from sparseconv.training.run_folder import MODEL_NAME


def train(args: argparse.Namespace, config: dict[str, Any], out: Path) -> int:
    """Fit, test, and write the results folder."""
    if args.resume:
        raise ValueError("a pocket model has no epochs to resume; train it again without --resume")
    data = datasets.load(args.data, nan_to_zero=config["data"]["nan_to_zero"])
    from sparseconv.estimators.pocket import POCKETClassifier  # aeon takes seconds

    threads = args.threads or torch.get_num_threads()
    options = dict(config["pocket"])
    classifier = POCKETClassifier(
        random_state=options.pop("seed"), n_jobs=threads, verbose=not args.quiet, **options
    )
    config |= {"model": "pocket", "data": data_facts(data, config["data"])}
    config |= {"machine": machine.environment_info() | {"threads": threads}}
    if not args.quiet:
        print(f"{described(data)}; {classifier.kernels}, threads: {threads}", flush=True)
    with new_folder(out):
        classifier.fit(data.X_train, data.y_train)
        model = replace(classifier.model_, classes=data.classes)
        with machine.threads(threads):
            correct = int((model.predict(data.X_test) == data.classes[data.y_test]).sum())
        write_config(out, config)
        model.save(out / MODEL_NAME)
        cases, kept = len(data.y_test), f"{classifier.keep_:,} of {classifier.n_candidates_:,}"
        found = {
            "test accuracy": f"{correct / cases:.4f} ({correct} of {cases})",
            f"{'kernels' if classifier.kernels == 'rocket' else 'features'} kept": kept,
            "features": f"{model.bank.n_features:,}",
            "ridge of the selection": f"{classifier.k_:g}",
        }
        write_whole(out / "summary.md", _summary(data.name, found, classifier.scores_))
    facts = [f"{name} {text}" for name, text in found.items()]
    print(f"{data.name}:", "\n  ".join([*facts, f"report: {out / 'summary.md'}"]))
    return 0


def _summary(name: str, found: Mapping[str, str], scores: Mapping[Any, Any] | None) -> str:
    parts = [f"# {name}: random kernels, pruned", Table(("", ""), list(found.items())).markdown()]
    if scores:
        rows = []
        for (k, keep), folds in scores.items():
            mean = math.fsum(folds) / len(folds)
            rows.append((f"{k:g}", f"{keep:,}", f"{100 * mean:.2f}"))
        parts += ["## Folds", Table(("ridge", "kept", "accuracy %"), rows).markdown()]
    return "\n\n".join(parts) + "\n"
