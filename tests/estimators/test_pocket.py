"""``RocketTransformer``, ``POCKETClassifier`` and ``prune_rocket`` against aeon's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aeon", reason="aeon is not installed")

from aeon.classification.convolution_based import MiniRocketClassifier, RocketClassifier
from aeon.testing.estimator_checking import check_estimator
from aeon.transformations.collection.convolution_based import MiniRocket, Rocket
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sparseconv import (
    DSNClassifier,
    KernelBank,
    POCKETClassifier,
    RocketTransformer,
    kernel_features,
    prune_rocket,
)
from sparseconv.rocket import RocketModel
from sparseconv.rocket.selection import smallest_good

KINDS = ("rocket", "minirocket")


def data(n: int = 60, n_classes: int = 3, length: int = 60, seed: int = 0) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    phase = generator.uniform(0, 6, (n, 1))
    X = np.sin(phase + np.outer(1 + y, np.linspace(0, 12, length)))
    X += 0.4 * generator.normal(size=X.shape)
    return X[:, None], np.array([f"class {i}" for i in range(n_classes)])[y]


def classifier(kind: str = "rocket", **options: Any) -> POCKETClassifier:
    return POCKETClassifier(**({"kernels": kind, "n_kernels": 200, "random_state": 0} | options))


@pytest.mark.tool("aeon: check_estimator", "works", "all of its checks")
@pytest.mark.tool("scikit-learn: clone, get_params, set_params, pickle", "works")
@pytest.mark.parametrize("estimator", [DSNClassifier, POCKETClassifier, RocketTransformer])
def test_check_estimator(estimator: Any) -> None:
    results = check_estimator(estimator, raise_exceptions=True, verbose=False)
    assert len(results) > 10
    assert set(results.values()) == {"PASSED"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_of_a_seed_are_aeons_and_nothing_global_changes(kind: str) -> None:
    X, _ = data()
    before = np.random.get_state(legacy=False)
    assert RocketTransformer(kind, 100).fit(X).bank_ != RocketTransformer(kind, 100).fit(X).bank_
    ours = RocketTransformer(kind, 200, random_state=7).fit(X)
    np.testing.assert_equal(np.random.get_state(legacy=False), before)
    theirs = {"rocket": Rocket, "minirocket": MiniRocket}[kind](200, random_state=7).fit(X)
    assert ours.bank_ == KernelBank.from_aeon(theirs)
    if kind == "minirocket":
        assert np.array_equal(ours.transform(X), theirs.transform(X))
    else:
        np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=1e-4)
    again = RocketTransformer(ours.bank_).fit_transform(X)
    assert np.array_equal(again, ours.transform(X))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_kept_is_aeons_classifier(kind: str, n_classes: int) -> None:
    X, y = data(n_classes=n_classes)
    X_test, _ = data(n=200, n_classes=n_classes, seed=1)
    make = {"rocket": RocketClassifier, "minirocket": MiniRocketClassifier}[kind]
    theirs = make(200, random_state=0).fit(X, y)
    ours = classifier(kind, keep=1.0).fit(X, y)
    assert len(ours.kept_kernels_) == (200 if kind == "rocket" else 168)
    expected = theirs.pipeline_.decision_function(X_test)
    decision = ours.model_.decision_function(X_test)
    np.testing.assert_allclose(decision.squeeze(), expected, atol=1e-3)
    pruned, few = prune_rocket(theirs, X, y, keep=0.1), classifier(kind, keep=0.1).fit(X, y)
    assert np.array_equal(pruned.kept_kernels_, few.kept_kernels_)
    assert np.array_equal(pruned.predict(X_test), few.predict(X_test))
    assert np.array_equal(ours.predict(X_test), theirs.predict(X_test)), "it is left alone"


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_classifier_computes_what_it_keeps(kind: str, refit: bool) -> None:
    X, y = data()
    X_test, y_test = data(n=200, seed=1)
    fitted = classifier(kind, keep=0.2, refit=refit).fit(X, y)
    assert fitted.keep_ == len(fitted.kept_kernels_) == (40 if kind == "rocket" else 34)
    assert fitted.bank_.n_features == (80 if kind == "rocket" else 34)
    whole = RocketTransformer(kind, 200, random_state=0).fit(X)
    columns = fitted.bank_.features
    assert np.array_equal(columns // (2 if kind == "rocket" else 1), np.repeat(
        fitted.kept_kernels_, 2 if kind == "rocket" else 1))  # fmt: skip
    kept = whole.transform(X_test)[:, columns]
    assert np.array_equal(kernel_features(X_test, fitted.bank_), kept)
    if refit:
        head = make_pipeline(StandardScaler(with_mean=False),
                             RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)))  # fmt: skip
        head.fit(whole.transform(X)[:, columns], y)
        assert np.array_equal(fitted.predict(X_test), head.predict(kept))
    assert fitted.score(X_test, y_test) > 0.8


def test_cross_validation_chooses_the_smallest_good() -> None:
    scores = {(1.0, 10): [0.6, 0.6, 0.6], (1.0, 50): [0.8, 0.9, 0.85], (1.0, 90): [0.8, 0.9, 0.95]}
    assert smallest_good(scores) == (1.0, 50)
    assert smallest_good(scores | {(1.0, 90): [0.95, 0.95, 0.95]}) == (1.0, 90)
    assert smallest_good(scores | {(0.1, 50): [0.9, 0.9, 0.85]}) == (0.1, 50)
    X, y = data(n=30)
    small = {"n_kernels": 20, "n_iter": 3}
    fitted = classifier(**small, keep="cv", k="cv").fit(X, y)
    assert {len(found) for found in fitted.scores_.values()} == {5}
    assert {keep for _, keep in fitted.scores_} == {1, 2, 4, 7, 10, 20}
    assert (fitted.k_, fitted.keep_) == smallest_good(fitted.scores_)
    one = classifier(**small, keep=fitted.keep_ / 20, k=fitted.k_).fit(X, y)
    assert one.scores_ is None
    assert np.array_equal(one.kept_kernels_, fitted.kept_kernels_)
    assert len(one.kept_kernels_) == fitted.keep_
    first = classifier(**small, keep="cv", refit=False).fit(X, y)
    assert {k for k, _ in first.scores_} == {1.0}
    # Classes with fewer cases than folds.
    few = classifier(**small, keep="cv").fit(X[:10], np.array(["a"] * 7 + ["b"] * 2 + ["c"]))
    assert few.keep_ in (1, 2, 4, 7, 10, 20)
    # One fold is fitted without the only case of the first class, and knows the others.
    lone = np.concatenate([[0], np.flatnonzero(y != y[0])])
    scores = classifier(**small, keep="cv").fit(X[lone], y[lone]).scores_
    assert min(scores[1.0, 20]) > 0.3


def test_the_model_as_a_file(tmp_path: Path) -> None:
    X, y = data()
    fitted = classifier(keep=0.3).fit(X, y)
    assert clone(classifier(fitted.bank_)).kernels == fitted.bank_
    fitted.model_.save(tmp_path / "model.npz")
    loaded = RocketModel.load(tmp_path / "model.npz")
    assert np.array_equal(loaded.decision_function(X), fitted.model_.decision_function(X))
    assert np.array_equal(loaded.predict(X), fitted.predict(X))
    assert np.array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    damaged: Any = {"coef": loaded.coef[1:]}, {"intercept": loaded.intercept[1:]}, {"scale": -1}
    damaged += ({"classes": [*"ab"]},)
    for change in damaged:
        content = loaded.content() | change
        np.savez(tmp_path / "model.npz", format=RocketModel.FORMAT, **content)
        with pytest.raises(ValueError, match=r"model\.npz to be a .*but it is damaged"):
            RocketModel.load(tmp_path / "model.npz")
    objects = classifier(keep=0.3).fit(X, y.astype(object)).model_
    objects.save(tmp_path / "objects.npz")
    assert np.array_equal(RocketModel.load(tmp_path / "objects.npz").predict(X), fitted.predict(X))
