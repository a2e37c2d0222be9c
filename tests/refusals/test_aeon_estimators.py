"""What the aeon estimators and ``prune_rocket`` refuse."""

from __future__ import annotations

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


class Late(RocketClassifier):
    def _predict(self, X: Any) -> Any:
        return self.classes_[(self.pipeline_.decision_function(X) > -0.9).astype(int)]


def by(*levels: Any) -> pd.DataFrame:
    """The series, one sample a row, with these levels of an index."""
    return pd.DataFrame({"x": X.ravel()}, pd.MultiIndex.from_arrays(list(levels)))


CASE, TIME = np.divmod(np.arange(720), 60)
EACH = "got a table in which not every row has its own index (case, time)"
test_aeon_estimators = refusals(
    (lambda: fit(by(CASE, TIME // 2)), ValueError, EACH),
    (lambda: fit(by(CASE, np.where(TIME, TIME, np.nan))), ValueError, EACH),
    (lambda: fit(by(CASE, CASE, TIME)), ValueError, EACH),
    (lambda: fit(by(CASE, TIME)[:-1]), ValueError, "got lengths from 59 to 60; first pad or cut"),
    (lambda: fit(kernels="hydra"), ValueError, "kernels must be one of ('rocket', 'minirocket')"),
    (lambda: fit(n_kernels=0), ValueError, "n_kernels must be at least 1"),
    (lambda: fit(kernels="minirocket", n_kernels=50), ValueError, "n_kernels must be at least 84"),
    (lambda: fit(y=np.eye(2)[Y]), ValueError, "(12, 2); for one-hot labels, pass y.argmax(1)"),
    (lambda: fit(y=None), ValueError, "POCKETClassifier: expected y to contain the label of"),
    (lambda: fit().score(X, None), ValueError, "but got None; pass labels of shape (n_cases,)"),
    (lambda: fit_dsn(validation=0.2), TypeError, "must be a pair of series and labels, (X"),
    (lambda: fit_dsn(validation=(X, None)), ValueError, "expected validation to contain the l"),
    (lambda: fit(keep="auto"), ValueError, "keep must be a number or 'cv', but got 'auto'"),
    (lambda: fit(keep=0), ValueError, "keep must be above 0"),
    (lambda: fit(keep=35), ValueError, "keep must lie in [0, 1], but got 35; 35 % is 0.35"),
    (lambda: fit(k="auto"), TypeError, "k must be a number, but got str: 'auto'"),
    (lambda: fit(k=0), ValueError, "k must be positive and finite, or 'cv', but got 0"),
    (lambda: fit(k=np.inf), ValueError, "k must be positive and finite, or 'cv', but got inf"),
    (lambda: fit(keep="cv", y=np.arange(12)), ValueError, 'a class with at least 2 cases for "cv"'),
    (lambda: fit(HOLE), ValueError, "POCKETClassifier: expected finite values in X, but 12 of 720"),
    (lambda: fit(np.full_like(X, np.inf)), ValueError, "expected finite values in X, but"),
    (lambda: fit(X[:, :, :10]), ValueError, "at least 11 time points, but got 10; pad"),
    (lambda: fit(refit="no"), TypeError, "refit must be True or False, but got 'no'"),
    (lambda: fit(random_state=-1), ValueError, "random_state (--seed) must lie in [0, 2**32)"),
    (lambda: fit_dsn(random_state=-1), ValueError, "random_state (--seed) must lie in [0, 2**32)"),
    (lambda: fit_dsn(n_jobs=5000), ValueError, "threads (n_jobs) must be 1 to 1024, but got 5000"),
    (lambda: fit(X[:, :, :50], kernels=BANK), ValueError, "(n_cases, 1, 60), the shape that the k"),
    (lambda: fit_dsn(UNEQUAL), ValueError, "got lengths from 20 to 31; first pad or"),
    (lambda: fit_dsn().predict(np.full_like(X, 1e39)), ValueError, "too large for float32"),
    (lambda: fit_dsn().predict(X[:, :, :30]), ValueError,
     "DSNClassifier: expected series of shape (n_cases, 1, 60), as in fit, but got (12, 1, 30)"),
    (lambda: fit_dsn(TWO).predict(TWO[0]), ValueError,
     "got (2, 1, 60) (perhaps from (2, 60)); pass a single series as X[None]"),
    (lambda: fit(TWO).predict(TWO.swapaxes(1, 2)), ValueError,
     "got (12, 60, 2); the axes are swapped: pass numpy.transpose(X, (0, 2, 1))"),
    (lambda: fit(TWO).model_.predict(TWO[0]), ValueError, "(perhaps from (2, 60)); pass a"),
    (lambda: fit().predict(X[:, :, :30]), ValueError, "(n_cases, 1, 60), as in fit, but got"),
    (lambda: RocketTransformer(n_kernels=9).fit(X).transform(X[:, :, :30]), ValueError, "as in fi"),
    (lambda: fit_dsn(epochs=0), ValueError, "epochs must be at least 1"),
    (lambda: prune_rocket(Rocket(20), X, Y), ValueError, "not fitted; call fit first"),
    (
        lambda: prune_rocket(Rocket(20, random_state=0).fit(X[:, :, :8]), X[:, :, :8], Y),
        ValueError, "need series with at least 11 time points, but got 8",
    ),
    (lambda: prune_rocket(RocketClassifier(20).fit(X, Y), X, Y + 1), ValueError,
     "must contain the classes of the classifier"),
    (lambda: prune_rocket(RidgeClassifierCV(), X, Y), TypeError, "expected a fitted Rocket"),
    (lambda: prune_rocket(make_pipeline(Rocket(20)), X, Y), TypeError, "extract the fitted obj"),
    (lambda: prune_rocket(head_of(DecisionTreeClassifier()), X, Y), NotImplementedError,
     "DecisionTreeClassifier()]; prune KernelBank"),
    (lambda: prune_rocket(head_of(RidgeClassifierCV([1, 2])), X, Y), NotImplementedError,
     "RidgeClassifierCV(alphas=[1, 2])]; prune"),
    (lambda: prune_rocket(head_of(RidgeClassifierCV([3]), "estimator_"), X, Y),
     NotImplementedError, "RidgeClassifierCV(alphas=[3])]; prune"),
    (lambda: prune_rocket(head_of(MaxAbsScaler(), "standardscaler"), X, Y), NotImplementedError,
     "cannot keep [MaxAbsScaler(), "),
    (lambda: prune_rocket(Late(20).fit(X, Y), X, Y), NotImplementedError,
     "would drop Late._predict; prune"),
    (lambda: fit(class_weight={7: 2.0}), ValueError, "are not in class_weight"),
    (lambda: fit(class_weight={0: 1, 1: 0}), ValueError, "but got 0 for class 1; leave out cases"),
    (lambda: fit(class_weight={0: -2, 1: 1}), ValueError, "weights above 1e-06 times the largest"),
    (lambda: POCKETClassifier().decision_function(X), ValueError, "has not been fitted yet"),
)  # fmt: skip
