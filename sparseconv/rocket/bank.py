"""Banks of ROCKET's and MiniROCKET's random kernels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import torch

from sparseconv.core.files import replacing
from sparseconv.ops.backends import extension

# The arrays of a bank, by kind.
ARRAYS: dict[str, dict[str, Any]] = {
    "rocket": {
        "length": np.int32, "dilation": np.int32, "padding": np.int32, "bias": np.float32,
        "n_channels": np.int32, "channels": np.int32, "weights": np.float32,
    },
    "minirocket": {
        "taps": np.int32, "dilation": np.int32, "padded": np.int32, "n_biases": np.int32,
        "biases": np.float32, "n_channels": np.int32, "channels": np.int32,
    },
}  # fmt: skip
JOINED = ("channels", "weights", "biases")  # concatenated over kernels; the others: one a kernel
AEON_ROCKET = ("weights", "length", "bias", "dilation", "padding", "n_channels", "channels")
Kind = Literal["rocket", "minirocket"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Defaults of POCKETClassifier, for those who must not wait until aeon is imported.
POCKET: dict[str, Any] = {
    "kernels": "rocket", "n_kernels": 10_000, "keep": 0.35, "k": 1.0, "n_iter": 50, "refit": True,
}  # fmt: skip
FACTS = ("kind", "series_channels", "series_length", "normalise")
ROCKET_TAPS = 11  # at most
MINI_LENGTH, MINI_KERNELS = 9, 84
Array = npt.NDArray[Any]


class Saved:
    """An object that can be rebuilt from ``content()``, arrays and numbers by name."""

    FORMAT: ClassVar[str]
    content: Any
    from_content: Any  # raises an error if the content is damaged

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file of arrays, atomically."""
        with replacing(Path(path)) as file:
            np.savez(file, allow_pickle=False, format=self.FORMAT, **self.content())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that ``save`` wrote, without running code from it.

        Raises:
            ValueError: the file is damaged, or contains a different version or object.
        """
        with Path(path).open("rb") as opened:
            try:
                # np.load takes any text for a pickle, and advises to load it unsafely.
                with np.lib.npyio.NpzFile(opened) as file:
                    content = {name: file[name] for name in file.files}
                if (found := str(content.pop("format"))) != cls.FORMAT:
                    raise ValueError(f"it is a {found}")
                made: Self = cls.from_content(content)
                return made
            except Exception as error:  # numpy and zipfile raise a dozen kinds on damaged files
                raise ValueError(
                    f"expected {os.fspath(path)} to be a {cls.FORMAT}, but it is damaged or of "
                    f"a different kind ({type(error).__name__}: {error}); write it again with save"
                ) from error


@dataclass(frozen=True, eq=False, repr=False)
class KernelBank(Saved):
    """Random kernels of one transform, for series of a given shape; immutable.

    ``from_aeon`` and ``load`` create banks; ``select`` and ``select_features`` return smaller ones.

    Attributes:
        kind: ``"rocket"`` or ``"minirocket"``; for the features, see ``kernel_features``.
        arrays: read-only arrays by name, with one entry per kernel or concatenated over kernels.
        series_channels, series_length: shape of the series.
        normalise: whether each channel of each series is scaled to mean 0 and variance 1.
        features: columns of these features in the whole bank, int64, ascending.

    Example:
        >>> import tempfile
        >>> from aeon.transformations.collection.convolution_based import Rocket
        >>> X = np.random.default_rng(0).normal(size=(20, 1, 50))
        >>> bank = KernelBank.from_aeon(Rocket(100, random_state=0).fit(X))
        >>> few = bank.select([3, 7])  # the same as select_features([6, 7, 14, 15])
        >>> few, few.features
        (KernelBank('rocket', 2 kernels, 4 features, of series (1, 50)), array([ 6,  7, 14, 15]))
        >>> few.arrays["bias"].shape, few.to_aeon()
        ((2,), Rocket(n_kernels=2))
        >>> path = Path(tempfile.mkdtemp()) / "bank.npz"
        >>> few.save(path)
        >>> KernelBank.load(path) == few
        True

    Source: Dempster et al. 2020 (ROCKET), 2021 (MiniROCKET).
    """

    FORMAT = "sparseconv kernel bank, version 1"

    kind: Kind
    arrays: Mapping[str, Array]
    series_channels: int
    series_length: int
    normalise: bool
    features: npt.NDArray[np.int64] = None  # type: ignore[assignment]  # all of them

    def __post_init__(self) -> None:
        types = ARRAYS[self.kind].items()
        held = {name: _frozen(self.arrays[name], dtype) for name, dtype in types}
        object.__setattr__(self, "arrays", held)
        columns = np.arange(self.n_features) if self.features is None else self.features
        object.__setattr__(self, "features", _frozen(columns, np.int64))
        if self.features.shape != (self.n_features,):
            raise ValueError(
                f"features must have shape ({self.n_features},), but got shape "
                f"{self.features.shape}"
            )

    @cached_property
    def plan(self) -> Any:
        """Return the C++ kernels' input; raise ValueError if the arrays are invalid."""
        assert extension is not None
        make = extension.RocketPlan if self.kind == "rocket" else extension.MiniRocketPlan
        arrays = {name: torch.tensor(array, device="cpu") for name, array in self.arrays.items()}
        return make(arrays, self.series_channels, self.series_length)

    def __reduce__(self) -> Any:  # without the plan
        return KernelBank, tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KernelBank):
            return NotImplemented
        mine, theirs = self.content(), other.content()
        return mine.keys() == theirs.keys() and all(
            np.array_equal(mine[name], theirs[name]) for name in mine
        )

    def __repr__(self) -> str:
        return (
            f"KernelBank({self.kind!r}, {self.n_kernels} kernels, {self.n_features} features, of "
            f"series ({self.series_channels}, {self.series_length}))"
        )

    @property
    def n_kernels(self) -> int:
        return len(self.arrays["dilation"])

    @property
    def n_features(self) -> int:
        """Count the features: two per kernel for ROCKET, one per bias for MiniROCKET."""
        return 2 * self.n_kernels if self.kind == "rocket" else len(self.arrays["biases"])

    def select(self, kernels: Iterable[int]) -> KernelBank:
        """Return a bank of some kernels, in ascending order, with all their features.

        Args:
            kernels: their indices, or a mask over all kernels, as in NumPy.
        """
        chosen = np.arange(self.n_kernels)[list(kernels)]
        return self.select_features(np.isin(self._owners(self._each), chosen))

    def select_features(self, features: Iterable[int]) -> KernelBank:
        """Return a bank of some features, in ascending order, and the kernels that they need.

        Args:
            features: their indices, or a mask over all features, as in NumPy.

        Raises:
            ValueError: no feature, or only one of the two features of a ROCKET kernel.
        """
        columns = np.unique(np.arange(self.n_features)[list(features)])
        if not len(columns):
            raise ValueError("expected at least one kernel or feature, but none was chosen")
        a, rocket = self.arrays, self.kind == "rocket"
        kernels, counts = np.unique(self._owners(self._each)[columns], return_counts=True)
        if rocket and (counts != 2).any():
            raise ValueError(
                f"kernel {kernels[counts != 2][0]} has two features, but only one of them is "
                "selected; select both, or use select(kernels)"
            )
        held = {name: a[name][kernels] for name in a if name not in JOINED}
        held["channels"] = a["channels"][np.isin(self._owners(a["n_channels"]), kernels)]
        if rocket:
            sizes = a["n_channels"] * a["length"]
            held["weights"] = a["weights"][np.isin(self._owners(sizes), kernels)]
        else:
            held["biases"], held["n_biases"] = a["biases"][columns], counts
        shape = self.series_channels, self.series_length
        return KernelBank(self.kind, held, *shape, self.normalise, self.features[columns])

    @property
    def _each(self) -> Any:
        """Count the features of each kernel."""
        return 2 if self.kind == "rocket" else self.arrays["n_biases"]

    def _owners(self, sizes: Any) -> Array:
        """Return the kernel of each entry, where kernel i has ``sizes[i]`` entries."""
        return np.repeat(np.arange(self.n_kernels), sizes)

    @classmethod
    def from_aeon(cls, fitted: Any) -> KernelBank:
        """Return the kernels of aeon's ``Rocket``, ``MiniRocket`` or their classifiers.

        Raises:
            TypeError, ValueError: a different class, or an unfitted object; series shorter than a
                kernel.
        """
        from aeon.classification.convolution_based import MiniRocketClassifier, RocketClassifier
        from aeon.transformations.collection.convolution_based import MiniRocket, Rocket

        kind = type(fitted).__name__
        if not isinstance(fitted, Rocket | MiniRocket | RocketClassifier | MiniRocketClassifier):
            raise TypeError(
                "expected a fitted Rocket, MiniRocket, RocketClassifier or MiniRocketClassifier "
                f"from aeon, but got {kind}; extract the fitted object from a pipeline or search, "
                "and pass the series that the object receives there"
            )
        if not fitted.is_fitted:
            raise ValueError(f"this {kind} is not fitted; call fit first")
        transformer = getattr(fitted, "_transformer", fitted)
        shape = transformer.metadata_["n_channels"], transformer.metadata_["n_timepoints"]
        check_length("rocket" if isinstance(transformer, Rocket) else "minirocket", shape)
        if isinstance(transformer, Rocket):
            arrays = dict(zip(AEON_ROCKET, transformer.kernels, strict=True))
            return cls("rocket", arrays, *shape, normalise=bool(transformer.normalise))
        n_channels, channels, dilations, n_biases, biases = transformer.parameters
        arrays = _all_kernels(dilations, n_biases)
        arrays |= {"n_channels": n_channels, "channels": channels, "biases": biases}
        return cls("minirocket", arrays, *shape, normalise=False)

    def to_aeon(self) -> Any:
        """Return a fitted aeon ``Rocket`` or ``MiniRocket`` with these kernels.

        Raises:
            ValueError: a MiniROCKET bank that lacks some of aeon's features.
        """
        from aeon.transformations.collection.convolution_based import MiniRocket, Rocket

        a = {name: array.copy() for name, array in self.arrays.items()}
        if self.kind == "rocket":
            made = Rocket(n_kernels=self.n_kernels, normalise=self.normalise)
            made.kernels = tuple(a[name] for name in AEON_ROCKET)
        else:
            dilations, first = np.unique(a["dilation"], return_index=True)
            n_biases = a["n_biases"][first]
            whole = _all_kernels(dilations, n_biases)
            if self.normalise or any(not np.array_equal(a[name], whole[name]) for name in whole):
                raise ValueError(
                    "expected all 84 kernels of aeon's MiniRocket at every dilation, for series "
                    "that are not normalised, but this bank has different kernels or fewer "
                    "features; compute its features with kernel_features"
                )
            made = MiniRocket(n_kernels=self.n_features)
            made.parameters = a["n_channels"], a["channels"], dilations, n_biases, a["biases"]
        made._n_jobs, made.is_fitted = 1, True
        made.metadata_ = {
            "multivariate": self.series_channels > 1, "n_channels": self.series_channels,
            "n_timepoints": self.series_length, "missing_values": False, "unequal_length": False,
        }  # fmt: skip
        return made

    def content(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*FACTS, "features")} | dict(self.arrays)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Self:
        kind, channels, length, normalise = (np.asarray(content[name]).item() for name in FACTS)
        bank = cls(kind, content, channels, length, normalise, content["features"])
        if extension is not None:
            _ = bank.plan  # which C++ checks: a damaged file is refused here, not when it is used
        return bank


def check_length(kind: str, shape: tuple[int, ...]) -> None:
    """Reject series ``(..., n_channels, n_timepoints)`` for which aeon draws a dilation of 0."""
    least = ROCKET_TAPS if kind == "rocket" else MINI_LENGTH
    if shape[-1] < least:
        raise ValueError(
            f"kernels with {least} taps need series with at least {least} time points, but got "
            f"{shape[-1]}; pad the series with "
            "aeon.transformations.collection.unequal_length.Padder, or swap the axes if they are "
            "not (n_cases, n_channels, n_timepoints)"
        )


def _all_kernels(dilations: Array, n_biases: Array) -> dict[str, Array]:
    """Return all kernels at every dilation, padded alternately, as in aeon's MiniRocket."""
    j, k = np.divmod(np.arange(MINI_KERNELS * len(dilations)), MINI_KERNELS)
    return {
        "taps": k, "dilation": dilations[j], "padded": 1 - (j + k) % 2, "n_biases": n_biases[j],
    }  # fmt: skip


def _frozen(values: Any, dtype: Any) -> Array:
    """Return a read-only copy in ``dtype``; raise TypeError if ``values`` are of another kind."""
    array = np.asarray(values).astype(dtype, casting="same_kind")
    array.flags.writeable = False
    return array
