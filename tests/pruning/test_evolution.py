"""The evolutionary search: repeatable, with few errors; filters that do nothing go."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model_state import everything
from networks import classifier, data
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning.evolution import Evolutionary
from sparseconv.training.loop import train
from sparseconv.training.recipe import Recipe

X, _ = data(90)
Y = torch.bucketize(X[:, 0].std(1), torch.tensor([0.5, 1.2]).double())  # classes by scale
SMALL = {"population": 8, "generations": 6}


def errors(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> float:
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) != y).double().mean())


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = classifier()
    train(model, X, Y, Recipe(epochs=40, lr=2e-2, batch_size=30), verbose=False)
    assert errors(model) < 0.3
    return model


def kept(model: nn.Module, **options: Any) -> list[tuple[int, ...]]:
    report = sc.prune_filters(model, X[:1], Evolutionary((X, Y), **{**SMALL, **options})).report
    return [layer.kept for layer in report.layers]


def test_the_seed_alone_decides(trained: nn.Module) -> None:
    before = everything(trained)
    first = kept(trained)
    assert everything(trained) == before
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    assert kept(trained) == first
    assert any(kept(trained, seed=seed) != first for seed in range(1, 6))


@pytest.mark.parametrize("tolerance", [0, 0.3])
def test_few_errors_and_fewer_weights(trained: nn.Module, tolerance: float) -> None:
    criterion = Evolutionary((X, Y), tolerance=tolerance, **SMALL)
    pruned, report = sc.prune_filters(trained, X[:1], criterion)
    assert errors(pruned) <= errors(trained) + tolerance + 1e-12
    assert set(report.scores.tolist()) == {0, 1}
    assert report.parameters[1] < report.parameters[0]


def test_so_many_cases_judge(trained: nn.Module) -> None:
    """Of batches the first, no more of which are drawn; of arrays those at equal distances."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield X[:15], Y[:15]
        yield X[15:30], Y[15:30]
        raise AssertionError("20 of these 30 were asked for")

    chosen = torch.linspace(0, 89, 20).round().long()
    for given, same in ((batches(), (X[:20], Y[:20])), ((X, Y), (X[chosen], Y[chosen]))):
        few = [
            sc.prune_filters(trained, X, Evolutionary(data, cases=20, **SMALL)).report
            for data in (given, same)
        ]
        assert few[0].layers == few[1].layers
        assert "other thresholds" not in str(few[0])


def test_filters_that_nothing_reads_go(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model[5].weight[:, [1, 4, 6]] = 0
    found = kept(model, population=16, generations=15)[0]
    assert not {1, 4, 6} & set(found)
