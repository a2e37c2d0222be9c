"""Data, arguments and weights that criteria refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from model_state import everything
from networks import classifier, data

import sparseconv as sc
from sparseconv.pruning import DSP, WHC, Criterion, Jacobian, Magnitude
from sparseconv.pruning.evolution import Evolutionary

x, y = data(6)
BAD: list[tuple[Any, str]] = [
    (None, "X, y.* an iterable of batches, but got NoneType"),
    ("abc", "data of numbers, but got str"),
    ({"x": x}, "data of numbers, but got str"),
    ((x, [None] * 6), "data of numbers"),
    ((x, y[:3]), "as many cases"),
    ((x, y, y), "as many cases"),
    ([], "at least one series"),
    ((x[:0], y[:0]), "at least one series"),
    (iter([]), "at least one series"),
    ((x / 0, y), "finite"),
    ((x[:, :1], y), r"do not fit the model, a batch of shape \(6, 1, 12\)"),
    ((x[:, 0], y), "do not fit the model"),
]
UNLABELLED: list[tuple[Any, str]] = [
    (x, "y is missing"),
    ([x], "y is missing"),
    ((x, y + 3), "do not fit the model"),
    ((x, y - 1), "do not fit the model"),
    ((x, y / 2), "do not fit the model"),
    ([(x, y[:2])], "do not fit the model"),
]


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [(make, *bad) for make in (Jacobian, DSP, Evolutionary) for bad in BAD]
    + [(make, *bad) for make in (Jacobian, Evolutionary) for bad in UNLABELLED],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_data_that_do_not_fit(make: type, given: Any, message: str) -> None:
    model = classifier()
    before = everything(model)
    criterion = make(given)
    limits = {} if criterion.threshold is not None else {"ratio": 0.5}
    with pytest.raises((TypeError, ValueError), match=message):
        sc.prune_filters(model, x, criterion, **limits)
    assert everything(model) == before


def test_dsp_takes_no_second_input_for_labels() -> None:
    for given in ((x, x), [(x, x)]):
        with pytest.raises(ValueError, match=r"DSP expected \(X, y\) .* of shape \(6, 2, 12\)"):
            sc.prune_filters(classifier(), x, DSP(given))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda p=p: Magnitude(p), "p must be") for p in (0, 0.5, np.inf, np.nan, "2", True)),
        *((lambda e=e: DSP(x, e), "eps must") for e in (-1, 1, np.nan, "a", None)),
        *((lambda b=b: Jacobian((x, y), batches=b), "batches") for b in (0, 1.5)),
        (lambda: Jacobian((x, y), loss=3), "loss must be a function, but got 3"),
        *((lambda t=t: Evolutionary(x, tolerance=t), "tolerance must") for t in (-1, 2, np.nan)),
        (lambda: Evolutionary(x, population=1), "population"),
        (lambda: Evolutionary(x, generations=0), "generations"),
        (lambda: Evolutionary(x, cases=0), "cases"),
        (lambda: Evolutionary(x, seed=-1), "seed must be at least 0, but got -1"),
        (lambda: Evolutionary(x, seed=0.5), "seed must be an integer"),
    ],
)
def test_wrong_arguments(make: Callable[[], Criterion], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    "criterion", [Magnitude(), WHC(), DSP(x), Jacobian((x, y)), Evolutionary((x, y))], ids=str
)
def test_weights_that_are_not_finite(criterion: Criterion) -> None:
    model = classifier()
    model[0].weight.data[0, 0, 0] = torch.nan
    limits = {} if criterion.threshold is not None else {"ratio": 0.5}
    with pytest.raises(ValueError, match="not finite; check the weights"):
        sc.prune_filters(model, x, criterion, **limits)
