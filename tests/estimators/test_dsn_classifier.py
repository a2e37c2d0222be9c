"""``DSNClassifier`` is a whole aeon estimator, and fitting it changes nothing outside it.

It and ``POCKETClassifier`` stand where scikit-learn and aeon put an estimator.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import tiny
import torch

pytest.importorskip("aeon", reason="aeon is not installed")

from aeon.datasets import load_classification
from aeon.pipeline import make_pipeline
from aeon.transformations.collection import Normalizer
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import VotingClassifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from toy_run import NETWORK, RECIPE, is_network, waves

import sparseconv as sc
from sparseconv import DSNClassifier, POCKETClassifier
from sparseconv.estimators import dsn
from sparseconv.measure.machine import threads
from sparseconv.training.recipe import Recipe

SMALL: dict[str, Any] = {"nf": 4, "kernel_size": 9, "depth": 2, "epochs": 12, "lr": 3e-3}


def small(**changes: Any) -> DSNClassifier:
    return DSNClassifier(**(SMALL | {"random_state": 0} | changes))


@pytest.fixture(scope="module")
def fitted() -> DSNClassifier:
    return small().fit(*waves(24, 40))


def same(first: DSNClassifier, second: DSNClassifier) -> bool:
    return tiny.same(*(dict(each.model_.state_dict()) for each in (first, second)))


def test_constants_reach_the_network_and_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []
    real = dsn.train

    def spy(model: Any, X: Any, y: Any, recipe: Recipe, **kwargs: Any) -> Any:
        seen.append(recipe)
        return real(model, X, y, recipe, **kwargs)

    monkeypatch.setattr(dsn, "train", spy)
    classifier = DSNClassifier(**NETWORK, **RECIPE, random_state=9).fit(*waves(10, 20))
    assert seen == [Recipe(**RECIPE, seed=9)]
    assert is_network(classifier.model_)


def test_learns_and_reports(fitted: DSNClassifier) -> None:
    X, y = waves(24, 40)
    assert fitted.score(X, y) == 1.0
    assert [row["epoch"] for row in fitted.history_] == list(range(1, 13))
    assert fitted.cost_ == fitted.model_.cost(40)
    assert fitted.seed_ == 0
    proba = fitted.predict_proba(X)
    assert proba.shape == (24, 2)
    assert proba.dtype == np.float64
    np.testing.assert_allclose(proba.sum(1), 1, rtol=0, atol=4 * np.finfo(np.float64).eps)
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(1)], fitted.predict(X))


def test_validation_is_watched_and_changes_nothing(fitted: DSNClassifier) -> None:
    X, y = waves(24, 40)
    seen: list[int] = []
    watched = small(validation=(X[:9], y[:9]), on_epoch=lambda rows: seen.append(len(rows)))
    assert same(fitted, watched.fit(X, y))
    assert seen == list(range(1, 13))
    assert watched.history_[-1]["test_accuracy"] == (watched.predict(X[:9]) == y[:9]).mean() == 1.0
    assert next(small(device="cpu", epochs=1).fit(X, y).model_.parameters()).device.type == "cpu"
    with pytest.raises(ValueError, match="to be in the training set"):
        small(validation=(X[:2], ["?", "!"])).fit(X, y)
    with pytest.raises(ValueError, match="different length"):
        small(validation=(X[:2, ..., 1:], y[:2])).fit(X, y)


@pytest.mark.promise("P10")
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sparseconv.estimators.dsn")
    monkeypatch.setitem(sys.modules, "aeon.classification.base", None)
    with pytest.raises(ImportError, match=r"sparseconv.DSNClassifier needs aeon.*sparseconv\[tsc"):
        _ = sc.DSNClassifier


def test_random_state_fixes_everything(fitted: DSNClassifier) -> None:
    X, y = waves(24, 40)
    torch.manual_seed(123)
    np.random.seed(123)
    assert same(fitted, small().fit(X, y))
    assert not same(fitted, small(random_state=1).fit(X, y))
    generator = np.random.RandomState(5)
    first, second = (small(random_state=generator).fit(X, y) for _ in range(2))
    assert not same(first, second)
    assert same(first, small(random_state=first.seed_).fit(X, y))
    assert len({small(random_state=None, epochs=1).fit(X, y).seed_ for _ in range(2)}) == 2


@pytest.mark.promise("P8")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(fitted: DSNClassifier, dtype: torch.dtype) -> None:
    X, y = waves(24, 40)
    wanted, noisy = fitted.predict_proba(X), {"init": "random", "grow": "gradient", "epochs": 2}
    drawn = small(**noisy).fit(X, y)
    torch.set_default_dtype(dtype)
    try:
        assert same(fitted, again := small(validation=(X, y)).fit(X, y))
        assert np.array_equal(again.predict_proba(X), wanted)
        assert same(drawn, small(**noisy).fit(X, y))
        with pytest.raises(ValueError, match="sparsity"):
            small(sparsity=2).fit(X, y)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_n_jobs_sets_the_threads_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    forward = sc.models.DSN.forward

    def spy(self: sc.models.DSN, x: torch.Tensor) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return forward(self, x)

    monkeypatch.setattr(sc.models.DSN, "forward", spy)
    X, y = waves(24, 40)
    with threads(1):
        classifier = small(n_jobs=2, epochs=1).fit(X, y)
        assert seen == {2}
        classifier.set_params(n_jobs=1).predict(X[:3])
        assert seen == {1, 2}
        with pytest.raises(ValueError, match="sparsity"):
            small(n_jobs=2, sparsity=2).fit(X, y)
        assert torch.get_num_threads() == 1


def quick(**options: Any) -> DSNClassifier:
    return small(epochs=8, lr=2e-2, batch_size=4, **options)


def pocket(**options: Any) -> POCKETClassifier:
    return POCKETClassifier(n_kernels=60, n_iter=2, random_state=0, **options)


BOTH = pytest.mark.parametrize("make", [quick, pocket])


@BOTH
@pytest.mark.tool("scikit-learn: cross_val_score, cross_validate, cross_val_predict", "works")
@pytest.mark.tool("scikit-learn: GridSearchCV, RandomizedSearchCV", "works")
def test_validation_and_searches(make: Any) -> None:
    X, y = waves(24, 30)
    folds = StratifiedKFold(3)
    grid = {"grow": ["random", "gradient"]} if make is quick else {"keep": [0.2, 0.5]}
    scores = cross_val_score(make(), X, y, cv=folds)
    assert scores.mean() > 0.8
    again = cross_validate(make(), X, y, cv=folds, scoring=["accuracy", "neg_log_loss"])
    assert np.array_equal(again["test_accuracy"], scores)  # a seed fixes everything
    proba = cross_val_predict(make(), X, y, cv=folds, method="predict_proba")
    assert np.allclose(proba.sum(1), 1)
    search = GridSearchCV(make(), grid, cv=2).fit(X, y)
    assert accuracy_score(y, search.predict(X)) > 0.8
    found = RandomizedSearchCV(make(), grid, n_iter=1, cv=2, random_state=0).fit(X, y)
    assert found.best_estimator_.get_params()["random_state"] == 0


@BOTH
@pytest.mark.tool("scikit-learn: Pipeline, VotingClassifier", "works")
@pytest.mark.tool("scikit-learn: CalibratedClassifierCV", "works")
@pytest.mark.tool("aeon: make_pipeline", "works", "with aeon's transformers before it")
@pytest.mark.tool("aeon: bundled data sets", "works")
def test_pipelines(make: Any) -> None:
    X, y = load_classification("ItalyPowerDemand", split="train")
    pipeline = make_pipeline(Normalizer(), make())
    assert accuracy_score(y, pipeline.fit(X * 50 + 3, y).predict(X * 50 + 3)) > 0.8
    X, y = waves(24, 30)
    steps = [("scale", FunctionTransformer(lambda a: a / np.abs(a).max())), ("last", make())]
    pipeline = Pipeline(steps).fit(X, y)
    assert pipeline.score(X, y) > 0.8
    assert pipeline.set_params(last__n_jobs=2).fit(X, y).named_steps["last"].n_jobs == 2
    members = [("a", make()), ("b", make(n_jobs=2))]
    assert VotingClassifier(members, voting="soft").fit(X, y).score(X, y) > 0.8
    assert CalibratedClassifierCV(make(), cv=3).fit(X, y).score(X, y) > 0.8
