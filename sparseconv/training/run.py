"""The state of a training run, its epochs and checkpoints."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv.core.generators import borrowed
from sparseconv.dst import DSTScheduler
from sparseconv.nn.sparse_layer import SparseLayer
from sparseconv.pruning.sparsity_loss import InstanceSparsity
from sparseconv.running import batch_sizes, one_tensor
from sparseconv.training import checkpoint
from sparseconv.training.checkpoint import CheckpointError
from sparseconv.training.graphed import GraphedStep
from sparseconv.training.recipe import Recipe

# (model, optimizer, update_every, end_step, decay_steps), the last three in optimizer steps;
# returns a DSTScheduler, an object with its step, state_dict, load_state_dict and
# prune_fraction_now, or None.
SchedulerFactory = Callable[..., Any]


@dataclass(eq=False, repr=False)
class Run:
    """The state of a training run, as a checkpoint stores it."""

    model: nn.Module
    X: Tensor
    y: Tensor
    recipe: Recipe
    make_scheduler: SchedulerFactory | None
    penalty: InstanceSparsity | None
    cuda_graphs: bool | None
    draws: bool  # whether the model draws random numbers

    def __post_init__(self) -> None:
        model, X, recipe = self.model, self.X, self.recipe
        self.data_digest = checkpoint.digest(X, self.y)
        self.batch_size = recipe.batch_size_for(len(X))
        self.sizes = batch_sizes(len(X), self.batch_size)
        self.batches = len(self.sizes)
        self.update_every = recipe.update_every_steps or recipe.update_every_epochs * self.batches
        # A graph cannot read a Python number; eager steps read the same tensor, for the same bits.
        # (Torch's fused Adam reads 32 bits on CUDA, and 64 on a CPU.)
        dtype = torch.float32 if X.is_cuda else torch.float64
        replays = self._may_replay()
        fixed = X.is_cuda or replays
        self.lr = torch.tensor(recipe.lr, dtype=dtype, device=X.device) if fixed else None
        self.optimizer = torch.optim.Adam(
            model.parameters(),
            recipe.lr if self.lr is None else self.lr,
            weight_decay=recipe.weight_decay,
            fused=True,
            capturable=X.is_cuda,
        )
        # Gradient growth watches the step before an update by hooks, which a graph skips.
        self.watched = self.make_scheduler is not None or recipe.grow == "gradient"
        self.step: Any = self._eager_step
        if replays:
            self._graphed = GraphedStep(model, self._eager_step, self.optimizer)
            self.step = self._replayed_step
        steps = recipe.epochs * self.batches
        decay_steps = max(1, int(recipe.decay_share * steps))
        # What may draw later, in an update or once its rate is above 0, does so from the beginning.
        self.draws |= self.make_scheduler is not None
        self.draws |= any(isinstance(m, nn.modules.dropout._DropoutNd) for m in model.modules())
        self.generator = torch.Generator("cpu").manual_seed(recipe.seed)
        with self.drawing():
            self.scheduler = (self.make_scheduler or self._dst)(
                model, self.optimizer, self.update_every, steps, decay_steps
            )
        self.shuffle = torch.Generator("cpu").manual_seed(recipe.seed)
        self.history: list[dict[str, Any]] = []
        start = copy.deepcopy(model.state_dict())
        self.best: dict[str, Any] = {"epoch": 0, "loss": math.inf, "model": start}

    def _dst(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, every: int, end: int, decay: int
    ) -> DSTScheduler | None:
        if not any(isinstance(layer, SparseLayer) for layer in model.modules()):
            return None
        names = ("prune_fraction", "prune_floor", "grow", "seed")
        return DSTScheduler(
            model, optimizer, update_every=every, end_step=end, decay_steps=decay,
            process_group=None,  # of this process alone
            **{name: getattr(self.recipe, name) for name in names},
        )  # fmt: skip

    def drawing(self, generator: torch.Generator | None = None) -> AbstractContextManager[None]:
        """Let the block draw from this run's generator, or another; costs nothing if none draws."""
        return borrowed(generator or self.generator) if self.draws else nullcontext()

    def epoch(self) -> dict[str, Any]:
        """Train for one epoch, and return its row of the history."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        number = len(self.history) + 1
        lr = self.recipe.lr_in(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.lr is None else self.lr.fill_(lr)
        self.model.train()
        losses, correct, loss_sum, updated = [], [], 0.0, False
        # On a GPU the CPU waits once an epoch, for the losses.
        order = torch.randperm(len(self.X), generator=self.shuffle, device="cpu").to(self.X.device)
        for batch, index in enumerate(torch.split(order, self.sizes), 1):
            step = len(self.history) * self.batches + batch
            update = step % self.update_every == 0
            take = self._eager_step if update and self.watched else self.step
            if update and self.recipe.skip_step_at_update:
                take = self._gradients
            with self.drawing():
                loss, hits = take(self.X[index], self.y[index])
            losses.append(loss.clone())  # a graph writes over them
            correct.append(hits.clone())
            if batch == self.batches:
                loss_sum = self._sum(torch.stack(losses).tolist(), number, lr)
            if batch == self.batches and loss_sum / len(self.X) <= self.best["loss"]:
                # Before the pattern changes: the loss was measured with these weights.
                best = copy.deepcopy(self.model.state_dict())
                self.best = {"epoch": number, "loss": loss_sum / len(self.X), "model": best}
            if self.scheduler is not None:
                with self.drawing():
                    updated |= self.scheduler.step()
        self.history.append(
            {
                "epoch": number,
                "train_loss": loss_sum / len(self.X),
                "train_accuracy": int(torch.stack(correct).sum()) / len(self.X),
                "lr": lr,
                "prune_fraction": self.scheduler.prune_fraction_now if self.scheduler else 0.0,
                "updated": updated,
                "seconds": time.perf_counter() - begin,
                "cpu_seconds": time.process_time() - cpu_begin,
            }
        )
        return self.history[-1]

    def _sum(self, losses: list[float], epoch: int, lr: float) -> float:
        """Sum the losses of an epoch's cases; raise ValueError if one is not finite."""
        for batch, loss in enumerate(losses, 1):
            if not math.isfinite(loss):
                raise ValueError(
                    f"the training loss became {loss} in epoch {epoch}, batch {batch}: lower lr "
                    f"(now {lr:.3g}), or rescale the series, which must be finite"
                )
        return sum(loss * size for loss, size in zip(losses, self.sizes, strict=True))

    def _may_replay(self) -> bool:
        """Return whether steps may use a CUDA graph, which skips a penalty's hooks."""
        wanted = self.X.is_cuda if self.cuda_graphs is None else self.cuda_graphs
        return wanted and self.penalty is None

    def _replayed_step(self, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        try:
            return self._graphed(x, target)
        except RuntimeError as error:
            if self.cuda_graphs or isinstance(error, torch.OutOfMemoryError):
                raise
            warnings.warn(f"training continues without CUDA graphs: {error}", stacklevel=4)
            self.step = self._eager_step
            return self._eager_step(x, target)

    def _gradients(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a batch's gradients; return the mean loss and number of correct predictions."""
        self.optimizer.zero_grad()
        casts = self.recipe.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=casts):
            log_proba = one_tensor(self.model(x))
        log_proba = log_proba.float() if casts else log_proba
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
        """Return everything that is needed to resume and to identify this run."""
        return {
            **self._identity(),
            "state": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "rng": {
                "torch": self.generator.get_state(),
                "shuffle": self.shuffle.get_state(),
                "cuda": torch.cuda.get_rng_state(self.X.device) if self.X.is_cuda else None,
            },
            "best": self.best,
            "history": self.history,
        }

    def _identity(self) -> dict[str, Any]:
        penalty = [] if self.penalty is None else ["stages", "weight"]
        return {
            "recipe": asdict(self.recipe),
            "model": _architecture(self.model),
            "data": {"SHA-256 of X and y": self.data_digest, "batches an epoch": self.batches},
            "penalty": {name: str(getattr(self.penalty, name, None)) for name in penalty},
        }

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same run; an error leaves the model unchanged.

        Raise CheckpointError if the checkpoint's recipe, model, data or penalty differs, or its
        content is wrong.
        """
        content = checkpoint.load(path)
        before = copy.deepcopy(self.model.state_dict())
        try:
            for kind, here in self._identity().items():
                _check_same(kind, here, content[kind])
            for state in (content["best"]["model"], content["state"]):
                self.model.load_state_dict(state)
            checkpoint.restore_adam(self.optimizer, content["optimizer"])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(content["scheduler"])
            states = content["rng"]
            self.generator.set_state(states["torch"])
            self.shuffle.set_state(states["shuffle"])
            if self.X.is_cuda and states["cuda"] is not None:  # not written on a CPU
                torch.cuda.set_rng_state(states["cuda"], self.X.device)
            self.best, self.history = content["best"], list(content["history"])
        except Exception as error:
            self.model.load_state_dict(before)
            raise CheckpointError(
                f"{path} cannot be resumed: {type(error).__name__}: {error}"
            ) from error


def _architecture(model: nn.Module) -> dict[str, str]:
    """Describe what a checkpoint must match: tensor shapes and the geometry of sparse layers."""
    found = {
        name: f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else "no tensor"
        for name, tensor in model.state_dict().items()
    }
    for name, x in model.named_modules():
        if isinstance(x, SparseLayer):
            geometry = f"{x.stride} {x.padding} {x.dilation} {x.padding_mode} {x.groups}"
            found[f"geometry of {name}"] = geometry + f" {x.output_padding}" * x.transposed
            found[f"block of {name}"] = f"{x.pattern.block}"
    return found


def _check_same(kind: str, here: dict[str, Any], there: dict[str, Any]) -> None:
    for key in here | there:
        now, then = here.get(key, "absent"), there.get(key, "absent")
        if now != then:
            raise CheckpointError(
                f"it belongs to another run, whose {kind} differs: {key!r} was {then!r} in the "
                f"checkpoint, but is {now!r} now; resume with the same {kind}, or choose another "
                "folder"
            )
