"""Features of series by the kernels of a bank."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparseconv.ops.backends import extension
from sparseconv.rocket.bank import MINI_LENGTH, KernelBank
from sparseconv.rocket.reference import kernel_features_reference

Features = npt.NDArray[np.float32]


def kernel_features(X: Any, bank: KernelBank, *, out: Features | None = None) -> Features:
    """Return the features of series: ``(n_cases, bank.n_features)`` float32.

    ROCKET: for each kernel the share of outputs above 0 and the greatest output. MiniROCKET: for
    each bias the share of outputs above it, equal to aeon's to the last bit. The bits depend on the
    series and the kernel alone: not on the other series or kernels, on threads, or on the
    instruction set; so a pruned bank gives columns of the whole bank's features.

    Runs on torch's threads (``torch.set_num_threads``).

    Args:
        X: ``(n_cases, n_channels, n_timepoints)``, or of one channel ``(n_cases, n_timepoints)``,
            of the shape that the bank was made for, finite. float32 is computed with.
        bank: the kernels.
        out: where to write instead of new memory, which costs as much as the kernels for few
            series: C-contiguous float32 ``(n_cases, bank.n_features)``.

    Raises:
        ValueError: series of another shape or not finite; ``out`` that does not fit.

    Example:
        >>> from aeon.transformations.collection.convolution_based import MiniRocket
        >>> X = np.random.default_rng(0).normal(size=(20, 1, 50))
        >>> bank = KernelBank.from_aeon(MiniRocket(168, random_state=0).fit(X))
        >>> kernel_features(X, bank).shape
        (20, 168)

    Source: Dempster et al. 2020 (ROCKET), 2021 (MiniROCKET).
    """
    X = np.asarray(X)
    if X.ndim == 2:
        X = X[:, None]
    shape = bank.series_channels, bank.series_length
    if X.ndim != 3 or X.shape[1:] != shape:
        raise ValueError(
            f"expected series of shape (n_cases, {shape[0]}, {shape[1]}), those that the kernels "
            f"were drawn for, but got {X.shape}; pad or cut them to this length"
        )
    if X.dtype.kind not in "fiu":
        raise ValueError(f"expected series of real numbers, but got dtype {X.dtype}")
    if bank.normalise:
        X = normalised(X)
    with np.errstate(over="ignore"):
        X = np.require(X, np.float32, ["C", "W"])  # writable, since torch warns of others
    if not np.isfinite(X).all():
        raise ValueError("expected finite series; replace NaN, for example with numpy.nan_to_num")
    wanted = len(X), bank.n_features
    if out is None:
        out = np.empty(wanted, np.float32)
    elif (
        not isinstance(out, np.ndarray)
        or out.shape != wanted
        or out.dtype != np.float32
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        raise ValueError(f"expected out to be a C-contiguous float32 array of shape {wanted}")
    if extension is None:
        out[:] = kernel_features_reference(X, bank)
    else:
        plan_of(bank).features(torch.from_numpy(X), torch.from_numpy(out))
    return out


def operations(bank: KernelBank) -> int:
    """What the features of one series cost at least.

    Multiply-adds of taps inside the series for ROCKET; comparisons for MiniROCKET.
    """
    a, length = bank.arrays, bank.series_length
    if bank.kind == "minirocket":
        outside = np.where(a["padded"] == 1, 0, (MINI_LENGTH - 1) * a["dilation"])
        return int(((length - outside) * a["n_biases"]).sum(dtype=np.int64))
    total = 0
    for tap in range(int(a["length"].max())):
        first = tap * a["dilation"] - a["padding"]  # sample that the first output reads
        end = length + a["padding"] - (a["length"] - 1 - tap) * a["dilation"]
        inside = np.minimum(end, length) - np.maximum(first, 0)
        inside = np.where(tap < a["length"], np.maximum(inside, 0), 0)
        total += int((inside * a["n_channels"]).sum(dtype=np.int64))
    return total


def normalised(X: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Each channel of each series with mean 0 and variance 1, as aeon's Rocket does: in float64."""
    with np.errstate(invalid="ignore"):  # what is not finite is refused afterwards
        mean = X.mean(2, keepdims=True, dtype=np.float64)
        spread = X.std(2, keepdims=True, dtype=np.float64)
        return np.asarray((X - mean) / np.where(spread == 0, 1, spread))


def plan_of(bank: KernelBank) -> Any:
    """The bank as the kernels read it, made once."""
    if bank._plan is None:
        assert extension is not None
        a = {name: torch.tensor(array) for name, array in bank.arrays.items()}
        names = ROCKET_ORDER if bank.kind == "rocket" else MINIROCKET_ORDER
        make = extension.RocketPlan if bank.kind == "rocket" else extension.MiniRocketPlan
        made = make(*(a[name] for name in names), bank.series_channels, bank.series_length)
        object.__setattr__(bank, "_plan", made)
    return bank._plan


ROCKET_ORDER = ("length", "dilation", "padding", "bias", "n_channels", "channels", "weights")
MINIROCKET_ORDER = ("taps", "dilation", "padded", "n_biases", "biases", "n_channels", "channels")
