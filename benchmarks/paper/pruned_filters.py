"""Train a network, prune its filters in many ways, and fine-tune each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparseconv as sc
from benchmarks.paper.archives import Shape
from benchmarks.paper.networks import first_model, multiply_adds
from benchmarks.paper.plan import CRITERIA, Job, Variant
from sparseconv.core.files import write_whole
from sparseconv.core.modules import deepcopy_model
from sparseconv.datasets import Dataset
from sparseconv.pruning import keep_filters, merge, prune_filters
from sparseconv.pruning.tracing import trace
from sparseconv.running import evaluate
from sparseconv.training.loop import train

VARIANTS_NAME = "variants.json"
TUNING = 0.25  # epochs of fine-tuning, as a share of the training's


def variants(job: Job, whole: nn.Module, data: Dataset, folder: Path) -> list[dict[str, Any]]:
    """Prune a trained network in each of the plan's ways, and fine-tune it.

    Resumes from the folder. Times are CPU seconds of one thread.
    """
    path = folder / VARIANTS_NAME
    done: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for asked in job.options["pruning"][len(done) :]:
        done.append(_pruned(Variant(**asked), whole, data, job))
        write_whole(path, json.dumps(done))
    return done


def _pruned(variant: Variant, whole: nn.Module, data: Dataset, job: Job) -> dict[str, Any]:
    X, y = torch.from_numpy(data.X_train), torch.from_numpy(data.y_train)
    torch.manual_seed(job.seed)
    begin = time.process_time()
    small, facts = smaller(variant, whole, (X, y), job.seed)
    prune_seconds = time.process_time() - begin
    at_once = tested(small, data)
    epochs = job.recipe().epochs
    if variant.retrain:
        for module in small.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    else:
        epochs = max(1, round(TUNING * epochs))
    recipe = replace(job.recipe(), epochs=epochs)
    result = train(small, X, y, recipe, verbose=False)
    final = merge(small) if variant.equivalent else small
    return {
        "name": variant.name,
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
    variant: Variant, whole: nn.Module, data: tuple[Tensor, Tensor], seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a smaller copy of a network, as a variant specifies, and each set's kept units."""
    example, facts = data[0][:1], {}
    found = deepcopy_model(whole)
    if variant.factorize and variant.compression:
        how: Any = {"method": variant.factorize, "parameter_compression": variant.compression}
        found, _ = sc.factorize(whole, **how)
    elif variant.criterion:
        found, report = prune_filters(
            whole,
            example,
            CRITERIA[variant.criterion](data, seed),
            fraction=variant.ratio,
            steps=variant.steps,
            equivalent=variant.equivalent,
        )
        kept = {layer.name: set(layer.kept) for layer in report.layers}
        facts["kept"] = [
            sum(set(rows.tolist()) <= kept[layer] for rows in group.rows[layer])
            for group in report.channels.sets
            for layer in list(group.rows)[:1]
        ]
    if variant.sparsity is not None:
        found = made_sparse(found, 1 - variant.sparsity)
    return found, facts


def made_sparse(model: nn.Module, density: float) -> nn.Module:
    """Convert convolutions with several taps to sparse layers with their largest weights."""
    masks = {
        name: sc.block_mask(module.weight, density, block=1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1
    }
    return sc.convert(model, masks=masks, layers=list(masks)).model


def tested(model: nn.Module, data: Dataset) -> float:
    X, y = torch.as_tensor(data.X_test), torch.as_tensor(data.y_test)
    return evaluate(model, X, y, 64)["test_accuracy"]


def like(row: Mapping[str, Any]) -> nn.Module:
    """Build a network with the shape that an ``expanded`` row's network had."""
    asked = row["asked"]
    shape = Shape(**{field.name: row[field.name] for field in fields(Shape)})
    model = first_model(row["options"], row["seed"], shape)
    if "factorize" in asked:
        how = {"method": asked["factorize"], "parameter_compression": asked["compression"]}
        return sc.factorize(model, **how)[0]
    if "kept" in row:
        example = torch.zeros(1, row["n_channels"], row["n_timepoints"])
        channels = trace(model, (example,))
        gone: dict[str, set[int]] = {}
        for group, count in zip(channels.sets, row["kept"], strict=True):
            for name, rows in group.rows.items():
                gone.setdefault(name, set()).update(rows[count:].flatten().tolist())
        filters = {
            name: [i for i in range(len(channels.layers[name].outputs)) if i not in rows]
            for name, rows in gone.items()
        }
        model = keep_filters(model, example, filters)
    return made_sparse(model, 1 - asked["sparsity"]) if "sparsity" in asked else model


def network_of(row: Mapping[str, Any]) -> str:
    """Return a text that is equal for equal networks of a data set in the same precision."""
    options = row["options"]
    parts = [options["model"], options["weights"], options["network"]]
    if (precision := options["recipe"].get("precision", "float32")) != "float32":
        parts.append(precision)
    if (members := options["members"]) > 1:
        parts.append({"members": members})
    if row["asked"]:
        parts += [row["asked"], row.get("kept")]
    return json.dumps(parts, sort_keys=True)


def expanded(
    rows: Iterable[Mapping[str, Any]], times: Iterable[Mapping[str, Any]] = ()
) -> Iterator[Mapping[str, Any]]:
    """Yield each row, and a row under another name for each of its variants.

    ``"asked"`` is what the plan asked of the variant; ``forward_ms`` and ``step_ms`` are measured
    times.
    """
    measured = {(line["dataset"], line["seed"]): line for line in times}
    for row in rows:
        line = measured.get((row["dataset"], row["seed"]), {"networks": {}})
        made = zip(row["options"]["pruning"], row.get("variants", ()), strict=True)
        for asked, variant in ({}, {}), *made:
            name = f"{row['run']}, {asked['name']}" if asked else row["run"]
            found = {**row, **variant, "run": name, "asked": asked}
            same = line["networks"].get(name) == network_of(found)
            yield {**found, **(line["times"][name] if same else {})}
