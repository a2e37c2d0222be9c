"""The constants of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from sparseconv.dst.update import GROWTHS, cosine_decay


@dataclass(frozen=True)
class Recipe:
    """Every constant of a training run; the defaults are the Dynamic Sparse Network's.

    Attributes:
        epochs: passes over the training set.
        lr, lr_min: Adam's learning rate, and where its cosine over the epochs would arrive.
        weight_decay: Adam's L2 penalty.
        batch_size: series in a batch; None takes ``max(int(min(n_cases / 10, 16)), 2)``. Batches
            are drawn without replacement and the last, smaller one is kept.
        update_every_epochs: the pattern changes after the last optimizer step of every such epoch.
        update_every_steps: if given, it changes every so many optimizer steps instead.
        skip_step_at_update: leave out the optimizer step where the pattern changes (the paper's
            text; its implementation and the default take it).
        decay_share: share of all steps over which the prune fraction's cosine falls.
        prune_fraction, prune_floor: where that cosine begins and ends.
        grow: ``"random"`` (DSN), ``"gradient"`` (DSN_grad) or ``"static"`` (DSN_fix).
        seed: of the order of the batches, of the grown weights and of torch's CPU generator
            during training.

    Raises:
        TypeError, ValueError: a constant of another type or out of its range.

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
    prune_fraction: float = 0.5
    prune_floor: float = 0.001
    grow: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "update_every_epochs", "update_every_steps", "seed"):
            value = getattr(self, name)
            if value is None and name in ("batch_size", "update_every_steps"):
                continue
            self._set(name, "an integer", Integral, int)
            if getattr(self, name) < (name != "seed"):
                raise ValueError(f"{name} must be >= {int(name != 'seed')}, but got {value!r}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be < 2**63, but got {self.seed}")
        self._set("skip_step_at_update", "True or False", bool | np.bool_, bool)
        for name in (
            "lr",
            "lr_min",
            "weight_decay",
            "decay_share",
            "prune_fraction",
            "prune_floor",
        ):
            self._set(name, "a number", Real, float)
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, but got {getattr(self, name)}")
        if not self.lr_min <= self.lr or self.lr == 0:
            raise ValueError(
                f"expected 0 < lr and lr_min <= lr, but got lr={self.lr} and lr_min={self.lr_min}"
            )
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share must lie in (0, 1], but got {self.decay_share}")
        if not self.prune_floor <= self.prune_fraction <= 1:
            raise ValueError(
                "expected prune_floor <= prune_fraction <= 1, but got "
                f"prune_floor={self.prune_floor} and prune_fraction={self.prune_fraction}"
            )
        if self.grow not in GROWTHS:
            raise ValueError(f"grow must be one of {GROWTHS}, but got {self.grow!r}")

    def _set(self, name: str, kind: str, taken: Any, convert: Callable[[Any], Any]) -> None:
        """Take NumPy's scalars too, but hold Python's: that is what a checkpoint can carry."""
        value = getattr(self, name)
        if not isinstance(value, taken) or (isinstance(value, bool) and convert is not bool):
            raise TypeError(f"{name} must be {kind}, but got {value!r}")
        object.__setattr__(self, name, convert(value))

    def batch_size_for(self, n_cases: int) -> int:
        """Return the number of series in a batch for a training set of ``n_cases``."""
        return self.batch_size or max(int(min(n_cases / 10, 16)), 2)

    def lr_in(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 1."""
        return cosine_decay(self.lr, self.lr_min, epoch - 1, self.epochs)
