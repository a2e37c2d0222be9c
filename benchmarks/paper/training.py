"""Networks of a sweep, and ensembles: trained and tested, with the row that says how it went."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.archives import Shape, read
from benchmarks.paper.networks import MomentsDST, build, multiply_adds
from benchmarks.paper.plan import Job, difference, member_seed
from sparseconv.bench.network.masked import MaskedDST, masked_copy
from sparseconv.core.files import write_whole
from sparseconv.datasets import Dataset
from sparseconv.measure.machine import commit, measurement_context
from sparseconv.models import DSN, Ensemble
from sparseconv.report.figures import group_profiles, kernels_by_size
from sparseconv.training.evaluation import predict_log_proba
from sparseconv.training.loop import TrainingResult, train
from sparseconv.training.recipe import Recipe
from sparseconv.training.run import SchedulerFactory

SCHEDULED = ("prune_fraction", "prune_floor", "seed")  # what every scheduler takes of a recipe
TRAINING = 3  # what a step costs beside a prediction: fprop, dgrad, wgrad
CHECKPOINTS = 50  # in a whole run: a killed one repeats 2 % at most
CURVE_POINTS, CURVE_SHARE = 25, 0.05  # at most, and what they may cost of the training
PROGRESS_NAME, CURVE_NAME, JOB_NAME = "progress", "curve.json", "job.json"
CODE = commit()  # now, as it is imported: when a row is written, the checkout may be another one


def perform(job: Job, source: str, folder: Path, device: str = "cpu") -> dict[str, Any]:
    """Train and test, from what ``folder`` holds; return the row.

    Its times are None where ``"cuda"`` trained a part: jobs share a GPU, and CPU seconds say
    nothing of it.
    """
    gpu = "" if device == "cpu" else torch.cuda.get_device_name(device)
    code, gpu = begin_or_resume(job, folder, gpu)
    data, recipe = read(source, job.options["series"], job.options["split"]), job.recipe()
    shape, target = Shape.of(data), torch.as_tensor(data.y_test)
    # Drawn on the CPU, so that the first weights are those of any other machine.
    model = first_model(job.options, job.seed, shape).to(device)
    X_test, timed = torch.as_tensor(data.X_test), not gpu
    networks = list(model.members) if isinstance(model, Ensemble) else [model]
    look_at = set(looks(shape, recipe) if timed and len(networks) == 1 else ())
    curve, progress = Curve(folder / CURVE_NAME), Progress(folder, [1] * len(networks))

    def trained(member: int) -> TrainingResult:
        def report(history: list[dict[str, Any]]) -> None:
            epoch = len(history)
            if epoch in look_at:
                curve.add(epoch, accuracy(predict_log_proba(model, X_test), target))
            progress.write(epoch / recipe.epochs, member)

        own = job.recipe(member)
        return train(
            networks[member], data.X_train, data.y_train, own,
            out=folder / str(member) if len(networks) > 1 else folder, resume=True, progress=False,
            checkpoint_every=checkpoint_interval(own), on_epoch=report,
            scheduler_factory=scheduler_factory(job, own),
            # Other moments are corrected in memory that moves.
            cuda_graphs=device != "cpu" and job.options["moments"] == "zero",
        )  # fmt: skip

    results = [trained(member) for member in range(len(networks))]
    begin = time.process_time()
    log_proba = predict_log_proba(model, X_test).cpu()
    predict_seconds = time.process_time() - begin
    rates = [result.itop_rate for result in results if result.itop_rate is not None]
    seconds = list(accumulate(row["cpu_seconds"] for found in results for row in found.history))
    return {
        **facts_of(job, data, code, gpu),
        "accuracy": accuracy(log_proba, target),
        "test_loss": F.nll_loss(log_proba, target).item(),
        "train_loss": fmean(result.best_loss for result in results),
        **({"best_epoch": results[0].best_epoch} if len(results) == 1 else {}),
        "epochs": recipe.epochs,
        "itop_rate": fmean(rates) if rates else None,
        **costs(job, model.cpu(), shape),
        "curve": curve.points,
        "curve_seconds": [round(seconds[epoch - 1], 3) for epoch, _ in curve.points],
        "train_seconds": round(seconds[-1], 3) if timed else None,
        "predict_seconds": round(predict_seconds, 4) if timed else None,
    }


def facts_of(job: Job, data: Dataset, code: str = CODE, gpu: str = "") -> dict[str, Any]:
    """Return what any row says: the job, the sizes of its data, the machine and the date.

    ``code``: the commit that ran; several, if another one resumed it. ``gpu``: the name of the GPU
    that trained it or a part of it.
    """
    return {
        "run": job.run,
        "dataset": job.dataset,
        "seed": job.seed,
        "options": dict(job.options),
        **({"picked": True} if job.picked else {}),
        **asdict(Shape.of(data)),
        "threads": 1,
        "machine": measurement_context() | {"commit": code} | ({"gpu": gpu} if gpu else {}),
    }


def accuracy(log_proba: Tensor, target: Tensor) -> float:
    return (log_proba.argmax(1) == target).double().mean().item()


def begin_or_resume(job: Job, folder: Path, gpu: str = "") -> tuple[str, str]:
    """Note in the folder what is trained there.

    Returns the commits that trained so far, with this one; and the GPU that did, if one has.

    Raises:
        ValueError: the folder holds the beginning of a job with other options.
    """
    path, code = folder / JOB_NAME, CODE
    if path.exists():
        begun = json.loads(path.read_text())
        if change := difference(begun["options"], job.options):
            raise ValueError(
                f"{folder} holds the beginning of a training with {change}; give the run another "
                "name, or remove that folder"
            )
        code = begun["code"] if begun["code"].endswith(CODE) else f"{begun['code']} then {CODE}"
        if begun["gpu"] not in ("", gpu):
            gpu = f"{begun['gpu']} then {gpu}" if gpu else begun["gpu"]
    write_whole(path, json.dumps({"options": job.options, "code": code, "gpu": gpu}))
    return code, gpu


def checkpoint_interval(recipe: Recipe) -> int:
    """Return the epochs between two checkpoints."""
    return max(2, recipe.epochs // CHECKPOINTS)


def looks(shape: Shape, recipe: Recipe) -> list[int]:
    """Choose the epochs after which to look at the test set, which training never sees.

    Each later by about the same factor, since the accuracy moves most in the beginning. In the
    epoch before the pattern changes (its new weights are 0 then), and in none with a checkpoint: a
    run killed between the two would lose the look.
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


class Progress:
    """The share of a job that is done, in a file of its folder.

    Args:
        folder: the job's.
        parts: how long each of its trainings is, in any unit.
    """

    def __init__(self, folder: Path, parts: Sequence[float] = (1,)) -> None:
        self.path, self.parts, self.written = folder / PROGRESS_NAME, parts, time.monotonic()

    def write(self, share: float, part: int = 0) -> None:
        """Say how much of a part is done, unless something was said less than a second ago."""
        if time.monotonic() - self.written > 1:
            self.written = time.monotonic()
            done = sum(self.parts[:part]) + share * self.parts[part]
            write_whole(self.path, str(done / sum(self.parts)))


class Curve:
    """Test accuracies by epoch, ``points``; kept in a file, as a killed run loses none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else []
        self.points: list[list[Any]] = [[int(epoch), float(value)] for epoch, value in found]

    def add(self, epoch: int, value: float) -> None:
        """Add a point, unless a run that was killed had added it."""
        if not self.points or self.points[-1][0] < epoch:
            self.points.append([epoch, round(value, 4)])
            write_whole(self.path, json.dumps(self.points))


def first_model(options: Mapping[str, Any], seed: int, shape: Shape) -> nn.Module:
    """Build a job's network or ensemble before training, the same for the same seed."""
    seeds = [member_seed(options, seed, member) for member in range(options["members"])]
    networks = [first_network(options, own, shape) for own in seeds]
    return Ensemble(networks) if len(networks) > 1 else networks[0]


def first_network(options: Mapping[str, Any], seed: int, shape: Shape) -> nn.Module:
    """Build one network of these options, drawn with its own seed."""
    torch.manual_seed(seed)
    model = build(options["model"], options["network"], shape)
    return masked_copy(model) if options["weights"] == "masked dense" else model


def scheduler_factory(job: Job, recipe: Recipe) -> SchedulerFactory | None:
    """Return what changes the patterns, where it is not the recipe's ``DSTScheduler``."""
    settings: dict[str, Any] = {name: getattr(recipe, name) for name in SCHEDULED}
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
    """Count parameters and multiply-adds, and describe the kernels of a DSN."""
    found: dict[str, Any] = {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": multiply_adds(model, shape),
    }
    if job.options["model"] == "DSN":  # by its active weights, also where masks are over dense ones
        network = build("DSN", job.options["network"], shape)
        assert isinstance(network, DSN)
        found["flops_paper"] = job.options["members"] * network.cost(shape.n_timepoints).flops_paper
    if isinstance(model, DSN) and model.sparse_layers():
        found["kernels_by_size"] = [counts.tolist() for counts in kernels_by_size(model)]
        profiles = [group_profiles(layer) for layer in model.sparse_layers()]
        found["group_weights"] = [  # percent of the layer's largest: whole numbers are short
            (100 * profile / profile.max()).round().astype(int).tolist() for profile in profiles
        ]
    return found
