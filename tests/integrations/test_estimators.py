"""scikit-learn and aeon: the classifiers where these libraries put an estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("aeon", reason="aeon is not installed")

from aeon.datasets import load_classification
from aeon.pipeline import make_pipeline
from aeon.transformations.collection import Normalizer
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
from toy_run import waves

from sparseconv import DSNClassifier, POCKETClassifier

SMALL: dict[str, Any] = {"nf": 4, "kernel_size": 9, "depth": 2, "epochs": 8, "lr": 1e-2}


def data() -> tuple[np.ndarray, np.ndarray]:
    X, y = waves(24, 30)
    return X[:, None], y


def classifier(**options: Any) -> DSNClassifier:
    return DSNClassifier(**SMALL, random_state=0, **options)


def pocket(**options: Any) -> POCKETClassifier:
    return POCKETClassifier(n_kernels=60, n_iter=2, random_state=0, **options)


BOTH = pytest.mark.parametrize("make", [classifier, pocket])


@BOTH
@pytest.mark.tool("scikit-learn: cross_val_score, cross_validate, cross_val_predict", "works")
@pytest.mark.tool("scikit-learn: GridSearchCV, RandomizedSearchCV", "works")
def test_validation_and_searches(make: Any) -> None:
    X, y = data()
    folds = StratifiedKFold(3)
    grid = {"grow": ["random", "gradient"]} if make is classifier else {"keep": [0.2, 0.5]}
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
@pytest.mark.tool("aeon: make_pipeline", "works", "with aeon's transformers before it")
@pytest.mark.tool("aeon: bundled data sets", "works")
def test_pipelines(make: Any) -> None:
    X, y = load_classification("ItalyPowerDemand", split="train")
    pipeline = make_pipeline(Normalizer(), make())
    assert accuracy_score(y, pipeline.fit(X * 50 + 3, y).predict(X * 50 + 3)) > 0.8
    X, y = data()
    steps = [("scale", FunctionTransformer(lambda a: a / np.abs(a).max())), ("last", make())]
    pipeline = Pipeline(steps).fit(X, y)
    assert pipeline.score(X, y) > 0.8
    assert pipeline.set_params(last__n_jobs=2).fit(X, y).named_steps["last"].n_jobs == 2
    members = [("a", make()), ("b", make(n_jobs=2))]
    assert VotingClassifier(members, voting="soft").fit(X, y).score(X, y) > 0.8
