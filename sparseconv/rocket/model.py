"""A bank of kernels with a linear classifier on its features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from sparseconv.rocket.bank import KernelBank, Saved
from sparseconv.rocket.features import kernel_features


@dataclass(frozen=True, eq=False)
class RocketModel(Saved):
    """A linear classifier on the features of random kernels.

    Attributes:
        bank: the kernels.
        coef: ``(n_features, columns)`` float32, for unscaled features; one column for two classes,
            otherwise one per class.
        intercept: ``(columns,)`` float32.
        classes: label of each class.
        scale: factor applied to the decisions in ``predict_proba``.

    Example:
        >>> import tempfile
        >>> from sparseconv import POCKETClassifier
        >>> X = np.sin(np.outer(1 + np.arange(20) % 2, np.linspace(0, 20, 40)))
        >>> y = np.array(["slow", "fast"] * 10)
        >>> model = POCKETClassifier(n_kernels=100, keep=0.1, random_state=0).fit(X, y).model_
        >>> model.decision_function(X[:2]).shape
        (2, 1)
        >>> path = tempfile.mkdtemp() + "/model.npz"
        >>> model.save(path)
        >>> RocketModel.load(path).predict(X[:2])
        array(['slow', 'fast'], dtype='<U4')
    """

    FORMAT = "sparseconv rocket model, version 2"

    bank: KernelBank
    coef: npt.NDArray[np.float32]
    intercept: npt.NDArray[np.float32]
    classes: npt.NDArray[Any]
    scale: float = 1.0

    def __post_init__(self) -> None:
        columns = 1 if len(self.classes) == 2 else len(self.classes)
        shapes = self.coef.shape, self.intercept.shape
        if shapes != ((self.bank.n_features, columns), (columns,)) or not 0 < self.scale < np.inf:
            raise ValueError(
                f"coef and intercept have shapes {shapes} and scale is {self.scale}, which do not "
                f"match {len(self.classes)} classes and {self.bank}"
            )

    @np.errstate(under="ignore")
    def decision_function(self, X: Any) -> npt.NDArray[np.float32]:
        """Return decisions ``(n_cases, columns)``.

        The largest determines the class; with two classes, a decision above 0 means the second.

        For ``X`` and the errors raised, see ``kernel_features``.
        """
        return kernel_features(X, self.bank) @ self.coef + self.intercept

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return each series' label, ``(n_cases,)``; see ``decision_function``."""
        labels: npt.NDArray[Any] = self.classes[chosen(self.decision_function(X))]
        return labels

    @np.errstate(under="ignore")
    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Multiply the decisions by ``scale`` and apply the softmax: ``(n_cases, n_classes)``."""
        return np.exp(log_probabilities(self.decision_function(X), self.scale))

    def content(self) -> dict[str, Any]:
        """Return arrays and numbers by name."""
        own = {"coef": self.coef, "intercept": self.intercept, "classes": self.classes}
        own["scale"] = np.array(self.scale)
        return own | {f"bank_{name}": array for name, array in self.bank.content().items()}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        """Build a model from ``content``; raise an error if it is damaged."""
        bank = {name[5:]: content[name] for name in content if name.startswith("bank_")}
        own = {name: content[name] for name in ("coef", "intercept", "classes")}
        return cls(KernelBank.from_content(bank), scale=float(content["scale"]), **own)


def chosen(decision: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the class index that a linear classifier chooses for each row."""
    if decision.shape[1] == 1:
        return (decision[:, 0] > 0).astype(np.int64)
    return np.asarray(decision.argmax(1))


def log_probabilities(decision: npt.NDArray[Any], scale: float) -> npt.NDArray[np.float64]:
    """Multiply decisions ``(n_cases, columns)`` by ``scale``, and return their log-softmax."""
    logits = np.asarray(decision, np.float64) * scale
    if logits.shape[1] == 1:
        logits = np.hstack([-logits / 2, logits / 2])
    return torch.from_numpy(logits).log_softmax(1).numpy()
