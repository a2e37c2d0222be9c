"""``POCKETClassifier`` and its relatives against aeon's, and what it decides by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("aeon", reason="aeon is not installed")

import torch
from aeon.classification.convolution_based import MiniRocketClassifier, RocketClassifier
from aeon.testing.estimator_checking import check_estimator
from aeon.transformations.collection.convolution_based import MiniRocket, Rocket
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifierCV
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, label_binarize

from sparseconv import (
    DSNClassifier,
    KernelBank,
    POCKETClassifier,
    RocketTransformer,
    kernel_features,
    prune_rocket,
)
from sparseconv.estimators.shared import case_weights
from sparseconv.rocket import RocketModel
from sparseconv.rocket.bank import KINDS
from sparseconv.rocket.selection import GroupSelection, smallest_good


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
    decision = ours.decision_function(X_test)
    assert decision.shape == expected.shape
    np.testing.assert_allclose(decision, expected, atol=1e-3)
    proba = ours.predict_proba(X_test)
    assert proba.shape == (200, n_classes)
    np.testing.assert_allclose(proba.sum(1), 1)
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
    for labels in ("aaaaaaabbc", "aabbccddee"):
        few = classifier(**small, keep="cv").fit(X[:10], np.array([*labels]))
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


WEIGHTS: Any = {"normal": 1.0, "event": 8.0}


def rare(n: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.12).astype(int)
    bump = np.exp(-(((np.linspace(0, 1, 60) - 0.5) / 0.08) ** 2))
    X = rng.normal(0, 1, (n, 60)) + 0.9 * y[:, None] * bump
    return X[:, None], np.array(["normal", "event"])[y]


def even(n: int, n_classes: int = 2, seed: int = 0, step: float = 0.7) -> tuple[Any, Any]:
    rng, y = np.random.default_rng(seed), np.arange(n) % n_classes
    X = rng.normal(0, 1, (n, 60))
    X[:, 25:35] += step * y[:, None]
    return X[:, None], np.array([*"abc"])[y]


def pocket(**options: Any) -> POCKETClassifier:
    small = {"n_kernels": 200, "keep": 0.3, "n_iter": 5, "random_state": 0}
    return POCKETClassifier(**(small | options))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (RocketClassifier, {"class_weight": "balanced"}),
        (RocketClassifier, {"class_weight": WEIGHTS}),
        (MiniRocketClassifier, {"class_weight": WEIGHTS}),
    ],
)
def test_what_a_fitted_classifier_was_given_is_kept(make: Any, options: dict[str, Any]) -> None:
    X, y = rare(300)
    X_test, y_test = rare(600, seed=1)
    theirs = make(200, random_state=0, **options).fit(X, y)
    found = theirs.predict(X_test)
    pruned = prune_rocket(theirs, X, y, keep=1.0, n_iter=1)
    assert np.array_equal(pruned.predict(X_test), found)
    assert pruned.random_state == 0
    small = prune_rocket(theirs, X, y, keep=0.3, n_iter=1, random_state=5, n_jobs=2)
    assert (small.random_state, small.n_jobs) == (5, 2)
    for decided in (found, small.predict(X_test)):  # without weights it is a tenth or less
        assert (decided[y_test == "event"] == "event").mean() > 0.3
    chosen = prune_rocket(KernelBank.from_aeon(theirs).to_aeon(), X, y, n_iter=1)  # a transform
    assert chosen.class_weight is None


@pytest.mark.parametrize(
    ("labels", "weights", "wanted"),
    [
        (["1", "2"], {"1": 9.0, "2": 1.0}, [9.0, 1.0]),  # labels of UCR's files
        (["1", "2"], {1: 9.0}, [9.0, 1.0]),
        (["01", "1"], {"01": 9.0, "1": 2.0}, [9.0, 2.0]),
        (["01", "1"], {1: 9.0}, [1.0, 9.0]),
        (["1", "1_0", "10"], {10: 9.0, "1": 3.0}, [3.0, 1.0, 9.0]),
        ([1, 2], {1: 9.0, 2.0: 3.0}, [9.0, 3.0]),
    ],
)
def test_a_text_has_the_weight_of_that_text(labels: Any, weights: Any, wanted: Any) -> None:
    y = np.array(labels * 2)
    assert case_weights(weights, y).tolist() == wanted * 2
    X, _ = even(len(y))
    assert np.isfinite(pocket(n_kernels=20, class_weight=weights).fit(X, y).model_.scale)


def test_a_weight_of_two_is_a_case_given_twice() -> None:
    X, y = even(30, 3)
    Z, labels = kernel_features(X, pocket(keep=1.0).fit(X, y).bank_), np.arange(30) % 3
    Z = Z.astype(float)  # so that rounding is out of sight
    twice = np.concatenate([np.arange(30), np.flatnonzero(labels == 1)])
    found, wanted = (
        GroupSelection(Z, labels, 3, 2, np.where(labels == 1, 2.0, 1.0))(20, 1.0, 10),
        GroupSelection(Z[twice], labels[twice], 3, 2)(20, 1.0, 10),
    )
    assert np.array_equal(found.groups, wanted.groups)
    for name in ("coef", "intercept"):  # float32
        torch.testing.assert_close(*(torch.from_numpy(getattr(x, name)) for x in (found, wanted)))


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, 24)])
@pytest.mark.parametrize("n_features", [8, 60])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_leave_one_out_leaves_one_out(n_classes: int, n_features: int, weights: Any) -> None:
    rng, labels = np.random.default_rng(0), np.arange(24) % n_classes
    Z = rng.normal(labels[:, None], 2, (24, n_features))
    select, k = GroupSelection(Z, labels, n_classes, 1, weights), 0.3
    scaled = Z * np.asarray(select._factor)  # to lengths that all cases have a part in
    coded = label_binarize(labels, classes=range(n_classes), neg_label=-1)
    share = np.ones(24) if weights is None else weights / weights.mean()
    for i, decided in enumerate(select.leave_one_out(k)):
        rest = np.arange(24) != i
        w = share[rest, None]
        mean, offset = (np.average(a[rest], 0, w[:, 0]) for a in (scaled, coded))
        A, B = np.sqrt(w) * (scaled[rest] - mean), np.sqrt(w) * (coded[rest] - offset)
        W = np.linalg.solve(A.T @ A + k * np.eye(n_features), A.T @ B)
        np.testing.assert_allclose(decided, (scaled[i] - mean) @ W + offset)


@pytest.mark.parametrize("options", [{}, {"refit": False}, {"kernels": "minirocket", "keep": 0.1}])
def test_probabilities_rank_as_the_margins_and_are_worth_something(options: Any) -> None:
    X, y = even(120)
    X_test, y_test = even(300, seed=1)
    fitted = pocket(**options).fit(X, y)
    proba, margin = fitted.predict_proba(X_test), fitted.decision_function(X_test)
    assert margin.shape == (300,)
    assert len(np.unique(proba)) > 200
    assert roc_auc_score(y_test, proba[:, 1]) == roc_auc_score(y_test, margin) > 0.7
    assert log_loss(y_test, proba) < 0.65 < np.log(2)  # of equal chances
    assert np.array_equal(fitted.classes_[(margin > 0).astype(int)], fitted.predict(X_test))
    X_clear, y_clear = even(300, seed=1, step=2.0)
    clear = pocket(**options).fit(*even(120, step=2.0))
    assert log_loss(y_clear, clear.predict_proba(X_clear)) < 0.2  # 0.39 if not scaled


def test_probabilities_of_noise_are_near_the_base_rates() -> None:
    losses, labels = [], np.arange(120) % 10 < 3
    for seed in (1, 2, 6):
        X = np.random.default_rng(seed).normal(size=(240, 1, 40))
        fitted = pocket(kernels="minirocket", n_kernels=840, keep=0.1).fit(X[:120], labels)
        losses.append(log_loss(labels, fitted.predict_proba(X[120:])))
    assert np.mean(losses) < 0.71  # 0.61 of base rates; 0.73 by the scale of all kernels


def test_a_class_that_hardly_counts_leaves_the_probabilities_of_others() -> None:
    X, y = even(90, 3)
    options = {"n_kernels": 500, "keep": 0.1, "n_iter": 50}
    little, none = (
        pocket(**options, class_weight={"a": weight, "b": 1, "c": 1}).fit(X, y).model_.scale
        for weight in (1e-2, 1e-5)
    )
    assert little / 2 < none < 2 * little  # little / 24 if its column counts as those of others
