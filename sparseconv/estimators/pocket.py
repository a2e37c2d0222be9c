"""Estimators based on random convolution kernels."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from aeon.classification.base import BaseClassifier
from aeon.transformations.collection import BaseCollectionTransformer
from aeon.transformations.collection.convolution_based import MiniRocket, Rocket
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from sparseconv.core.arrays import warn_if_swapped
from sparseconv.core.checks import count, number, share
from sparseconv.core.generators import generators_kept
from sparseconv.estimators.shared import Scored, Shared, case_weights, draw_seed
from sparseconv.measure.progress import progress
from sparseconv.rocket.bank import KINDS, MINI_KERNELS, POCKET, KernelBank, Kind, check_length
from sparseconv.rocket.features import RocketModel, check_shape, chosen, kernel_features
from sparseconv.rocket.selection import GroupSelection, Selected, fitted_scale, smallest_good

KEEPS = (0.05, 0.1, 0.2, 0.35, 0.5, 1.0)  # shares of the kernels that "cv" tries
KS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
FOLDS = 5
ALPHAS = np.logspace(-3, 3, 10)  # of the ridge classifier, as in aeon's RocketClassifier
KERNEL_TAGS = {  # what aeon knows of both estimators
    "capability:multivariate": True,
    "capability:multithreading": True,
    "algorithm_type": "convolution",
    "X_inner_type": "numpy3D",
}
Array = npt.NDArray[Any]


class RocketTransformer(Shared, BaseCollectionTransformer):  # type: ignore[misc]
    """Compute features of ROCKET's or MiniROCKET's kernels with ``kernel_features``.

    aeon's ``Rocket`` and ``MiniRocket`` draw the kernels, so the same seed yields the same kernels.
    MiniROCKET's features are bit-identical to aeon's; ROCKET's are equal up to rounding.

    Args:
        kernels: ``"rocket"``, ``"minirocket"``, or a ``KernelBank``, used unchanged. ROCKET
            normalises each channel of each series as aeon does, but constant channels become zeros.
        n_kernels: as in aeon, the number of kernels for ROCKET (two features each), or of features
            for MiniROCKET (at least 84, rounded down to a multiple of 84).
        random_state: an int is the seed; a ``RandomState`` or None draws a seed.
        n_jobs: number of threads; as in aeon, -1 means all cores.

    Attributes:
        bank_: the ``KernelBank``.

    Raises:
        ValueError, TypeError: unequal lengths, a shape other than in fit or the bank's, missing or
            infinite values, unknown ``kernels``, or too few.

    Example:
        >>> from sparseconv import RocketTransformer
        >>> X = np.random.default_rng(0).normal(size=(20, 1, 50))
        >>> RocketTransformer(n_kernels=100, random_state=0).fit_transform(X).shape
        (20, 200)

    Source: Dempster et al. 2020 (ROCKET), 2021 (MiniROCKET).
    """

    __module__ = "sparseconv"  # what pickles and reprs name

    _tags = KERNEL_TAGS | {"output_data_type": "Tabular"}

    def __init__(
        self,
        kernels: Kind | KernelBank = "rocket",
        n_kernels: int = 10_000,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int = 1,
    ) -> None:
        self.kernels = kernels
        self.n_kernels = n_kernels
        self.random_state = random_state
        self.n_jobs = n_jobs
        super().__init__()

    def _fit(self, X: Array, y: Any = None) -> RocketTransformer:
        self.bank_ = draw_kernels(self.kernels, self.n_kernels, draw_seed(self.random_state), X)
        return self

    def _transform(self, X: Array, y: Any = None) -> Array:
        with self._threads():
            return kernel_features(X, self.bank_)

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return {"n_kernels": 20}


class POCKETClassifier(Scored, BaseClassifier):  # type: ignore[misc]
    """ROCKET or MiniROCKET with a share of its kernels, chosen by group-sparse ridge regression.

    ADMM selects groups of features (for ROCKET, one group per kernel) in a ridge classifier.
    Dropped features are never computed again: a pruned ROCKET's time is proportional to the number
    of kernels kept.

    Args:
        kernels, n_kernels, random_state, n_jobs: as in ``RocketTransformer``.
        keep: share to keep, in [0, 1], of ROCKET's kernels or MiniROCKET's features, at least one.
            Of 5, 10, 20, 35, 50 and 100 %, ``"cv"`` chooses the smallest share whose accuracy in 5
            folds is within one standard error of the best.
        k: the ridge penalty in the selection. ``"cv"`` chooses the best of 0.01, 0.1, ..., 1000 in
            the same folds.
        n_iter: iterations of ADMM. 1 keeps the kernels with the largest weights in one ridge
            classifier (magnitude).
        refit: fit a new ridge classifier on the kept features, with a penalty chosen by
            leave-one-out. False predicts with the selection's weights (the paper's stage 1).
        class_weight: ``"balanced"`` or a dict by label, as in scikit-learn, where ``1`` also stands
            for the text ``"1"``; used in selection and refit.
        verbose: show a progress bar for the folds.

    Attributes:
        kept_kernels_: ascending indices of the kept kernels (MiniROCKET: features), into the given
            bank if there is one.
        bank_: the ``KernelBank`` of the kept kernels.
        keep_, n_candidates_, k_: the numbers kept and available; the ridge penalty in the
            selection.
        scores_: with ``"cv"``, the folds' accuracies by (k, keep); otherwise None.
        model_: the ``RocketModel`` used for prediction, which can be saved.
        seed_, classes_, n_classes_: the seed; the sorted labels of fit; their number.

    ``predict_proba`` applies the softmax to the margins times ``model_.scale``, the scale with the
    highest likelihood of the labels in leave-one-out decisions.

    Raises:
        ValueError, TypeError: as in ``RocketTransformer``; a single class; options out of range;
            ``"cv"`` with one case of each class; class weights for unknown labels, or not positive.

    Example:
        >>> from sparseconv import POCKETClassifier
        >>> X = np.sin(np.outer(1 + np.arange(20) % 2, np.linspace(0, 20, 40)))
        >>> y = np.array(["slow", "fast"] * 10)
        >>> classifier = POCKETClassifier(n_kernels=100, keep=0.1, random_state=0).fit(X, y)
        >>> len(classifier.kept_kernels_), classifier.predict(X[:2])
        (10, array(['slow', 'fast'], dtype='<U4'))

    Source: Chen et al., arXiv 2309.08499.
    """

    __module__ = "sparseconv"

    _tags = KERNEL_TAGS

    def __init__(
        self,
        kernels: Kind | KernelBank = POCKET["kernels"],
        n_kernels: int = POCKET["n_kernels"],
        keep: float | Literal["cv"] = POCKET["keep"],
        k: float | Literal["cv"] = POCKET["k"],
        n_iter: int = POCKET["n_iter"],
        refit: bool = POCKET["refit"],
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        random_state: int | np.random.RandomState | None = None,
        n_jobs: int = 1,
        verbose: bool = False,
    ) -> None:
        given = locals()
        for name in inspect.signature(POCKETClassifier).parameters:
            setattr(self, name, given[name])
        super().__init__()

    def _fit(self, X: Array, y: Array) -> POCKETClassifier:
        count("n_iter", self.n_iter)
        if self.k != "cv" and not 0 < number("k", self.k) < np.inf:
            raise ValueError(f"k must be positive and finite, or 'cv', but got {self.k!r}")
        ks = KS if self.k == "cv" else (float(self.k),)
        self.seed_ = draw_seed(self.random_state)
        labels = np.searchsorted(self.classes_, y)
        weights = case_weights(self.class_weight, y)
        with self._threads():
            bank = draw_kernels(self.kernels, self.n_kernels, self.seed_, X)
            size = 2 if bank.kind == "rocket" else 1
            self.n_candidates_ = bank.n_features // size
            shares = KEEPS if self.keep == "cv" else (self.keep,)
            counts = (round(share("keep", each) * self.n_candidates_) for each in shares)
            keeps = sorted({max(1, n) for n in counts})
            choices = list(product(ks, keeps))
            features = kernel_features(X, bank)
            self.scores_ = None
            if len(choices) > 1:
                self.scores_ = self._scores(features, labels, size, choices)
            self.k_, self.keep_ = smallest_good(self.scores_) if self.scores_ else choices[0]
            select = GroupSelection(features, labels, self.n_classes_, size, weights)
            found = self._head(select, features, labels, self.k_, self.keep_)
            unseen = select.leave_one_out(self.k_)
            scale = fitted_scale(unseen, labels, weights)
            if self.refit and self.keep_ < self.n_candidates_:  # then decisions are larger
                kept = features[:, found.columns].astype(np.float64)
                refit = GroupSelection(kept, labels, self.n_classes_, 1, weights)
                wider = refit.leave_one_out(found.k).std(0) / unseen.std(0)
                # With several classes a column counts by the total weight of its class.
                several = weights is not None and self.n_classes_ > 2
                totals = np.bincount(labels, weights) if several else None
                scale /= max(1.0, float(np.average(wider, weights=totals)))
        self.kept_kernels_ = found.groups
        self.bank_ = bank.select_features(found.columns)
        self.model_ = RocketModel(self.bank_, found.coef, found.intercept, self.classes_, scale)
        return self

    def _head(
        self, select: GroupSelection, features: Array, labels: Array, k: float, keep: int
    ) -> Selected:
        """Select features and fit the classifier on them."""
        found = select(keep, k, self.n_iter)
        if not self.refit:
            return found
        kept = features[:, found.columns]
        weights = case_weights(self.class_weight, self.classes_[labels])
        coef, intercept, k = ridge_classifier(kept, labels, weights)
        return replace(found, coef=coef, intercept=intercept, k=k)

    def _scores(
        self, features: Array, labels: Array, size: int, choices: Sequence[tuple[float, int]]
    ) -> dict[tuple[float, int], list[float]]:
        """Return the accuracy of each choice on each fold."""
        scores: dict[tuple[float, int], list[float]] = {choice: [] for choice in choices}
        cases = np.bincount(labels)
        if cases.max() < 2:
            raise ValueError(
                'expected a class with at least 2 cases for "cv", but every class has only one; '
                "pass keep and k as numbers"
            )
        with warnings.catch_warnings():  # a class may have fewer cases than there are folds
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            folds = StratifiedKFold(
                min(int(cases.max()), FOLDS), shuffle=True, random_state=self.seed_
            )
            splits = list(folds.split(features, labels))
        for inside, outside in progress(splits, self.verbose, desc="folds"):
            seen, missed = features[inside], features[outside]
            weights = case_weights(self.class_weight, self.classes_[labels[inside]])
            select = GroupSelection(seen, labels[inside], self.n_classes_, size, weights)
            # The refitted head only knows the classes of its cases.
            known = np.unique(labels[inside]) if self.refit else np.arange(self.n_classes_)
            for k, keep in choices:
                found = self._head(select, seen, labels[inside], k, keep)
                guess = known[chosen(missed[:, found.columns] @ found.coef + found.intercept)]
                scores[k, keep].append(float((guess == labels[outside]).mean()))
        return scores

    def _predict(self, X: Array) -> Array:
        with self._threads():
            return self.model_.predict(X)

    def _predict_proba(self, X: Array) -> Array:
        with self._threads():
            return self.model_.predict_proba(X)

    def decision_function(self, X: Any) -> Array:
        """Return the margins ``(n_cases, n_classes)``, or ``(n_cases,)`` for two classes."""
        self._check_is_fitted()
        series = self._preprocess_collection(X, store_metadata=False)
        self._check_shape(series)
        with self._threads():
            decision = self.model_.decision_function(series)
        return decision[:, 0] if decision.shape[1] == 1 else decision

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return {"n_kernels": 20, "keep": 0.5, "n_iter": 5}


def prune_rocket(
    classifier: Any,
    X: Any,
    y: Any,
    keep: float | Literal["cv"] = POCKET["keep"],
    **options: Any,
) -> POCKETClassifier:
    """Prune a fitted aeon ``RocketClassifier`` or ``MiniRocketClassifier``.

    Args:
        classifier: a fitted classifier, left unchanged, or a fitted ``Rocket`` or ``MiniRocket``.
        X, y: the training set, or similar cases of the same classes.
        keep, options: as in ``POCKETClassifier``; ``class_weight``, ``random_state`` and ``n_jobs``
            default to the fitted classifier's.

    Returns:
        A fitted ``POCKETClassifier`` with a subset of the classifier's kernels. What a subclass
        overrides is not carried over.

    Raises:
        TypeError: an object of a different class.
        ValueError: an unfitted classifier; series of a different shape.
        NotImplementedError: a classifier with a different ``estimator`` or ridge penalty.

    Example:
        >>> from aeon.classification.convolution_based import RocketClassifier
        >>> from sparseconv import prune_rocket
        >>> X = np.sin(np.outer(1 + np.arange(20) % 2, np.linspace(0, 20, 40)))[:, None]
        >>> y = np.array(["slow", "fast"] * 10)
        >>> pruned = prune_rocket(RocketClassifier(100, random_state=0).fit(X, y), X, y, keep=0.1)
        >>> pruned.bank_.n_kernels
        10

    Source: Chen et al., arXiv 2309.08499.
    """
    bank = KernelBank.from_aeon(classifier)
    kept = {name: copy.deepcopy(getattr(classifier, name)) for name in ("n_jobs", "random_state")}
    if hasattr(classifier, "pipeline_"):  # a transformer has none
        kept["class_weight"] = getattr(classifier.estimator_, "class_weight", None)
        _, *decides, last = classifier.pipeline_.named_steps.values()
        for steps in ([*decides, last], [*decides, classifier.estimator_]):  # one may be replaced
            if repr(steps) != repr(head_of_aeon(kept["class_weight"])):
                raise NotImplementedError(
                    "a pruned classifier uses RidgeClassifierCV(np.logspace(-3, 3, 10)) on "
                    f"features scaled to variance 1, and cannot keep {steps}; prune "
                    "KernelBank.from_aeon(classifier).to_aeon(), and fit those steps to "
                    "kernel_features(X, pruned.bank_)"
                )
    pruned = POCKETClassifier(bank, keep=keep, **(kept | options))
    pruned.fit(X, y)
    return pruned


def draw_kernels(kernels: Any, n_kernels: int, seed: int, X: Array) -> KernelBank:
    """Return the kernels that aeon draws for these series, or the given bank."""
    warn_if_swapped(X.shape)
    if isinstance(kernels, KernelBank):
        check_shape(X.shape, kernels)
        return kernels
    if kernels not in KINDS:
        raise ValueError(f"kernels must be one of {KINDS} or a KernelBank, but got {kernels!r}")
    least = 1 if kernels == "rocket" else MINI_KERNELS  # aeon would silently round up to this
    n_kernels = count("n_kernels", n_kernels, least)
    check_length(kernels, X.shape)
    make = Rocket if kernels == "rocket" else MiniRocket
    with generators_kept(torchs=False):  # aeon seeds NumPy's
        return KernelBank.from_aeon(make(n_kernels, random_state=seed).fit(X))


def head_of_aeon(class_weight: Any = None) -> list[Any]:
    """Return the steps of aeon's RocketClassifier after its transform."""
    ridge = RidgeClassifierCV(alphas=ALPHAS, class_weight=class_weight)
    return [StandardScaler(with_mean=False), ridge]


def ridge_classifier(
    features: Array, labels: Array, weights: Array | None = None
) -> tuple[Array, Array, float]:
    """Fit the head of aeon's RocketClassifier, whose penalty is chosen by leave-one-out.

    Return coefficients for unscaled features, ``(n_features, columns)``, the intercept,
    ``(columns,)``, and the ridge penalty for features of length 1, as in ``GroupSelection``.
    """
    scaler, ridge = head_of_aeon()
    ridge.fit(scaler.fit_transform(features), labels, weights)
    coef = np.atleast_2d(ridge.coef_).T / scaler.scale_[:, None]
    intercept = np.atleast_1d(ridge.intercept_).astype(np.float32)
    return coef.astype(np.float32), intercept, float(ridge.alpha_) / len(labels)


# For doctest, as their __module__ is sparseconv.
__test__ = {"RocketTransformer": RocketTransformer, "POCKETClassifier": POCKETClassifier}
