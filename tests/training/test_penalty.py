"""``train(penalty=...)``: a term of every batch's loss, which is part of what the run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import RECIPE, data, interrupted, network, run, same
from torch import Tensor, nn

from sparseconv.pruning.sparsity_loss import InstanceSparsity
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

STAGES = ["blocks.0.relu"]


def penalty(model: nn.Module, weight: float = 0.1) -> InstanceSparsity:
    return InstanceSparsity(model, STAGES, weight)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Counted(InstanceSparsity):
    """What it gave, and how often it watched."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.given: list[float] = []
        self.entered = 0

    def __enter__(self) -> InstanceSparsity:
        self.entered += 1
        return super().__enter__()

    def __call__(self) -> Tensor:
        loss = super().__call__()
        self.given.append(loss.item())
        return loss


def test_the_history_holds_it() -> None:
    X, y = data(5)  # one batch
    one = Recipe(epochs=1, batch_size=5, grow="static")
    model, again = network(), network()
    counted = Counted(model, STAGES, 0.1)
    both = train(model, X, y, one, penalty=counted, progress=False).history[0]["train_loss"]
    alone = train(again, X, y, one, progress=False).history[0]["train_loss"]
    assert both == pytest.approx(alone + counted.given[0], rel=1e-6)  # of float32
    assert counted.given[0] > 0
    assert not same(model.state_dict(), again.state_dict()), "its gradient moves the weights"
    assert hooks(model) == 0


def test_validation_is_not_watched() -> None:
    model = network()
    counted = Counted(model, STAGES, 0.1)
    run(model, validation=data(9, seed=1), penalty=counted)
    assert counted.entered == RECIPE.epochs
    assert len(counted.given) == RECIPE.epochs * 4


def test_resumed_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    model = network()
    expected = run(model, penalty=penalty(model))
    other = network()
    interrupted(other, 18, out=tmp_path, penalty=penalty(other))
    assert hooks(other) == 0
    other = network()
    found = run(other, out=tmp_path, resume=True, penalty=penalty(other))
    assert same(found.history, expected.history)
    assert same(model.state_dict(), other.state_dict())


def test_another_penalty_is_not_resumed(tmp_path: Path) -> None:
    model, other = network(), network()
    run(model, out=tmp_path, penalty=penalty(model))
    for then in (penalty(other, 0.2), None):
        with pytest.raises(ValueError, match="another run, its penalty differs: 'loss term' is"):
            run(other, out=tmp_path, resume=True, penalty=then)


def test_neither_cuda_graphs_nor_a_term_that_is_not_finite() -> None:
    model = network()
    with pytest.raises(ValueError, match="a penalty watches every step, which cuda_graphs would"):
        run(model, cuda_graphs=True, penalty=penalty(model))
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="training loss became inf"):
        run(model, penalty=penalty(model, 1e38))
    assert hooks(model) == 1
    assert not torch.isnan(model(data()[0])).any()
