"""scikit-learn and aeon: DSNClassifier where these libraries put an estimator."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aeon", reason="aeon is not installed")

from aeon.datasets import load_classification
from aeon.pipeline import make_pipeline
from aeon.transformations.collection import Normalizer
from sklearn.base import clone
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

from sparseconv import DSNClassifier

SMALL: dict[str, Any] = {"nf": 4, "kernel_size": 9, "depth": 2, "epochs": 8, "lr": 1e-2}


def data() -> tuple[np.ndarray, np.ndarray]:
    X, y = waves(24, 30)
    return X[:, None], y


def classifier(**options: Any) -> DSNClassifier:
    return DSNClassifier(**SMALL, random_state=0, **options)


@pytest.mark.tool("scikit-learn: clone, get_params, set_params, pickle", "works")
def test_clone_and_parameters() -> None:
    X, y = data()
    fitted = classifier().fit(X, y)
    twin = clone(fitted)
    assert twin.get_params() == fitted.get_params()
    assert not hasattr(twin, "model_")
    assert np.array_equal(twin.fit(X, y).predict_proba(X), fitted.predict_proba(X))
    for copied in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(copied.predict_proba(X), fitted.predict_proba(X))
    assert twin.set_params(nf=3, epochs=1).fit(X, y).model_ is not fitted.model_


@pytest.mark.tool("scikit-learn: cross_val_score, cross_validate, cross_val_predict", "works")
@pytest.mark.tool("scikit-learn: GridSearchCV, RandomizedSearchCV", "works")
def test_validation_and_searches() -> None:
    X, y = data()
    folds, grid = StratifiedKFold(3), {"grow": ["random", "gradient"]}
    scores = cross_val_score(classifier(), X, y, cv=folds)
    assert scores.mean() > 0.8
    again = cross_validate(classifier(), X, y, cv=folds, scoring=["accuracy", "neg_log_loss"])
    assert np.array_equal(again["test_accuracy"], scores)  # a seed fixes everything
    proba = cross_val_predict(classifier(), X, y, cv=folds, method="predict_proba")
    assert np.allclose(proba.sum(1), 1)
    search = GridSearchCV(classifier(), grid, cv=2).fit(X, y)
    assert accuracy_score(y, search.predict(X)) > 0.8
    found = RandomizedSearchCV(classifier(), grid, n_iter=1, cv=2, random_state=0).fit(X, y)
    assert found.best_estimator_.get_params()["nf"] == 4


@pytest.mark.tool("scikit-learn: Pipeline, VotingClassifier", "works")
@pytest.mark.tool("aeon: make_pipeline", "works", "with aeon's transformers before it")
@pytest.mark.tool("aeon: bundled data sets", "works")
def test_pipelines() -> None:
    X, y = load_classification("ItalyPowerDemand", split="train")
    pipeline = make_pipeline(Normalizer(), classifier())
    assert accuracy_score(y, pipeline.fit(X * 50 + 3, y).predict(X * 50 + 3)) > 0.8
    X, y = data()
    steps = [("scale", FunctionTransformer(lambda a: a / np.abs(a).max())), ("dsn", classifier())]
    pipeline = Pipeline(steps).fit(X, y)
    assert pipeline.score(X, y) > 0.8
    assert pipeline.set_params(dsn__epochs=1).fit(X, y).named_steps["dsn"].epochs == 1
    members = [("a", classifier()), ("b", classifier(sparsity=0.5))]
    assert VotingClassifier(members, voting="soft").fit(X, y).score(X, y) > 0.8
