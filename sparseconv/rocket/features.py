"""Compute the features of series with the kernels of a bank, and classify by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from sparseconv.core.arrays import as_series, check_axes, three_axes
from sparseconv.ops.backends import extension
from sparseconv.rocket.bank import KernelBank, Saved
from sparseconv.rocket.reference import kernel_features_reference

Features = npt.NDArray[np.float32]


@np.errstate(under="ignore")
def kernel_features(X: Any, bank: KernelBank, *, out: Features | None = None) -> Features:
    """Return the features of series: ``(n_cases, bank.n_features)`` float32.

    ROCKET has two features per kernel: the share of outputs above 0, and the maximum. MiniROCKET
    has one per bias: the share of outputs above it, equal to aeon's bit for bit. The bits of a
    feature depend only on its series and kernel, so a pruned bank returns columns of the whole
    bank's features. The function runs on torch's threads (``torch.set_num_threads``).

    Args:
        X: ``(n_cases, n_channels, n_timepoints)``, or ``(n_cases, n_timepoints)`` with one channel,
            in the bank's shape, with at least one case, finite in float32.
        bank: the kernels.
        out: memory for the result, C-contiguous float32 ``(n_cases, bank.n_features)``. For few
            series, allocating memory takes as long as the kernels.

    Raises:
        ValueError: series with a different shape or not finite; an invalid ``out``.

    Example:
        >>> from aeon.transformations.collection.convolution_based import MiniRocket
        >>> X = np.random.default_rng(0).normal(size=(20, 1, 50))
        >>> bank = KernelBank.from_aeon(MiniRocket(168, random_state=0).fit(X))
        >>> kernel_features(X, bank).shape
        (20, 168)

    Source: Dempster et al. 2020 (ROCKET), 2021 (MiniROCKET).
    """
    series = as_series("kernel_features", "X", X)
    check_shape(series.shape, bank)
    if bank.normalise:  # of X's own numbers, which may have more digits than float32
        series = normalised(three_axes("kernel_features", "X", X)).astype(np.float32)
    if out is None:
        out = np.empty((len(series), bank.n_features), np.float32)
    elif not (isinstance(out, np.ndarray) and out.flags.carray):
        raise ValueError(
            "expected out to be an aligned, C-contiguous, writeable array; omit it to get a new one"
        )
    if extension is None:
        out[:] = kernel_features_reference(series, bank)
    else:
        bank.plan.features(torch.from_numpy(series), torch.from_numpy(out))
    return out


def check_shape(shape: tuple[int, ...], bank: KernelBank) -> None:
    """Reject series whose shape differs from the bank's."""
    channels, length = bank.series_channels, bank.series_length
    expected = f"expected series of shape (n_cases, {channels}, {length})"
    check_axes(f"{expected}, the shape that the kernels were drawn for", shape, channels, length)


def normalised(X: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Scale each channel of each series to mean 0 and variance 1; constant channels become zeros.

    Unlike aeon's Rocket, this computes in float64, and also returns zeros for a channel that is
    constant up to rounding.
    """
    X = np.ascontiguousarray(X)  # NumPy adds in another order where time is not the last in memory
    mean = X.mean(2, keepdims=True, dtype=np.float64)
    spread = X.std(2, keepdims=True, dtype=np.float64)
    constant = spread <= rounding(mean, X.shape[2], np.finfo(np.float64).eps)
    return np.asarray(np.where(constant, 0, X - mean) / np.where(constant, 1, spread))


def rounding(mean: Any, n: int, eps: Any) -> Any:
    """Return the spread up to which ``n`` numbers with this mean count as equal.

    The mean of equal numbers may differ from them by the errors of n additions.
    """
    return eps * n**0.5 * abs(mean)


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
        own = {"coef": self.coef, "intercept": self.intercept, "classes": self.classes}
        own["scale"] = np.array(self.scale)
        return own | {f"bank_{name}": array for name, array in self.bank.content().items()}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
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
