"""What the aeon estimators and ``prune_rocket`` refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from refusals import refusals

pytest.importorskip("aeon", reason="aeon is not installed")

from aeon.classification.convolution_based import RocketClassifier
from aeon.transformations.collection.convolution_based import Rocket
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.tree import DecisionTreeClassifier

from sparseconv import DSNClassifier, POCKETClassifier, RocketTransformer, prune_rocket

X = np.random.default_rng(0).normal(size=(12, 1, 60))
Y = np.arange(12) % 2
TWO = np.random.default_rng(0).normal(size=(12, 2, 60))
HOLE = np.where(np.arange(60) == 3, np.nan, X)
UNEQUAL = [x[:, : 20 + i] for i, x in enumerate(X)]
BANK = RocketTransformer(n_kernels=20, random_state=0).fit(X).bank_


def fit_dsn(X: Any = X, **options: Any) -> DSNClassifier:
    small = {"nf": 2, "kernel_size": 9, "depth": 2, "epochs": 1} | options
    return DSNClassifier(**small).fit(X, Y)


def fit(X: Any = X, y: Any = Y, **options: Any) -> POCKETClassifier:
    return POCKETClassifier(**({"n_kernels": 20, "n_iter": 2} | options)).fit(X, y)


def head_of(estimator: Any, part: str = "") -> RocketClassifier:
    """A fitted classifier with another ``estimator``, or with a part that was replaced later."""
    fitted = RocketClassifier(20, estimator=None if part else estimator).fit(X, Y)
    if part == "estimator_":
        fitted.estimator_ = estimator
    elif part:
        fitted.pipeline_.set_params(**{part: estimator})
    return fitted


def by(*levels: Any) -> pd.DataFrame:
    """The series, one sample a row, with these levels of an index."""
    return pd.DataFrame({"x": X.ravel()}, pd.MultiIndex.from_arrays(list(levels)))


def pruned(fitted: Any, X: Any = X, y: Any = Y) -> Callable[[], Any]:
    return lambda: prune_rocket(fitted, X, y)


CASE, TIME = np.divmod(np.arange(720), 60)
test_aeon_estimators = refusals(
    (lambda: fit(by(CASE, TIME // 2)), ValueError, "duplicate"),
    (lambda: fit(by(CASE, TIME)[:-1]), ValueError, "missing values"),
    (lambda: fit(kernels="hydra"), ValueError, "kernels"),
    (lambda: fit(n_kernels=0), ValueError, "n_kernels"),
    (lambda: fit(kernels="minirocket", n_kernels=50), ValueError, "n_kernels"),
    (lambda: fit(y=np.eye(2)[Y]), ValueError, "one-hot labels"),
    (lambda: fit(y=None), ValueError, "expected y to contain"),
    (lambda: fit_dsn(validation=(X, None)), ValueError, "validation"),
    (lambda: fit(keep="auto"), TypeError, "keep"),
    (lambda: fit(keep=35), ValueError, "keep"),
    (lambda: fit(k="auto"), TypeError, "k "),
    (lambda: fit(k=0), ValueError, "k "),
    (lambda: fit(keep="cv", y=np.arange(12)), ValueError, "at least 2 cases"),
    (lambda: fit(HOLE), ValueError, "missing values"),
    (lambda: fit(X[:, :, :10]), ValueError, "11"),
    (lambda: fit(random_state=-1), ValueError, "Seed"),
    (lambda: fit_dsn(n_jobs=5000), ValueError, "n_jobs"),
    (lambda: fit(X[:, :, :50], kernels=BANK), ValueError, "kernels"),
    (lambda: fit_dsn(UNEQUAL), ValueError, "series to one length"),
    (lambda: fit_dsn().predict(np.full_like(X, 1e39)), ValueError, "too large for float32"),
    (lambda: fit_dsn().predict(X[:, :, :30]), ValueError, "different length"),
    (lambda: fit_dsn(TWO).predict(TWO[0]), ValueError, "channels"),
    (lambda: fit(TWO).model_.predict(TWO[0]), ValueError, "X[None]"),
    (pruned(Rocket(20)), ValueError, "not fitted"),
    (pruned(RidgeClassifierCV()), TypeError, "Rocket"),
    (pruned(make_pipeline(Rocket(20))), TypeError, "Rocket"),
    (pruned(head_of(DecisionTreeClassifier())), NotImplementedError, "DecisionTreeClassifier()"),
    (pruned(head_of(RidgeClassifierCV([3]), "estimator_")), NotImplementedError, "(alphas=[3])"),
    (pruned(head_of(MaxAbsScaler(), "standardscaler")), NotImplementedError, "MaxAbsScaler()"),
    (lambda: fit(class_weight={7: 2.0}), ValueError, "class_weight"),
    (lambda: fit(class_weight={0: -2, 1: 1}), ValueError, "class_weight"),
    (lambda: POCKETClassifier().decision_function(X), ValueError, "fitted"),
)
