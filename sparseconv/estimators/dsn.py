"""``DSNClassifier``, an aeon and scikit-learn estimator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from aeon.classification.base import BaseClassifier

from sparseconv.core.arrays import as_labels, as_series
from sparseconv.core.generators import GLOBAL, Drawing
from sparseconv.dst.update import Growth
from sparseconv.estimators.shared import Scored, draw_seed
from sparseconv.models import DSN
from sparseconv.models.dsn import Around, Init
from sparseconv.ops.backends import Backend
from sparseconv.running import predict_log_proba
from sparseconv.training.loop import train
from sparseconv.training.recipe import Precision, Recipe
from sparseconv.training.run_folder import NETWORK


class DSNClassifier(Scored, BaseClassifier):  # type: ignore[misc]
    """Classify time series with a Dynamic Sparse Network, training only its active weights.

    The defaults follow the paper. Series have the shape ``(n_cases, n_channels, n_timepoints)``, or
    ``(n_cases, n_timepoints)`` with one channel, and are used unscaled, as float32. Labels are
    strings, integers, booleans or integral floats.

    Args:
        sparsity, nf, kernel_size, depth, n_groups, init, padding, block, backend: see
            ``models.DSN``.
        epochs, ..., precision: see ``training.Recipe``.
        random_state: an int is the seed; a ``RandomState`` or None draws a seed for each fit.
        validation: ``(X, y)`` as for fit. Each epoch records ``test_loss`` and ``test_accuracy``
            for them in ``history_``, without affecting training.
        on_epoch: called with the history after each epoch.
        device: the device for training and prediction, as ``torch.device`` accepts it.
        n_jobs: threads that torch uses in fit and predict; as in aeon, -1 means all cores.
        verbose: show a progress bar.

    Attributes:
        model_: the trained ``DSN`` of the best epoch.
        history_: see ``training.TrainingResult``.
        cost_: ``DSNCost`` for one series of the training set's length.
        seed_: the seed of the fit.
        classes_, n_classes_: the sorted labels of fit, and their number.

    Raises:
        ValueError, TypeError: unequal lengths, missing or infinite values, a shape other than in
            fit, arguments of the wrong type or out of range.

    Example:
        >>> import numpy as np
        >>> from sparseconv import DSNClassifier
        >>> X = np.sin(np.outer(1 + np.arange(8) % 2, np.linspace(0, 20, 40)))
        >>> y = np.array(["slow", "fast"] * 4)
        >>> classifier = DSNClassifier(nf=8, kernel_size=9, epochs=40, random_state=0).fit(X, y)
        >>> classifier.predict(X[:2])
        array(['slow', 'fast'], dtype='<U4')

    Source: Xiao et al., "Dynamic Sparse Network for Time Series Classification: Learning What to
    'See'", NeurIPS 2022.
    """

    __module__ = "sparseconv"  # the name in pickles and reprs

    _tags = {  # noqa: RUF012 (aeon's convention)
        "capability:multivariate": True,
        "capability:multithreading": True,
        "algorithm_type": "deeplearning",
        "python_dependencies": ["torch"],
    }

    def __init__(
        self,
        sparsity: float = NETWORK["sparsity"],
        nf: int = NETWORK["nf"],
        kernel_size: int = NETWORK["kernel_size"],
        depth: int = NETWORK["depth"],
        n_groups: int = NETWORK["n_groups"],
        init: Init = NETWORK["init"],
        padding: Around = NETWORK["padding"],
        block: int | tuple[int, int] = NETWORK["block"],
        epochs: int = Recipe.epochs,
        lr: float = Recipe.lr,
        lr_min: float = Recipe.lr_min,
        weight_decay: float = Recipe.weight_decay,
        batch_size: int | None = Recipe.batch_size,
        update_every_epochs: int = Recipe.update_every_epochs,
        update_every_steps: int | None = Recipe.update_every_steps,
        skip_step_at_update: bool = Recipe.skip_step_at_update,
        decay_share: float = Recipe.decay_share,
        prune_fraction: float = Recipe.prune_fraction,
        prune_floor: float = Recipe.prune_floor,
        grow: Growth = Recipe.grow,
        precision: Precision = Recipe.precision,
        backend: Backend = NETWORK["backend"],
        random_state: int | np.random.RandomState | None = None,
        validation: tuple[Any, Any] | None = None,
        on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
        device: torch.device | str = "cpu",
        n_jobs: int = 1,
        verbose: bool = False,
    ) -> None:
        given = locals()
        for name in inspect.signature(DSNClassifier).parameters:
            setattr(self, name, given[name])
        super().__init__()

    def _fit(self, X: npt.NDArray[Any], y: npt.NDArray[Any]) -> DSNClassifier:
        series = torch.from_numpy(as_series("DSNClassifier", "X", X))
        labels = torch.from_numpy(np.searchsorted(self.classes_, y))
        seed, own = draw_seed(self.random_state), self.get_params(deep=False)
        recipe = Recipe(
            seed=seed,
            **{field.name: own[field.name] for field in fields(Recipe) if field.name in own},
        )
        network = {name: own[name] for name in inspect.signature(DSN).parameters if name in own}
        with self._threads():
            with _float32_by_default(), Drawing(seed):
                model = DSN(series.shape[1], self.n_classes_, **network)
            model.to(self.device)
            more = {"validation": self._validation(), "on_epoch": self.on_epoch}
            result = train(model, series, labels, recipe, verbose=self.verbose, **more)
        self.seed_ = seed
        self.model_ = model
        self.history_ = result.history
        self.cost_ = model.cost(series.shape[2])
        return self

    def _validation(self) -> tuple[Any, Any] | None:
        """Return the series and class indices of ``validation``."""
        if self.validation is None:
            return None
        X, y = self.validation
        labels = as_labels("DSNClassifier", "validation", y)
        if not (known := np.isin(labels, self.classes_)).all():
            raise ValueError(
                "expected every label of validation to be in the training set, but got "
                f"{labels[~known]}; remove the cases with these labels"
            )
        series = as_series("DSNClassifier", "validation", X)
        self._check_shape(series)
        return series, np.searchsorted(self.classes_, labels)

    def _predict_proba(self, X: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        with self._threads():
            series = torch.from_numpy(as_series("DSNClassifier", "X", X))
            log_proba = predict_log_proba(self.model_, series)
        # In float64, so that the sums of probabilities pass scikit-learn's check.
        proba: npt.NDArray[np.float64] = log_proba.double().softmax(1).cpu().numpy()
        return proba

    def _predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        labels: npt.NDArray[Any] = self.classes_[self._predict_proba(X).argmax(1)]
        return labels

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        return {"nf": 2, "kernel_size": 6, "depth": 2, "epochs": 2}


__test__ = {"DSNClassifier": DSNClassifier}  # for doctest, as its __module__ is sparseconv


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Create floats as float32, whatever the process's default is, for one thread at a time."""
    with GLOBAL, ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        yield
