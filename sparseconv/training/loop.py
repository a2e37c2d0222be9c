"""The training loop."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparseconv.core.arrays import class_indices, warn_if_swapped
from sparseconv.core.checks import count
from sparseconv.core.files import claimed, partial_files
from sparseconv.core.generators import Drawing
from sparseconv.core.modules import check_module
from sparseconv.dst import DSTScheduler
from sparseconv.measure.machine import retain_freed_memory
from sparseconv.measure.progress import progress
from sparseconv.pruning.sparsity_loss import InstanceSparsity
from sparseconv.running import (
    batch_sizes,
    evaluate,
    for_model,
    in_eval_mode,
    keeping_buffers,
    one_tensor,
    predict_log_proba,
)
from sparseconv.training import checkpoint
from sparseconv.training.recipe import Recipe
from sparseconv.training.run import Run, SchedulerFactory

CHECKPOINT_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class TrainingResult:
    """Results of a training run, apart from the model.

    Attributes:
        history: one row per epoch, which counts from 1. ``train_loss`` and ``train_accuracy`` are
            means over the training series, computed during the epoch. ``updated`` is whether a
            pattern update was made. ``seconds`` is the time without validation, and ``cpu_seconds``
            that of all threads. Validation adds ``test_loss`` and ``test_accuracy``.
        best_epoch, best_loss: the epoch with the lowest training loss (in a tie, the last one), and
            this loss.
        itop_rate: share of the sparse layers' weights that have ever been active (Liu et al. 2021),
            or None without a ``DSTScheduler``.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    best_loss: float
    itop_rate: float | None


def train(
    model: nn.Module,
    X: Any,
    y: Any,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    validation: tuple[Any, Any] | None = None,
    verbose: bool | None = None,
    checkpoint_every: int = 1,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
    scheduler_factory: SchedulerFactory | None = None,
    penalty: InstanceSparsity | None = None,
    cuda_graphs: bool | None = None,
) -> TrainingResult:
    """Train a classifier and leave it with the weights and patterns of its best epoch.

    The best epoch is the one with the lowest training loss, before its last pattern update; if
    training stops early (because of an error or Ctrl-C), it is the best so far, or the start. The
    model is left in eval mode, and torch's global generators are restored. The same model, data,
    recipe and number of threads yield bit-identical results, even after resuming; on CUDA, only
    with deterministic operations (for cuDNN, set ``torch.backends.cudnn.deterministic``).

    Args:
        model: maps ``(N, ...)`` to log-probabilities ``(N, n_classes)``. The patterns of any
            ``SparseConv1d`` layers change during training.
        X: training series, an array or tensor ``(n_cases, ...)`` of finite numbers.
        y: ``(n_cases,)`` integers, class indices from 0.
        recipe: hyperparameters of the training run.
        out: folder of ``checkpoint.pt``, created if missing; an older file is overwritten.
        resume: continue from ``out/checkpoint.pt`` if it exists.
        validation: ``(X, y)``, evaluated after each epoch without affecting training.
        verbose: show a progress bar (tqdm) on stderr; None shows it only in a terminal.
        checkpoint_every: epochs between checkpoints; the last epoch is always saved.
        on_epoch: called with the history so far after each epoch and its checkpoint, if any.
        scheduler_factory: a ``SchedulerFactory``, which builds the pattern scheduler.
        penalty: a ``pruning.InstanceSparsity``, added to each batch's loss, and so to
            ``train_loss``.
        cuda_graphs: replay steps on a CUDA device as CUDA graphs, with the same results and faster
            launches; forward hooks run only in eager steps. None uses graphs on a GPU, except with
            a penalty; if a step cannot be captured, a warning states the reason.

    Raises:
        TypeError, ValueError: incompatible data or arguments; ``out`` not writable or in use by
            another run; a training loss that is not finite (checkpoints are kept).
        RuntimeError: series that a layer rejects, for example because they are too short.
        CheckpointError: a damaged file, or a checkpoint with a different recipe, model or data set.
        KeyboardInterrupt: Ctrl-C; the message says how to resume.

    Example:
        >>> from sparseconv.models import DSN
        >>> X, y = torch.randn(20, 1, 30), torch.arange(20) % 2
        >>> model = DSN(1, 2, nf=4, kernel_size=9, depth=2)
        >>> result = train(model, X, y, Recipe(epochs=2), verbose=False)
        >>> result.history[result.best_epoch - 1]["train_loss"] == result.best_loss
        True

    Source: Xiao et al. 2022 (DSN), Algorithm 1.
    """
    check_module(model)
    if resume and out is None:
        raise ValueError("resume=True needs out, the folder with the checkpoint to continue from")
    checkpoint_every = count("checkpoint_every", checkpoint_every)
    if penalty is not None and cuda_graphs:
        raise ValueError(
            "expected a penalty or cuda_graphs, but got both; omit one of them, because graphs "
            "skip the penalty's hooks"
        )
    X, y, draws = _checked_data(model, X, y, recipe)
    if validation is not None:
        validation = _checked_data(model, *validation, recipe, len(X))[:2]
    path = None if out is None else Path(out) / CHECKPOINT_NAME
    retain_freed_memory()
    folder = contextlib.nullcontext() if path is None else claimed(path.parent)
    generators = torch.random.fork_rng(devices=[X.device], enabled=X.is_cuda)
    with folder, generators, torch.enable_grad():
        if X.is_cuda:
            with torch.cuda.device(X.device):
                torch.cuda.manual_seed(recipe.seed)
        run = Run(model, X, y, recipe, scheduler_factory, penalty, cuda_graphs, draws)
        if path is not None and resume and path.exists():
            run.load(path)
        saved = len(run.history)
        epochs = {"total": recipe.epochs, "initial": saved, "unit": "epoch", "desc": "training"}
        bar = progress(None, verbose, **epochs)
        try:
            for left in [] if path is None else partial_files(path):  # by a run that was killed
                left.unlink()
            while len(run.history) < recipe.epochs:
                with contextlib.nullcontext() if penalty is None else penalty:
                    row = run.epoch()
                if validation is not None:
                    with run.drawing(run.generator.clone_state()):
                        row |= evaluate(model, *validation, run.batch_size)
                done = len(run.history)
                if path is not None and (done % checkpoint_every == 0 or done == recipe.epochs):
                    saved = done
                    checkpoint.save(path, run.content())
                if on_epoch is not None:
                    on_epoch(run.history)
                if bar is not None:
                    bar.set_postfix(loss=f"{row['train_loss']:.4f}", best=run.best["epoch"])
                    bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_resume(run, path, saved)) from None
        finally:
            if bar is not None:
                bar.close()
            model.load_state_dict(run.best["model"])
            model.eval()
    itop = run.scheduler.itop_rate() if isinstance(run.scheduler, DSTScheduler) else None
    return TrainingResult(run.history, run.best["epoch"], run.best["loss"], itop)


def _checked_data(
    model: nn.Module, X: Any, y: Any, recipe: Recipe, cases: int | None = None
) -> tuple[Tensor, Tensor, bool]:
    """Convert series ``(n_cases, ...)`` and labels to the model's device and dtype.

    Labels are class indices from 0. Raise TypeError or ValueError if the model cannot be trained or
    evaluated on them; the last batch is run to find out. For validation data, ``cases`` is the size
    of the training set. Also return whether the model draws random numbers.
    """
    X, labels = for_model("train", model, X), class_indices("train", "y", y)
    if X.dim() < 2 or len(X) != len(labels) or X.numel() == 0:
        raise ValueError(
            "expected X of shape (n_cases, n_channels, n_timepoints) and y of shape (n_cases,), "
            f"with at least one case, but got {tuple(X.shape)} and {labels.shape}"
        )
    warn_if_swapped(tuple(X.shape))
    device = next(model.parameters(), torch.empty(0)).device
    X, y = X.to(device), torch.from_numpy(labels).to(device)
    size = min(recipe.batch_size_for(cases or len(X)), len(X))
    last = batch_sizes(len(X), size)[-1]
    with Drawing() as draws:
        if cases:
            log_proba = predict_log_proba(model, X[: size + last], size)
        else:
            rng = torch.random.fork_rng([device], enabled=X.is_cuda)
            # The model is left unchanged, also its modes and buffers.
            with keeping_buffers(model), in_eval_mode(model), rng, torch.enable_grad():
                log_proba = one_tensor(model.train()(X[:last])).detach()
    if log_proba.dim() != 2 or bool((log_proba.logsumexp(1).abs() > 0.01).any()):
        raise ValueError(
            "the model must return log-probabilities (n_cases, n_classes), but got shape "
            f"{tuple(log_proba.shape)}, with probabilities that sum to "
            f"{log_proba.exp().sum(-1).tolist()}; "
            "end it with torch.nn.LogSoftmax(dim=1)"
        )
    if y.min() < 0 or y.max() >= log_proba.shape[1]:
        raise ValueError(
            f"y must contain class indices in [0, {log_proba.shape[1]}), the model's classes, but "
            f"ranges from {int(y.min())} to {int(y.max())}; numpy.unique(labels, "
            "return_inverse=True)[1] returns indices 0, 1, ..."
        )
    return X, y, draws.drew


def _how_to_resume(run: Run, path: Path | None, saved: int) -> str:
    how = f"{path} contains epoch {saved}: resume with the same call and resume=True"
    if saved == 0:
        why = "because train was called without out" if path is None else "yet"
        how = f"no epoch of this run has been saved {why}"
    return f"training was interrupted in epoch {len(run.history) + 1} of {run.recipe.epochs}; {how}"
