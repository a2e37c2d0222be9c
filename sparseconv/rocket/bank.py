"""Banks of random convolution kernels, as ROCKET and MiniROCKET draw them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from sparseconv.core.checks import flag, integer
from sparseconv.core.files import replacing

FORMAT, VERSION = "sparseconv kernel bank", 1
KINDS = ("rocket", "minirocket")
SHAPE = ("series_channels", "series_length", "normalise")  # what the series are like
# The arrays of a bank, by kind: with an entry for each kernel, or concatenated over kernels.
PER_KERNEL: dict[str, dict[str, Any]] = {
    "rocket": {
        "length": np.int32, "dilation": np.int32, "padding": np.int32, "bias": np.float32,
        "n_channels": np.int32,
    },
    "minirocket": {
        "taps": np.int32, "dilation": np.int32, "padded": np.int32, "n_biases": np.int32,
        "n_channels": np.int32,
    },
}  # fmt: skip
JOINED: dict[str, dict[str, Any]] = {
    "rocket": {"channels": np.int32, "weights": np.float32},
    "minirocket": {"channels": np.int32, "biases": np.float32},
}
ROCKET_TAPS = 11  # at most
MINI_LENGTH, MINI_KERNELS = 9, 84
Array = npt.NDArray[Any]


class KernelBank:
    """Random kernels of one transform, for series of one shape.

    Made by ``from_aeon`` or ``load``. Immutable; ``select`` and ``select_features`` give smaller
    ones.

    Attributes:
        kind: ``"rocket"`` (two features a kernel: the share of positive outputs, and the maximum)
            or ``"minirocket"`` (a feature for each bias: the share of outputs above it).
        series_channels, series_length: the shape of the series that the kernels were drawn for.
        normalise: the transform brings each channel of each series to mean 0 and variance 1.
        features: which columns of the whole bank's features these are, int64, ascending.

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

    __slots__ = (
        "_arrays", "_plan", "features", "kind", "normalise", "series_channels", "series_length",
    )  # fmt: skip

    kind: str
    series_channels: int
    series_length: int
    normalise: bool
    features: npt.NDArray[np.int64]
    _arrays: Mapping[str, Array]
    _plan: Any  # what the C++ kernels read, made at the first use

    def __init__(
        self,
        kind: str,
        arrays: Mapping[str, Any],
        *,
        series_channels: int,
        series_length: int,
        normalise: bool,
        features: Any = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, but got {kind!r}")
        held = {}
        for name, dtype in (PER_KERNEL[kind] | JOINED[kind]).items():
            if name not in arrays:
                raise ValueError(f"a bank of kind {kind!r} needs the array {name!r}")
            held[name] = _frozen(name, arrays[name], dtype)
        object.__setattr__(self, "_plan", None)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "_arrays", MappingProxyType(held))
        sizes = {"series_channels": series_channels, "series_length": series_length}
        for name, size in sizes.items():
            if not 1 <= integer(f"{name} must be an integer", size) < 2**31:
                raise ValueError(f"{name} must lie in [1, 2**31), but got {size}")
            object.__setattr__(self, name, int(size))
        object.__setattr__(self, "normalise", flag("normalise", normalise))
        count = 2 * len(held["length"]) if kind == "rocket" else len(held["biases"])
        columns = np.arange(count) if features is None else features
        object.__setattr__(self, "features", _frozen("features", columns, np.int64))
        self._check()

    def _check(self) -> None:
        """Refuse arrays that do not describe kernels for these series."""
        a, n = self._arrays, self.n_kernels
        for name in PER_KERNEL[self.kind]:
            if len(a[name]) != n:
                raise ValueError(f"a bank of {n} kernels has {len(a[name])} entries of {name!r}")
        if n == 0:
            raise ValueError("a bank holds at least one kernel")
        limits = {
            "n_channels": (1, self.series_channels),
            "channels": (0, self.series_channels - 1),
        }
        if self.kind == "rocket":
            limits["n_channels"] = 1, min(self.series_channels, ROCKET_TAPS)
            limits |= {"length": (1, ROCKET_TAPS), "dilation": (1, 2**24), "padding": (0, 2**24)}
        else:
            limits |= {"taps": (0, MINI_KERNELS - 1), "dilation": (1, 2**24), "padded": (0, 1),
                       "n_biases": (1, 2**24)}  # fmt: skip
        for name, (low, high) in limits.items():
            if len(a[name]) and not (low <= a[name].min() and a[name].max() <= high):
                raise ValueError(
                    f"{name} must lie in [{low}, {high}], but reaches from {a[name].min()} to "
                    f"{a[name].max()}"
                )
        sizes = {"channels": int(a["n_channels"].sum(dtype=np.int64))}
        if self.kind == "rocket":
            span = (a["length"] - 1) * a["dilation"]
            sizes["weights"] = int((a["n_channels"].astype(np.int64) * a["length"]).sum())
            if (a["padding"] > span).any():
                raise ValueError(f"kernel {int((a['padding'] > span).argmax())} is padded by more "
                                 "samples than it spans")  # fmt: skip
        else:
            span = (MINI_LENGTH - 1) * a["dilation"]
            sizes["biases"] = int(a["n_biases"].sum(dtype=np.int64))
            if (np.diff(a["dilation"]) < 0).any():
                raise ValueError("the kernels of a minirocket bank stand by ascending dilation")
        for name, size in sizes.items():
            if len(a[name]) != size:
                raise ValueError(f"expected {size} entries of {name!r}, but got {len(a[name])}")
        if span.max() >= self.series_length:
            raise ValueError(
                f"kernel {int(span.argmax())} is longer than series of {self.series_length} samples"
            )
        for name in ("weights", "bias", "biases"):
            if name in a and not np.isfinite(a[name]).all():
                raise ValueError(f"{name} must be finite")
        columns = self.features
        if len(columns) != self.n_features or columns[0] < 0 or (np.diff(columns) <= 0).any():
            raise ValueError(
                f"features must name {self.n_features} columns, from 0 on, once and in ascending "
                "order"
            )
        if self.kind == "rocket" and ((columns[::2] % 2 != 0) | (np.diff(columns)[::2] != 1)).any():
            raise ValueError("features must name both columns of each kernel, 2 k and 2 k + 1")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a KernelBank is immutable; {name} cannot be set")

    def __reduce__(self) -> Any:
        return KernelBank.from_content, (self.content(),)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KernelBank):
            return NotImplemented
        mine, theirs = self._facts(), other._facts()
        return (
            self.kind == other.kind
            and np.array_equal(mine.pop("features"), theirs.pop("features"))
            and mine == theirs
            and all(np.array_equal(self._arrays[k], other._arrays[k]) for k in self._arrays)
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.n_kernels, self._arrays["channels"].tobytes()))

    def __repr__(self) -> str:
        return (
            f"KernelBank({self.kind!r}, {self.n_kernels} kernels, {self.n_features} features, of "
            f"series ({self.series_channels}, {self.series_length}))"
        )

    def _facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*SHAPE, "features")}

    @property
    def n_kernels(self) -> int:
        """How many kernels there are."""
        return len(self._arrays["dilation"])

    @property
    def n_features(self) -> int:
        """Two a kernel for ROCKET, one a bias for MiniROCKET."""
        if self.kind == "rocket":
            return 2 * self.n_kernels
        return len(self._arrays["biases"])

    @property
    def arrays(self) -> Mapping[str, Array]:
        """By name, read-only: an entry for each kernel, or concatenated over kernels."""
        return self._arrays

    def select(self, kernels: Iterable[int]) -> KernelBank:
        """A bank of some kernels, in ascending order, with all their features.

        Raises:
            TypeError: what is no integer, also a mask. ValueError: an index that is out of range
                or named twice, or none.
        """
        chosen = _indices("kernels", kernels, self.n_kernels)
        if self.kind == "rocket":
            return self._of(chosen, np.stack([2 * chosen, 2 * chosen + 1], 1).reshape(-1))
        first = np.concatenate([[0], np.cumsum(self._arrays["n_biases"])])
        return self.select_features(_ranges(first[chosen], first[chosen + 1]))

    def select_features(self, features: Iterable[int]) -> KernelBank:
        """A bank with some of the features, of the kernels that they need, in ascending order.

        Raises:
            TypeError: what is no integer, also a mask. ValueError: an index that is out of range
                or named twice, or none; for ROCKET one of a kernel's two features alone.
        """
        chosen = _indices("features", features, self.n_features)
        if self.kind == "rocket":
            kernels, counts = np.unique(chosen // 2, return_counts=True)
            if (counts != 2).any():
                raise ValueError(
                    f"kernel {kernels[counts != 2][0]} has two features, and only one of them is "
                    "named; name both, or use select(kernels)"
                )
            return self._of(kernels, chosen)
        owner = np.repeat(np.arange(self.n_kernels), self._arrays["n_biases"])[chosen]
        kernels, counts = np.unique(owner, return_counts=True)
        return self._of(kernels, chosen, counts)

    def _of(self, kernels: Array, columns: Array, n_biases: Array | None = None) -> KernelBank:
        a = self._arrays
        held = {name: a[name][kernels] for name in PER_KERNEL[self.kind]}
        starts = np.concatenate([[0], np.cumsum(a["n_channels"])])
        held["channels"] = a["channels"][_ranges(starts[kernels], starts[kernels + 1])]
        if self.kind == "rocket":
            sizes = a["n_channels"].astype(np.int64) * a["length"]
            starts = np.concatenate([[0], np.cumsum(sizes)])
            held["weights"] = a["weights"][_ranges(starts[kernels], starts[kernels + 1])]
        else:
            assert n_biases is not None
            held["biases"], held["n_biases"] = a["biases"][columns], n_biases
        facts = self._facts() | {"features": self.features[columns]}
        return KernelBank(self.kind, held, **facts)

    @classmethod
    def from_aeon(cls, fitted: Any) -> KernelBank:
        """The kernels of a fitted aeon ``Rocket``, ``MiniRocket`` or a classifier made of one.

        Raises:
            TypeError: another object. ValueError: one that is not fitted.
        """
        from aeon.classification.convolution_based import MiniRocketClassifier, RocketClassifier
        from aeon.transformations.collection.convolution_based import MiniRocket, Rocket

        kind = type(fitted).__name__
        if not isinstance(fitted, Rocket | MiniRocket | RocketClassifier | MiniRocketClassifier):
            raise TypeError(
                "expected aeon's Rocket, MiniRocket, RocketClassifier or MiniRocketClassifier, "
                f"fitted, but got {kind}"
            )
        if not fitted.is_fitted:
            raise ValueError(f"this {kind} is not fitted; call fit first")
        transformer = getattr(fitted, "_transformer", fitted)
        shape = {
            "series_channels": transformer.metadata_["n_channels"],
            "series_length": transformer.metadata_["n_timepoints"],
        }
        if isinstance(transformer, Rocket):
            weights, length, bias, dilation, padding, n_channels, channels = transformer.kernels
            arrays = {
                "length": length, "dilation": dilation, "padding": padding, "bias": bias,
                "n_channels": n_channels, "channels": channels, "weights": weights,
            }  # fmt: skip
            return cls("rocket", arrays, normalise=bool(transformer.normalise), **shape)
        n_channels, channels, dilations, n_biases, biases = transformer.parameters
        arrays = _all_kernels(dilations, n_biases)
        arrays |= {"n_channels": n_channels, "channels": channels, "biases": biases}
        return cls("minirocket", arrays, normalise=False, **shape)

    def to_aeon(self) -> Any:
        """A fitted aeon ``Rocket`` or ``MiniRocket`` with these kernels.

        Raises:
            ValueError: a MiniROCKET bank of which features were dropped: aeon's object always has
                all 84 kernels at every dilation, with as many biases each, every other one padded.
        """
        from aeon.transformations.collection.convolution_based import MiniRocket, Rocket

        a = self._arrays
        if self.kind == "rocket":
            made = Rocket(n_kernels=self.n_kernels, normalise=self.normalise)
            order = ("weights", "length", "bias", "dilation", "padding", "n_channels", "channels")
            made.kernels = tuple(a[name].copy() for name in order)
        else:
            dilations, first = np.unique(a["dilation"], return_index=True)
            n_biases = a["n_biases"][first]
            whole = _all_kernels(dilations, n_biases)
            if self.normalise or any(not np.array_equal(a[name], whole[name]) for name in whole):
                raise ValueError(
                    "aeon's MiniRocket has all 84 kernels at every dilation, padded in turn, for "
                    "series as they are, but this bank has others, or features of it were dropped; "
                    "compute them with kernel_features"
                )
            made = MiniRocket(n_kernels=self.n_features)
            made.parameters = (
                a["n_channels"].copy(), a["channels"].copy(), dilations,
                n_biases, a["biases"].copy(),
            )  # fmt: skip
        made._n_jobs, made.is_fitted = 1, True
        made.metadata_ = {
            "multivariate": self.series_channels > 1,
            "n_channels": self.series_channels,
            "n_timepoints": self.series_length,
            "missing_values": False,
            "unequal_length": False,
        }
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` file of arrays, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        with replacing(Path(path)) as file:
            np.savez(file, allow_pickle=False, format=FORMAT, version=VERSION, **self.content())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KernelBank:
        """Read what ``save`` wrote; no code is run.

        Raises:
            OSError: the file cannot be read. ValueError: damaged, of another version, or no bank.
        """
        content = read_arrays(path, FORMAT, VERSION)
        try:
            return cls.from_content(content)
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)} holds no usable kernel bank: {error}") from error

    def content(self) -> dict[str, Any]:
        """Everything that ``from_content`` needs, as arrays and numbers."""
        return {"kind": self.kind, **self._facts(), **self._arrays}

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> KernelBank:
        """Its inverse, of what may come from a file; KeyError, TypeError or ValueError."""
        kind = str(content["kind"])
        facts = {name: np.asarray(content[name]).item() for name in SHAPE}
        return cls(kind, content, features=content["features"], **facts)


def read_arrays(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, Array]:
    """The arrays of an ``.npz`` file that says that it is of this kind and version."""
    with Path(path).open("rb") as opened:
        try:
            # np.load takes any text for a pickle, and advises to load it unsafely.
            with np.lib.npyio.NpzFile(opened) as file:
                content = {name: file[name] for name in file.files}
                found, number = str(content.pop("format")), int(content.pop("version"))
        except Exception as error:  # numpy and zipfile raise a dozen kinds on damaged files
            raise ValueError(
                f"{os.fspath(path)} is no {kind}, or damaged ({type(error).__name__}: {error}); "
                "write it again with save"
            ) from error
    if found != kind or number != version:
        raise ValueError(
            f"expected a {kind} of version {version}, but {os.fspath(path)} is a {found} of "
            f"version {number}; use the release and the class that wrote it"
        )
    return content


def _all_kernels(dilations: Array, n_biases: Array) -> dict[str, Array]:
    """What aeon's MiniRocket does not say: all kernels at every dilation, padded in turn."""
    j, k = np.divmod(np.arange(MINI_KERNELS * len(dilations)), MINI_KERNELS)
    return {
        "taps": k, "dilation": dilations[j], "padded": (j + k) % 2 == 0, "n_biases": n_biases[j],
    }  # fmt: skip


def _frozen(name: str, values: Any, dtype: Any) -> Array:
    """A copy that cannot be written, of numbers that the type holds exactly or to its precision."""
    given = np.asarray(values)
    kinds = "iub" if np.dtype(dtype).kind == "i" else "iuf"
    if given.ndim != 1 or given.dtype.kind not in kinds:
        raise ValueError(
            f"{name} must be a vector of {np.dtype(dtype).name}, but got shape {given.shape} and "
            f"dtype {given.dtype}"
        )
    with np.errstate(over="ignore"):
        array = given.astype(dtype)
    if np.dtype(dtype).kind == "i" and not np.array_equal(array, given):
        raise ValueError(f"{name} must fit into {np.dtype(dtype).name}")
    array.flags.writeable = False
    return array.view()  # which cannot be made writable again


def _indices(name: str, chosen: Iterable[int], count: int) -> Array:
    if not isinstance(chosen, Iterable):
        raise TypeError(f"{name} must be several integers, but got {chosen!r}")
    found = sorted(integer(f"{name} must be integers", i) for i in chosen)
    if not found:
        raise ValueError(f"{name} names none; a bank holds at least one")
    if found[0] < 0 or found[-1] >= count:
        raise ValueError(f"{name} must lie in [0, {count}), but hold {found[0]} to {found[-1]}")
    array = np.array(found, np.int64)
    if (np.diff(array) == 0).any():
        raise ValueError(f"{name} name {array[:-1][np.diff(array) == 0][0]} twice")
    return array


def _ranges(first: Array, end: Array) -> Array:
    """All integers of several ranges, one after the other."""
    sizes = end - first
    starts = np.repeat(first - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    return starts + np.arange(sizes.sum())
