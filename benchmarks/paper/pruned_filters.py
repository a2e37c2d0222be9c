"""Networks with fewer filters: one that is trained, then pruned in many ways, each fine-tuned."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparseconv as sc
from benchmarks.paper.archives import Shape
from benchmarks.paper.criteria import CRITERIA, Data
from benchmarks.paper.networks import first_model, multiply_adds
from benchmarks.paper.plan import Job
from sparseconv.core.files import write_whole
from sparseconv.datasets import Dataset
from sparseconv.nn.modules import deepcopy_model
from sparseconv.pruning import keep_filters, merge, prune_filters
from sparseconv.pruning.tracing import trace
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

VARIANTS_NAME = "variants.json"
TUNING = 0.25  # epochs of fine-tuning, as a share of the training's


def variants(job: Job, whole: nn.Module, data: Dataset, folder: Path) -> list[dict[str, Any]]:
    """Prune a trained network in each way of the plan, and fine-tune it.

    Continues from what the folder holds. Times are CPU seconds of one thread.
    """
    path = folder / VARIANTS_NAME
    done: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for variant in job.options["pruning"][len(done) :]:
        done.append(_pruned(variant, whole, data, job))
        write_whole(path, json.dumps(done))
    return done


def _pruned(
    variant: Mapping[str, Any], whole: nn.Module, data: Dataset, job: Job
) -> dict[str, Any]:
    X, y = torch.from_numpy(data.X_train), torch.from_numpy(data.y_train)
    torch.manual_seed(job.seed)
    begin = time.process_time()
    small, facts = smaller(variant, whole, (X, y), job.seed)
    prune_seconds = time.process_time() - begin
    at_once = tested(small, data)
    epochs = job.recipe().epochs
    if not variant.get("retrain"):
        epochs = max(1, round(TUNING * epochs))
    recipe = Recipe(**{**job.options["recipe"], "seed": job.seed, "epochs": epochs})
    if variant.get("retrain"):
        for module in small.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    result = train(small, X, y, recipe, progress=False)
    final = merge(small) if variant.get("equivalent") else small
    return {
        "name": variant["name"],
        "accuracy": tested(final, data),
        "at_once": at_once,
        "tuning_epochs": epochs,
        "params": sum(parameter.numel() for parameter in final.parameters()),
        "macs": multiply_adds(final, Shape.of(data)),
        **facts,
        "prune_seconds": round(prune_seconds, 3),
        "tune_seconds": round(sum(row["cpu_seconds"] for row in result.history), 3),
    }


def smaller(
    variant: Mapping[str, Any], whole: nn.Module, data: Data, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Copy a network, smaller as a variant says; also say how many units each set kept."""
    example, facts = data[0][:1], {}
    found = deepcopy_model(whole)
    if method := variant.get("factorize"):
        found, _ = sc.factorize(whole, method=method, compression=variant["compression"])
    elif name := variant.get("criterion"):
        found, report = prune_filters(
            whole,
            example,
            CRITERIA[name](data, seed),
            ratio=variant.get("ratio"),
            steps=variant.get("steps", 1),
            equivalent=variant.get("equivalent", False),
        )
        kept = {layer.name: set(layer.kept) for layer in report.layers}
        facts["kept"] = [
            sum(set(rows.tolist()) <= kept[layer] for rows in group.rows[layer])
            for group in report.channels.sets
            for layer in list(group.rows)[:1]
        ]
    if "sparsity" in variant:
        found = made_sparse(found, 1 - variant["sparsity"])
    return found, facts


def made_sparse(model: nn.Module, density: float) -> nn.Module:
    """Make the convolutions of several taps sparse layers of their largest weights."""
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            size = module.weight.detach().abs()
            count = max(1, round(density * size.numel()))
            least = size.flatten().kthvalue(size.numel() - count + 1).values
            masks[name] = size >= least
    return sc.convert(model, masks=masks, layers=list(masks)).model


def tested(model: nn.Module, data: Dataset) -> float:
    log_proba = predict_log_proba(model, torch.as_tensor(data.X_test))
    return share_right(log_proba, torch.as_tensor(data.y_test))


def share_right(log_proba: Tensor, target: Tensor) -> float:
    return (log_proba.argmax(1) == target).double().mean().item()


def like(row: Mapping[str, Any], variant: Mapping[str, Any] | None) -> nn.Module:
    """Build a fresh network of the shape that a row's network, or a variant of it, had."""
    options = row["options"]
    shape = Shape(**{field.name: row[field.name] for field in fields(Shape)})
    model = first_model(options, row["seed"], shape)
    if variant is None:
        return model
    asked = _asked(row, variant)
    if "factorize" in asked:
        return sc.factorize(model, method=asked["factorize"], compression=asked["compression"])[0]
    if "kept" in variant:
        example = torch.zeros(1, row["n_channels"], row["n_timepoints"])
        channels = trace(model, (example,))
        gone: dict[str, set[int]] = {}
        for group, count in zip(channels.sets, variant["kept"], strict=True):
            for name, rows in group.rows.items():
                gone.setdefault(name, set()).update(rows[count:].flatten().tolist())
        filters = {
            name: [i for i in range(len(channels.layers[name].outputs)) if i not in rows]
            for name, rows in gone.items()
        }
        model = keep_filters(model, example, filters)
    return made_sparse(model, 1 - asked["sparsity"]) if "sparsity" in asked else model


def _asked(row: Mapping[str, Any], variant: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the plan asked for, of a variant that was made."""
    found: Mapping[str, Any] = next(
        asked for asked in row["options"]["pruning"] if asked["name"] == variant["name"]
    )
    return found


def is_pruned_filters(row: Mapping[str, Any]) -> bool:
    """Say whether ``perform`` made the row."""
    return bool(row["options"]["pruning"])


def variants_of(row: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    """Return None for the row's own network, and what each way of pruning made of it."""
    return [None, *(row["variants"] if is_pruned_filters(row) else ())]


def name_of(row: Mapping[str, Any], variant: Mapping[str, Any] | None) -> str:
    """Return what tables call a row's network, or one of its variants."""
    return f"{row['run']}, {variant['name']}" if variant else str(row["run"])


def network_of(row: Mapping[str, Any], variant: Mapping[str, Any] | None) -> str:
    """Return a text that is equal for equal networks of a data set."""
    options = row["options"]
    parts = [options["model"], options["weights"], options["network"]]
    if (members := options["members"]) > 1:
        parts.append({"members": members})
    if variant:
        parts += [_asked(row, variant), variant.get("kept")]
    return json.dumps(parts, sort_keys=True)


def expanded(
    rows: Iterable[Mapping[str, Any]], times: Iterable[Mapping[str, Any]] = ()
) -> Iterator[Mapping[str, Any]]:
    """Yield each row, and for each variant of it a row under another name.

    With what was measured of each such network: ``forward_ms`` and ``step_ms``.
    """
    measured = {(line["dataset"], line["seed"]): line for line in times}
    for row in rows:
        line = measured.get((row["dataset"], row["seed"]), {"networks": {}})
        for variant in variants_of(row):
            name = name_of(row, variant)
            same = line["networks"].get(name) == network_of(row, variant)
            yield {**row, **(variant or {}), "run": name, **(line["times"][name] if same else {})}
