"""The hyperparameters of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from sparseconv.core.checks import count, number
from sparseconv.dst.update import (
    PRUNE_FLOOR,
    PRUNE_FRACTION,
    Growth,
    check_fractions,
    check_growth,
    cosine_decay,
)

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run; by default, those of the Dynamic Sparse Network.

    Attributes:
        epochs: passes over the training set.
        lr: Adam's learning rate in the first epoch.
        lr_min: the learning rate at the end of the cosine schedule.
        weight_decay: Adam's L2 penalty.
        batch_size: series per batch; None means ``max(int(min(n_cases / 10, 16)), 2)``. A single
            last series joins the previous batch.
        update_every_epochs: epochs between pattern updates.
        update_every_steps: optimizer steps between pattern updates; replaces
            ``update_every_epochs``.
        skip_step_at_update: skip the optimizer step at each pattern update, as in the paper's text.
        decay_share: share of all steps over which the prune fraction decays along a cosine.
        prune_fraction: share of active weights moved in the first update.
        prune_floor: share of active weights moved per update after that decay.
        grow: ``"random"`` (DSN), ``"gradient"`` (DSN_grad) or ``"static"`` (DSN_fix).
        precision: ``"float32"``, or ``"bfloat16"`` to train under ``torch.autocast``. Weights,
            gradients, optimizer state and predictions keep the model's dtype.
        seed: seed for the order of batches, grown weights and torch's generators in training; on
            the command line, also for the initial weights.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.

    Example:
        >>> Recipe(epochs=300).batch_size_for(50)
        5

    Source: Xiao et al. 2022 (DSN), Algorithm 1, section 5.1 and the authors' implementation.
    """

    epochs: int = 1000
    lr: float = 3e-4
    lr_min: float = 1e-4
    weight_decay: float = 0.0
    batch_size: int | None = None
    update_every_epochs: int = 5
    update_every_steps: int | None = None
    skip_step_at_update: bool = False
    decay_share: float = 0.8
    prune_fraction: float = PRUNE_FRACTION
    prune_floor: float = PRUNE_FLOOR
    grow: Growth = "random"
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check each value; convert NumPy scalars to Python scalars for checkpoints."""
        for field in fields(self):
            name, value, kind = field.name, getattr(self, field.name), str(field.type)
            if kind in ("Growth", "Precision") or (value is None and field.default is None):
                continue
            if kind.startswith("int"):
                value = count(name, value, least=int(name != "seed"))
            elif kind == "float":
                value = number(name, value)
                if not 0 <= value < math.inf:
                    raise ValueError(f"{name} must be finite and >= 0, but got {value}")
            else:
                value = bool(value)
            object.__setattr__(self, name, value)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be < 2**63, but got {self.seed}")
        if not self.lr_min <= self.lr or self.lr == 0:
            raise ValueError(
                f"expected 0 < lr and lr_min <= lr, but got lr={self.lr} and lr_min={self.lr_min}"
            )
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share must lie in (0, 1], but got {self.decay_share}")
        check_fractions(self.prune_fraction, self.prune_floor)
        check_growth(self.grow)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, but got {self.precision!r}")

    def batch_size_for(self, n_cases: int) -> int:
        """Return the batch size for a training set of ``n_cases``."""
        return self.batch_size or max(int(min(n_cases / 10, 16)), 2)

    def lr_in(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1."""
        return cosine_decay(self.lr, self.lr_min, epoch - 1, self.epochs)
