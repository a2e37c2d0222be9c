"""Train and test a sweep's networks and ensembles, and return their rows."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.bench.masked import MaskedDST
from benchmarks.paper.archives import Shape, read
from benchmarks.paper.networks import MomentsDST, build, first_model, multiply_adds
from benchmarks.paper.plan import Job
from benchmarks.paper.pruned_filters import tested, variants
from benchmarks.recording import commit, measurement_context
from sparseconv.core.files import write_whole
from sparseconv.datasets import Dataset
from sparseconv.models import DSN, Ensemble
from sparseconv.pruning import InstanceSparsity
from sparseconv.report.figures import group_profiles, kernels_by_size
from sparseconv.running import evaluate
from sparseconv.training.loop import TrainingResult, train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run import SchedulerFactory

TRAINING = 3  # what a step costs, in predictions: fprop, dgrad, wgrad
CHECKPOINTS = 50  # in a whole run: a killed one repeats 2 % at most
CURVE_POINTS, CURVE_SHARE = 25, 0.05  # at most, and what they may cost of the training
JOB_NAME = "job.json"
CODE = commit()  # now, as it is imported: when a row is written, the checkout may be another one


def perform(job: Job, source: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and test, resuming from ``folder``; return the row.

    Times are None if a part was trained on ``"cuda"``: jobs share a GPU, and CPU seconds ignore it.
    """
    gpu = "" if device == "cpu" else torch.cuda.get_device_name(device)
    code, gpu = begin_or_resume(folder, gpu)
    data, recipe = read(source, job.options["series"], job.options["split"]), job.recipe()
    shape = Shape.of(data)
    # Drawn on the CPU, so that the first weights are those of any other machine.
    model = first_model(job.options, job.seed, shape).to(device)
    timed = not gpu
    networks = list(model.members) if isinstance(model, Ensemble) else [model]
    look_at = looks(shape, recipe) if timed and len(networks) == 1 else []
    weight = job.options["silence"]

    def look(history: list[dict[str, Any]]) -> None:  # which checkpoints hold
        if len(history) in look_at:
            history[-1]["test_accuracy"] = round(tested(model, data), 4)

    def trained(member: int) -> TrainingResult:
        own = job.recipe(member)
        return train(
            networks[member], data.X_train, data.y_train, own,
            out=folder / str(member) if len(networks) > 1 else folder, resume=True, verbose=False,
            checkpoint_every=checkpoint_interval(own), on_epoch=look,
            scheduler_factory=scheduler_factory(job, own),
            penalty=InstanceSparsity(model, weight=weight) if weight else None,
            # Other moments are corrected in memory that moves.
            cuda_graphs=device != "cpu" and job.options["moments"] == "zero",
        )  # fmt: skip

    results = [trained(member) for member in range(len(networks))]
    begin = time.process_time()
    X_test, y_test = torch.as_tensor(data.X_test), torch.as_tensor(data.y_test, device=device)
    tests = evaluate(model, X_test, y_test, 64)
    predict_seconds = time.process_time() - begin
    rates = [result.itop_rate for result in results if result.itop_rate is not None]
    history = [row for result in results for row in result.history]
    seconds = list(accumulate(row["cpu_seconds"] for row in history))
    seen = [row for row in history if "test_accuracy" in row]
    return {
        **facts_of(job, data, code, gpu),
        "accuracy": tests["test_accuracy"],
        "test_loss": tests["test_loss"],
        "train_loss": fmean(result.best_loss for result in results),
        **({"best_epoch": results[0].best_epoch} if len(results) == 1 else {}),
        "epochs": recipe.epochs,
        "itop_rate": fmean(rates) if rates else None,
        **costs(job, model.cpu(), shape),
        "curve": [[row["epoch"], row["test_accuracy"]] for row in seen],
        "curve_seconds": [round(seconds[row["epoch"] - 1], 3) for row in seen],
        "train_seconds": round(seconds[-1], 3) if timed else None,
        "predict_seconds": round(predict_seconds, 4) if timed else None,
        **({"variants": variants(job, model, data, folder)} if job.options["pruning"] else {}),
    }


def facts_of(job: Job, data: Dataset, code: str = CODE, gpu: str = "") -> dict[str, Any]:
    """Return the facts that every row has: the job, sizes of data, machine and date.

    ``code``: the commits that ran the job. ``gpu``: the GPU that trained it, in whole or part.
    """
    return {
        "run": job.run,
        "dataset": job.dataset,
        "seed": job.seed,
        "options": dict(job.options),
        "post_hoc": job.post_hoc,
        **asdict(Shape.of(data)),
        "threads": 1,
        "machine": measurement_context() | {"commit": code} | ({"gpu": gpu} if gpu else {}),
    }


def begin_or_resume(folder: Path, gpu: str = "") -> tuple[str, str]:
    """Record in the folder what trains there; return the commits and GPUs that trained so far."""
    path = folder / JOB_NAME
    begun = json.loads(path.read_text()) if path.exists() else {"commits": [], "gpus": []}
    for key, own in (("commits", CODE), ("gpus", gpu)):
        begun[key] = [name for name in dict.fromkeys([*begun[key], own]) if name]
    write_whole(path, json.dumps(begun))
    return " then ".join(begun["commits"]), " then ".join(begun["gpus"])


def checkpoint_interval(recipe: Recipe) -> int:
    return max(2, recipe.epochs // CHECKPOINTS)


def looks(shape: Shape, recipe: Recipe) -> list[int]:
    """Choose the epochs after which to evaluate on the test set, which training never sees.

    The epochs grow by about the same factor, since accuracy changes most at the beginning.
    Evaluations come before a pattern update (whose new weights are 0), and never with a checkpoint:
    a kill between the two would lose the evaluation.
    """
    affordable = CURVE_SHARE * recipe.epochs * TRAINING * shape.n_train / shape.n_test
    count = max(1, min(CURVE_POINTS, int(affordable)))
    checkpoints = checkpoint_interval(recipe)
    allowed = [
        epoch for epoch in range(1, recipe.epochs)
        if (epoch + 1) % recipe.update_every_epochs == 0 and epoch % checkpoints
    ]  # fmt: skip
    wanted = np.geomspace(1, recipe.epochs, count + 2)[1:-1] if allowed else ()
    return sorted({min(allowed, key=lambda epoch: abs(epoch - one)) for one in wanted})


def scheduler_factory(job: Job, recipe: Recipe) -> SchedulerFactory | None:
    """Return the factory of the pattern scheduler; None for the recipe's ``DSTScheduler``."""
    names = ("prune_fraction", "prune_floor", "seed")
    settings: dict[str, Any] = {name: getattr(recipe, name) for name in names}
    moments = job.options["moments"]
    if job.options["weights"] == "sparse" and moments == "zero":
        return None

    def make(model: Any, optimizer: Any, every: int, end: int, decay: int) -> Any:
        times = {"update_every": every, "end_step": end, "decay_steps": decay}
        if job.options["weights"] == "masked dense":
            return MaskedDST(model, optimizer, **times, **settings)
        return MomentsDST(
            model, optimizer, moments=moments, grow=recipe.grow, process_group=None,
            **times, **settings,
        )  # fmt: skip

    return make


def costs(job: Job, model: nn.Module, shape: Shape) -> dict[str, Any]:
    """Count parameters and multiply-adds, and describe a DSN's kernels."""
    found: dict[str, Any] = {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": multiply_adds(model, shape),
    }
    if job.options["model"] == "DSN":  # by its active weights, also where masks are over dense ones
        network = build("DSN", job.options["network"], shape)
        found["flops_paper"] = job.options["members"] * network.cost(shape.n_timepoints).flops_paper
    if isinstance(model, DSN) and model.sparse_layers():
        found["kernels_by_size"] = [counts.tolist() for counts in kernels_by_size(model)]
        profiles = [group_profiles(layer) for layer in model.sparse_layers()]
        found["group_weights"] = [  # percent of the layer's largest: whole numbers are short
            (100 * profile / profile.max()).round().astype(int).tolist() for profile in profiles
        ]
    return found
