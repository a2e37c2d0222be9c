"""The one training loop: dynamic sparse training, checkpoints, resuming, progress."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.checks import count, flag
from sparseconv.core.files import check_writable, partial_files
from sparseconv.core.folders import claimed
from sparseconv.dst import DSTScheduler
from sparseconv.measure.memory import retain_freed_memory
from sparseconv.nn.conv import SparseConv1d
from sparseconv.nn.replacement import check_module
from sparseconv.training import checkpoint
from sparseconv.training.checkpoint import CheckpointError
from sparseconv.training.data import checked_data, digest
from sparseconv.training.evaluation import evaluate
from sparseconv.training.graphed import GraphedStep
from sparseconv.training.recipe import Recipe

CHECKPOINT_NAME = "checkpoint.pt"


class PatternScheduler(Protocol):
    """What the loop asks of a ``DSTScheduler`` or of anything used in its place.

    Example:
        >>> from sparseconv.models import DSN
        >>> def early(model, optimizer, update_every, end_step, decay_steps):
        ...     return DSTScheduler(model, optimizer, update_every=1, end_step=end_step // 2)
        >>> X, y = torch.randn(20, 1, 30), torch.arange(20) % 2
        >>> options = {"scheduler_factory": early, "progress": False}
        >>> result = train(DSN(1, 2, nf=4, depth=2), X, y, Recipe(epochs=4), **options)
        >>> [row["updated"] for row in result.history]
        [True, True, False, False]
    """

    @property
    def prune_fraction_now(self) -> float:
        """Share of active weights that an update at the latest ``step()`` moves."""

    def step(self) -> bool:
        """Called after each optimizer step; whether weights were moved."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Continue where ``state_dict()`` was taken."""


# (model, optimizer, update_every, end_step, decay_steps), the last three in optimizer steps
SchedulerFactory = Callable[..., PatternScheduler | None]


class Penalty(AbstractContextManager[Any], Protocol):
    """A term of the loss, which watches the model's forward passes inside of its with block."""

    def __call__(self) -> Tensor: ...


@dataclass(frozen=True)
class TrainingResult:
    """What a training run reports beside the model.

    Attributes:
        history: one row per epoch with ``epoch`` (from 1), ``train_loss`` and ``train_accuracy``
            (means over the epoch's batches, as they were seen), ``lr``, ``prune_fraction``,
            ``updated`` (the pattern changed), ``seconds`` (training only), ``cpu_seconds`` (the
            same, of this process on all its threads: what other processes took is not in it), and
            with validation data ``test_loss`` and ``test_accuracy``.
        best_epoch, best_loss: the epoch of least training loss; among equals, the last.
        itop_rate: share of all weights of the sparse layers that were ever active (Liu et al.
            2021), or None without a ``DSTScheduler``.

    Example:
        >>> from sparseconv.models import DSN
        >>> X, y = torch.randn(20, 1, 30), torch.arange(20) % 2
        >>> result = train(DSN(1, 2, nf=4, depth=2), X, y, Recipe(epochs=2), progress=False)
        >>> result.history[result.best_epoch - 1]["train_loss"] == result.best_loss
        True
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
    progress: bool = True,
    checkpoint_every: int = 1,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
    scheduler_factory: SchedulerFactory | None = None,
    penalty: Penalty | None = None,
    cuda_graphs: bool = False,
) -> TrainingResult:
    """Train a classifier and leave it with the weights and patterns of its best epoch.

    The best epoch has the least training loss; kept are its weights after its last optimizer
    step, before the pattern changes. The model is left in eval mode. If training stops early (an
    error, Ctrl-C), the model gets the best epoch so far, or what it was before the first.
    Torch's global generators are left as they were. The same model, data, recipe and number of
    threads give the same bits, resumed or not; on CUDA as far as the model's other operations
    repeat theirs (cuDNN's do with ``torch.backends.cudnn.deterministic``).

    Args:
        model: maps ``(N, ...)`` to log-probabilities ``(N, n_classes)``. Its ``SparseConv1d``
            layers are trained dynamically; it may have none.
        X: training series, an array or tensor ``(n_cases, ...)``, finite.
        y: ``(n_cases,)`` integers, class indices from 0.
        recipe: every constant.
        out: a folder, made if need be, for ``checkpoint.pt``; an older one is overwritten.
        resume: continue from ``out/checkpoint.pt`` if it exists.
        validation: ``(X, y)`` evaluated after each epoch; it does not influence training.
        progress: show a bar (tqdm) on stderr.
        checkpoint_every: epochs between checkpoints; the last epoch always writes one.
        on_epoch: called with the history so far when an epoch has ended and is saved.
        scheduler_factory: builds what changes the patterns instead of a ``DSTScheduler``; a
            ``SchedulerFactory``.
        penalty: a term that is added to the loss of each batch, and so to the training loss that
            is reported; for example ``pruning.InstanceSparsity(model)``.
        cuda_graphs: replay all steps but the first ones as CUDA graphs (``training.graphed``): the
            same results without most of the time for launches. With gradient growth or a
            ``scheduler_factory`` the steps before an update are none. The model must be on a CUDA
            device; its forward hooks run in the other steps only.

    Raises:
        TypeError, ValueError: data or arguments that do not fit; ``out`` that cannot be written, or
            that another run is writing to; ``cuda_graphs`` without a GPU or with a penalty; a
            training loss that is not finite (checkpoints stay).
        CheckpointError: a damaged file, or a checkpoint of another recipe, model or data.
        KeyboardInterrupt: Ctrl-C; its message says how to resume.

    Example:
        >>> from sparseconv.models import DSN
        >>> X, y = torch.randn(20, 1, 30), torch.arange(20) % 2
        >>> model = DSN(1, 2, nf=4, kernel_size=9, depth=2)
        >>> result = train(model, X, y, Recipe(epochs=2), progress=False)
        >>> [row["epoch"] for row in result.history]
        [1, 2]

    Source: Xiao et al. 2022 (DSN), Algorithm 1.
    """
    check_module(model)
    resume, cuda_graphs = flag("resume", resume), flag("cuda_graphs", cuda_graphs)
    progress = flag("progress", progress)
    if resume and out is None:
        raise ValueError("resume=True needs out, the folder with the checkpoint to continue from")
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe must be a Recipe, but got {recipe!r}; write Recipe(epochs=...)")
    checkpoint_every = count("checkpoint_every", checkpoint_every)
    for name, called in (("on_epoch", on_epoch), ("scheduler_factory", scheduler_factory)):
        if called is not None and not callable(called):
            raise TypeError(f"{name} must be a function or None, but got {called!r}")
    if penalty is not None and not (callable(penalty) and hasattr(penalty, "__enter__")):
        raise TypeError(
            "penalty must be a context manager that can be called, for example "
            f"InstanceSparsity(model), but got {penalty!r}"
        )
    if penalty is not None and cuda_graphs:
        raise ValueError("a penalty watches every step, which cuda_graphs would skip; use one")
    X, y = checked_data(model, X, y)
    if validation is not None:
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError(
                "validation must be a pair (X, y) or None, but got a "
                f"{type(validation).__name__}; write validation=(X, y)"
            )
        validation = checked_data(model, *validation)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "nothing can be trained: every parameter of the model is frozen; "
            "call requires_grad_() on those to train"
        )
    path = None if out is None else Path(out) / CHECKPOINT_NAME
    if path is not None and path.parent.is_file():
        raise ValueError(f"out must name a folder, but {path.parent} is a file")

    retain_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[X.device] if X.is_cuda else []))
        stack.enter_context(torch.enable_grad())
        torch.default_generator.manual_seed(recipe.seed)
        if X.is_cuda:
            _cuda_generator(X.device).manual_seed(recipe.seed)
        run = _Run(model, X, y, recipe, scheduler_factory, penalty, cuda_graphs)
        if path is not None:
            stack.enter_context(claimed(path.parent))
            if resume and path.exists():
                run.load(path)
        bar = _progress_bar(len(run.history), recipe.epochs) if progress else None
        try:
            if path is not None and len(run.history) < recipe.epochs:
                check_writable(path)
                for left in partial_files(path):  # by a run that was killed
                    left.unlink()
            while len(run.history) < recipe.epochs:
                with contextlib.nullcontext() if penalty is None else penalty:
                    row = run.epoch()
                if validation is not None:
                    row |= evaluate(model, *validation, run.batch_size)
                done = len(run.history)
                if path is not None and (done % checkpoint_every == 0 or done == recipe.epochs):
                    checkpoint.save(path, run.content())
                if on_epoch is not None:
                    on_epoch(run.history)
                if bar is not None:
                    bar.set_postfix(loss=f"{row['train_loss']:.4f}", best=run.best["epoch"])
                    bar.update()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_resume(run, path)) from None
        finally:
            if bar is not None:
                bar.close()
            model.load_state_dict(run.best["model"])
            model.eval()
    itop = run.scheduler.itop_rate() if isinstance(run.scheduler, DSTScheduler) else None
    return TrainingResult(run.history, run.best["epoch"], run.best["loss"], itop)


class _Run:
    """The state of a training run: all that a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        X: Tensor,
        y: Tensor,
        recipe: Recipe,
        make_scheduler: SchedulerFactory | None,
        penalty: Penalty | None,
        cuda_graphs: bool,
    ) -> None:
        self.penalty = penalty
        self.model, self.X, self.y, self.recipe = model, X, y, recipe
        self.data_digest = digest(X, y)
        self.batch_size = recipe.batch_size_for(len(X))
        self.batches = math.ceil(len(X) / self.batch_size)
        self.update_every = recipe.update_every_steps or recipe.update_every_epochs * self.batches
        # A graph cannot read a Python number; eager steps read the same tensor, for the same bits.
        # (Torch's fused Adam reads 32 bits on CUDA, and 64 on a CPU.)
        dtype = torch.float32 if X.is_cuda else torch.float64
        fixed = X.is_cuda or cuda_graphs
        self.lr = torch.tensor(recipe.lr, dtype=dtype, device=X.device) if fixed else None
        self.optimizer = torch.optim.Adam(
            model.parameters(),
            recipe.lr if self.lr is None else self.lr,
            weight_decay=recipe.weight_decay,
            fused=True,
            capturable=X.is_cuda,
        )
        # Gradient growth watches the step before an update by hooks, which a graph skips.
        self.watched = make_scheduler is not None or recipe.grow == "gradient"
        self.step: Any = self._eager_step
        if cuda_graphs:
            self.step = GraphedStep(model, self._eager_step, self.optimizer)
        steps = recipe.epochs * self.batches
        decay_steps = max(1, int(recipe.decay_share * steps))
        self.scheduler = (make_scheduler or self._dst)(
            model, self.optimizer, self.update_every, steps, decay_steps
        )
        self.shuffle = torch.Generator().manual_seed(recipe.seed)
        self.history: list[dict[str, Any]] = []
        start = checkpoint.snapshot(model)
        self.best: dict[str, Any] = {"epoch": 0, "loss": math.inf, "model": start}

    def _dst(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int, end: int, decay: int
    ) -> PatternScheduler | None:
        if not any(isinstance(layer, SparseConv1d) for layer in model.modules()):
            return None
        names = ("prune_fraction", "prune_floor", "grow", "seed")
        return DSTScheduler(
            model, optimizer, update_every=every, end_step=end, decay_steps=decay,
            process_group=None,  # of this process alone
            **{name: getattr(self.recipe, name) for name in names},
        )  # fmt: skip

    def epoch(self) -> dict[str, Any]:
        """Train one epoch and return its row of the history."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        number = len(self.history) + 1
        lr = self.recipe.lr_in(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.lr is None else self.lr.fill_(lr)
        self.model.train()
        n_cases, loss_sum, correct, updated = len(self.X), 0.0, 0, False
        order = torch.randperm(n_cases, generator=self.shuffle)
        for batch in range(1, self.batches + 1):
            index = order[(batch - 1) * self.batch_size :][: self.batch_size]
            step = len(self.history) * self.batches + batch
            update = step % self.update_every == 0
            take = self._eager_step if update and self.watched else self.step
            if update and self.recipe.skip_step_at_update:
                take = self._gradients
            loss, hits = take(self.X[index], self.y[index])
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(
                    f"the training loss became {value} in epoch {number}, batch {batch}: lower lr "
                    f"(now {lr:.3g}) or rescale the series"
                )
            loss_sum += value * len(index)
            correct += int(hits)
            if batch == self.batches and loss_sum / n_cases <= self.best["loss"]:
                # Before the pattern changes: the loss was measured with these weights.
                best = checkpoint.snapshot(self.model)
                self.best = {"epoch": number, "loss": loss_sum / n_cases, "model": best}
            if self.scheduler is not None:
                updated |= self.scheduler.step()
        self.history.append(
            {
                "epoch": number,
                "train_loss": loss_sum / n_cases,
                "train_accuracy": correct / n_cases,
                "lr": lr,
                "prune_fraction": self.scheduler.prune_fraction_now if self.scheduler else 0.0,
                "updated": updated,
                "seconds": time.perf_counter() - begin,
                "cpu_seconds": time.process_time() - cpu_begin,
            }
        )
        return self.history[-1]

    def _gradients(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch and how many of it are right; leave the gradients."""
        self.optimizer.zero_grad()
        log_proba = self.model(x)
        loss = F.nll_loss(log_proba, target)
        if self.penalty is not None:
            loss = loss + self.penalty()
        torch.autograd.backward(loss)
        return loss.detach(), (log_proba.argmax(1) == target).sum()

    def _eager_step(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        measured = self._gradients(x, target)
        self.optimizer.step()
        return measured

    def content(self) -> dict[str, Any]:
        """Everything needed to resume, and what tells this run from another."""
        return {
            **self._identity(),
            "state": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "rng": {name: generator.get_state() for name, generator in self._generators().items()},
            "best": self.best,
            "history": self.history,
        }

    def _generators(self) -> dict[str, torch.Generator]:
        own = {"torch": torch.default_generator, "shuffle": self.shuffle}
        return own | ({"cuda": _cuda_generator(self.X.device)} if self.X.is_cuda else {})

    def _identity(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "model": {f"line {i}": text for i, text in enumerate(str(self.model).splitlines())},
            "data": {"SHA-256 of X and y": self.data_digest},
            "penalty": {} if self.penalty is None else {"loss term": repr(self.penalty)},
        }

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same run; nothing is changed if it is of another."""
        content = checkpoint.load(path)
        for kind, here in self._identity().items():
            there = content.get(kind)
            there = there if isinstance(there, dict) else {}
            for key in here | there:
                # Compared as text: a damaged entry may have any type.
                a, b = (repr(d[key]) if key in d else "absent" for d in (here, there))
                # The default, which newer releases of torch say of a BatchNorm and older do not.
                if a.replace(", bias=True", "") != b.replace(", bias=True", ""):
                    raise CheckpointError(
                        f"{path} is of another run, its {kind} differs: {key!r} is {b} in the "
                        f"checkpoint, but now {a}; resume with the same {kind}, or choose another "
                        "folder"
                    )
        before = checkpoint.snapshot(self.model)
        try:
            _check_progress(content["best"], content["history"], self.recipe.epochs)
            checkpoint.restore(self.model, content["best"]["model"])
            checkpoint.restore(self.model, content["state"])
            checkpoint.restore_adam(self.optimizer, content["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(content["scheduler"])
            for name, generator in self._generators().items():
                if name != "cuda" or name in content["rng"]:  # written on a CPU it has none
                    generator.set_state(content["rng"][name])
            self.best, self.history = content["best"], list(content["history"])
        except Exception as error:
            self.model.load_state_dict(before)
            raise CheckpointError(
                f"{path} cannot be resumed: {type(error).__name__}: {error}"
            ) from error


def _cuda_generator(device: torch.device) -> torch.Generator:
    torch.cuda.init()  # type: ignore[no-untyped-call]  # makes the generators
    generators: tuple[torch.Generator, ...] = torch.cuda.default_generators
    return generators[torch.cuda.current_device() if device.index is None else device.index]


def _check_progress(best: Any, history: Any, epochs: int) -> None:
    """Refuse an impossible history, or a best epoch that is not the history's."""
    if [row["epoch"] for row in history] != list(range(1, len(history) + 1)):
        raise ValueError("its history does not hold the epochs 1, 2, ... in order")
    if not 1 <= len(history) <= epochs:
        raise ValueError(f"its history holds {len(history)} epochs instead of 1 to {epochs}")
    kept = min(reversed(history), key=lambda row: row["train_loss"])
    if (best["epoch"], best["loss"]) != (kept["epoch"], kept["train_loss"]):
        raise ValueError(
            f"its best epoch is {best['epoch']} with training loss {best['loss']}, but by its "
            f"history {kept['epoch']} with {kept['train_loss']}"
        )


def _how_to_resume(run: _Run, path: Path | None) -> str:
    text = f"training was interrupted in epoch {len(run.history) + 1} of {run.recipe.epochs}; "
    if path is None:
        return text + "nothing was saved, because train(out=...) was not given"
    with contextlib.suppress(OSError, CheckpointError):  # of an older run, or none yet
        history = checkpoint.load(path).get("history")
        if history and history == run.history[: len(history)]:
            return text + (
                f"{path} holds the state after epoch {len(history)}: resume with the same call "
                "and resume=True"
            )
    return text + "no epoch of this run has been saved yet"


def _progress_bar(done: int, epochs: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        warnings.warn(
            "no progress bar: tqdm is not installed (pip install 'sparseconv[tsc]')", stacklevel=3
        )
        return None
    return tqdm(total=epochs, initial=done, unit="epoch", desc="training")
