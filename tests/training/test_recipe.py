"""The recipe's defaults are the published ones; constants that make no sense are refused."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import network, run
from torch import nn

from sparseconv.training import checkpoint
from sparseconv.training.recipe import Recipe


def test_defaults_are_the_published_recipe() -> None:
    assert Recipe() == Recipe(
        epochs=1000, lr=3e-4, lr_min=1e-4, weight_decay=0.0, batch_size=None,
        update_every_epochs=5, update_every_steps=None, skip_step_at_update=False,
        decay_share=0.8, prune_fraction=0.5, prune_floor=0.001, grow="random", seed=0,
    )  # fmt: skip
    sizes = {n: Recipe().batch_size_for(n) for n in (1, 20, 29, 30, 50, 159, 160, 5000)}
    assert sizes == {1: 2, 20: 2, 29: 2, 30: 3, 50: 5, 159: 15, 160: 16, 5000: 16}


def test_learning_rate_is_the_cosine_per_epoch() -> None:
    recipe = Recipe(epochs=9, lr=0.1, lr_min=0.02)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9, 0.02)
    for epoch in range(1, 10):
        assert recipe.lr_in(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()


def test_numpy_scalars_are_taken_and_saved(tmp_path: Path) -> None:
    recipe = Recipe(epochs=np.int64(1), lr=np.float32(0.01), seed=np.uint64(2**63 - 1))
    run(network(), recipe, out=tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.pt")["recipe"]
    assert saved == asdict(recipe)
    assert {type(saved[name]) for name in ("epochs", "lr", "seed")} == {int, float}
