"""``train(penalty=...)``: a term of every batch's loss, which is part of what the run is."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import data, interrupted, network, run, same
from torch import Tensor, nn

from sparseconv.pruning.sparsity_loss import InstanceSparsity
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

STAGES = ["blocks.0.relu"]


def penalty(model: nn.Module, weight: float = 0.1) -> InstanceSparsity:
    return InstanceSparsity(model, STAGES, weight)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_history_holds_it() -> None:
    X, y = data(5)  # one batch
    one, given = Recipe(epochs=1, batch_size=5, grow="static"), []

    class Counted(InstanceSparsity):
        def __call__(self) -> Tensor:
            given.append(super().__call__())
            return given[-1]

    model, again = network(), network()
    options = {"progress": False, "validation": data(9, seed=1)}  # which is not watched
    both = train(model, X, y, one, penalty=Counted(model, STAGES, 0.1), **options).history[0]
    alone = train(again, X, y, one, **options).history[0]
    assert len(given) == 1
    assert given[0] > 0
    loss = alone["train_loss"] + given[0].item()
    assert both["train_loss"] == pytest.approx(loss, rel=1e-6)  # of float32
    assert not same(model.state_dict(), again.state_dict()), "its gradient moves the weights"
    assert hooks(model) == 0


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
        with pytest.raises(ValueError, match=r"another run, its penalty differs: '(stages|weight)"):
            run(other, out=tmp_path, resume=True, penalty=then)
