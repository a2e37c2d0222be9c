"""Random kernels and random series for them, from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparseconv.rocket import KernelBank
from sparseconv.rocket.bank import MINI_KERNELS, ROCKET_TAPS
from sparseconv.rocket.reference import kernel_outputs_reference

# Below, at and just past what fills vectors, and the rests that have lanes of another kind.
CASES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16, 17, 20, 28, 31, 32, 33, 40)


@dataclass(frozen=True)
class Problem:
    """A bank and series; its ``repr`` evaluates to the same problem.

    ``exact``: all numbers are small and whole, so that float32 holds every sum.
    """

    kind: str
    seed: int
    bank: KernelBank = field(init=False, repr=False, compare=False)
    series: Any = field(init=False, repr=False, compare=False)
    exact: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        drawn = _rocket(self.rng) if self.kind == "rocket" else _minirocket(self.rng)
        for name, value in zip(("bank", "series", "exact"), drawn, strict=True):
            object.__setattr__(self, name, value)

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.kind == "rocket"])


def _size(rng: np.random.Generator, shortest: int, longest: int) -> tuple[int, int, int, int]:
    """Series, samples, channels and kernels; the more of the one, the fewer of the others."""
    n, channels = int(rng.choice(CASES)), int(rng.choice((1, 1, 1, 1, 2, 3, 7, 13)))
    kind = rng.random()
    if kind < 0.06:  # enough for tiles of outputs, and for several threads
        return n, int(rng.integers(560, longest)), channels, int(rng.integers(1, 25))
    if kind < 0.08:  # enough for threads that share the kernels of one series, or of a vector
        n, length = int(rng.choice((1, 2, 16))), int(rng.integers(700, longest))
        return n, length // 8 if n == 16 else length, 1 + n % 3, int(rng.integers(100, 300))
    length = int(rng.integers(shortest, 400 if kind < 0.4 else shortest + 80))
    return n, length, channels, int(rng.integers(1, 61 if length < 150 else 31))


def _series(rng: np.random.Generator, shape: tuple[int, ...], exact: bool, large: float) -> Any:
    """Draw series of different kinds: constant, with ties, of large or tiny numbers."""
    X = rng.integers(-8, 9, shape) if exact else rng.normal(size=shape)
    for x in X:
        match rng.integers(5 if exact else 11):
            case 0:
                x[:] = x[0, 0]
            case 1:
                x[:] = 0
            case 2:
                x[:, rng.integers(shape[2]) :] = 0
            case 5:
                x[:] = x.round()
            case 6:
                x *= large
            case 7:
                x *= 1e-40
            case 8:
                x[:] = x.cumsum(1)
    return X.astype(np.float32)


def _channels(rng: np.random.Generator, count: int, of: int, most: int) -> tuple[Any, Any]:
    numbers = rng.integers(1, min(of, most) + 1, count)
    return numbers, np.concatenate([rng.choice(of, n, replace=False) for n in numbers])


def _rocket(rng: np.random.Generator) -> tuple[KernelBank, Any, bool]:
    n, length, channels, count = _size(rng, 1, 1200)
    exact, usual = rng.random() < 0.3, rng.random() < 0.5
    n_shapes = int(rng.choice((1, 3, rng.integers(count) + 1)))
    if rng.random() < 0.015:  # more alike kernels than take turns, in vectors of them too
        n, length, channels, count, n_shapes = 1 + n % 3, max(length // 3, 1), 1, 600, 1

    def shape() -> tuple[int, int, int]:
        taps = min(length, int(rng.choice((7, 9, 11)) if usual else rng.integers(1, 12)))
        longest = (length - 1) // (taps - 1) if taps > 1 else 2**24
        dilation = int(rng.choice((1, longest, rng.integers(longest) + 1, longest ** rng.random())))
        span = (taps - 1) * dilation
        return taps, dilation, int(rng.choice((0, span // 2, span, rng.integers(span + 1))))

    # Alike kernels take turns, and share a vector where kernels are the lanes.
    shapes = [shape() for _ in range(n_shapes)]
    taps, dilation, padding = np.array([shapes[i] for i in rng.integers(len(shapes), size=count)]).T
    numbers, chosen = _channels(rng, count, channels, ROCKET_TAPS)
    total = int((numbers * taps).sum())
    if exact:
        weights, bias = rng.integers(-4, 5, total), rng.integers(-4, 5, count)
    else:
        weights = rng.normal(size=total) * 10 ** rng.uniform(-3, 3)
        bias = np.where(rng.random(count) < 0.2, 0, rng.uniform(-1, 1, count))
    arrays = {
        "length": taps, "dilation": dilation, "padding": padding, "bias": bias,
        "n_channels": numbers, "channels": chosen, "weights": weights,
    }  # fmt: skip
    normalise = not exact and bool(rng.random() < 0.3)
    X = _series(rng, (n, channels, length), exact, 1e30)
    return _bank("rocket", arrays, X, normalise), X, exact


def _minirocket(rng: np.random.Generator) -> tuple[KernelBank, Any, bool]:
    n, length, channels, count = _size(rng, 9, 2100)
    if rng.random() < 0.02:  # several tiles of positions, on every instruction set
        n, channels, count, length = 1 + n % 3, 1, 1 + count % 9, length + 4000
    exact, longest = rng.random() < 0.3, (length - 1) // 8
    X = _series(rng, (n, channels, length), exact, 3e37)
    dilations = [longest, *(longest ** rng.random(3)).astype(int)][: rng.integers(1, 5)]
    numbers, chosen = _channels(rng, count, channels, 9)
    n_biases = rng.integers(1, rng.choice((2, 5, 13, 40)), count)
    arrays = {
        "taps": rng.integers(MINI_KERNELS, size=count),
        "dilation": np.sort(rng.choice(dilations, count)),
        "padded": rng.integers(2, size=count),
        "n_biases": n_biases, "n_channels": numbers, "channels": chosen,
        "biases": np.zeros(n_biases.sum()),
    }  # fmt: skip
    # As in training, a bias is an output of some series: that very output is not above it.
    one = X[rng.integers(n)][None]
    with np.errstate(over="ignore", invalid="ignore"):
        outputs = kernel_outputs_reference(one, _bank("minirocket", arrays, X))
        drawn = [rng.choice(s[0], k) for s, k in zip(outputs, n_biases, strict=True)]
    biases = np.concatenate(drawn)
    biases[(rng.random(len(biases)) < 0.1) | ~np.isfinite(biases)] = 0
    return _bank("minirocket", arrays | {"biases": biases}, X), X, exact


def _bank(kind: str, arrays: dict[str, Any], X: Any, normalise: bool = False) -> KernelBank:
    return KernelBank(kind, arrays, *X.shape[1:], normalise)
