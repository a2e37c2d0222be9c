"""Features of random kernels: aeon's, whatever the layout, threads, instruction set and bank."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_banks import feature_limits

from sparseconv.ops.backends import extension
from sparseconv.rocket import KernelBank, kernel_features
from sparseconv.rocket.reference import kernel_features_reference

aeon = pytest.importorskip("aeon.transformations.collection.convolution_based")

SHAPES = [
    (5, 1, 30),
    (1, 1, 150),
    (35, 1, 150),
    (17, 1, 700),
    (33, 3, 60),
    (20, 12, 90),
    (3, 6, 200),
]


def fitted(kind: str, X: Any, n_kernels: int = 300, **more: Any) -> Any:
    make = aeon.Rocket if kind == "rocket" else aeon.MiniRocket
    return make(n_kernels=n_kernels, random_state=0, **more).fit(X)


def series(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_minirocket_is_aeons(shape: tuple[int, ...]) -> None:
    X = series(shape)
    transformer = fitted("minirocket", X)
    bank = KernelBank.from_aeon(transformer)
    got = kernel_features(X, bank)
    assert np.array_equal(got, transformer.transform(X))
    assert np.array_equal(got, kernel_features_reference(X, bank))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rocket_is_aeons(shape: tuple[int, ...], normalise: bool) -> None:
    X = series(shape) * 3 + 1
    transformer = fitted("rocket", X, normalise=normalise)
    bank = KernelBank.from_aeon(transformer)
    lowest, highest = feature_limits(X, bank)
    for features in (kernel_features(X, bank), transformer.transform(X)):
        assert ((lowest <= features) & (features <= highest)).all()


@pytest.mark.parametrize("kind", ["rocket", "minirocket"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_depend_on_the_kernel_and_the_series_alone(
    kind: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    X = series(shape)
    bank = KernelBank.from_aeon(fitted(kind, X))
    whole = kernel_features(X, bank)
    for isa in extension.isas() if extension else ():
        monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
        assert np.array_equal(kernel_features(X, bank), whole), isa
    monkeypatch.delenv("SPARSECONV_CPU_ISA", raising=False)
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert np.array_equal(kernel_features(X, bank), whole), count
    torch.set_num_threads(threads)
    for n in range(min(4, len(X))):
        assert np.array_equal(kernel_features(X[n : n + 1], bank)[0], whole[n])
    generator = np.random.default_rng(1)
    some = bank.select(generator.choice(bank.n_kernels, 20, replace=False).tolist())
    assert np.array_equal(kernel_features(X, some), whole[:, some.features])
    one = bank.select([5])
    assert np.array_equal(kernel_features(X, one), whole[:, one.features])


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_that_aeon_does_not_draw(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(channels)
    X, n = series((19, channels, 61)), 400
    length = generator.integers(1, 12, n) if channels > 1 else generator.choice([7, 9, 11], n)
    dilation = generator.integers(1, 60 // np.maximum(length - 1, 1) + 1)
    padding = generator.integers(0, (length - 1) * dilation + 1)
    n_channels = generator.integers(1, channels + 1, n)
    bank = KernelBank(
        "rocket",
        {
            "length": length, "dilation": dilation, "padding": padding, "n_channels": n_channels,
            "bias": generator.uniform(-1, 1, n),
            "channels": np.concatenate([np.arange(count) for count in n_channels]),
            "weights": generator.normal(size=(length * n_channels).sum()),
        },
        series_channels=channels, series_length=61, normalise=False,
    )  # fmt: skip
    lowest, highest = feature_limits(X, bank)
    for isa in extension.isas() if extension else ():
        monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
        whole = kernel_features(X, bank)
        assert ((lowest <= whole) & (whole <= highest)).all()
        assert np.array_equal(kernel_features(X[:1], bank), whole[:1])


def test_selections_of_features() -> None:
    X = series((6, 2, 40))
    bank = KernelBank.from_aeon(fitted("minirocket", X, 1000))
    whole = kernel_features(X, bank)
    chosen = np.random.default_rng(2).choice(bank.n_features, 50, replace=False)
    small = bank.select_features(chosen.tolist())
    assert small.features.tolist() == sorted(chosen.tolist())
    assert np.array_equal(kernel_features(X, small), whole[:, small.features])
    smaller = small.select_features(range(0, 50, 7))
    assert np.array_equal(kernel_features(X, smaller), whole[:, smaller.features])
    rocket = KernelBank.from_aeon(fitted("rocket", X))
    with pytest.raises(ValueError, match="kernel 1 has two features, and only one"):
        rocket.select_features([0, 1, 2])
    assert rocket.select_features([4, 5]) == rocket.select([2])


@pytest.mark.parametrize("kind", ["rocket", "minirocket"])
def test_a_bank_is_kept(kind: str, tmp_path: Path) -> None:
    X = series((6, 2, 40))
    bank = KernelBank.from_aeon(fitted(kind, X)).select(range(3, 80, 2))
    kernel_features(X, bank)
    bank.save(tmp_path / "bank.npz")
    for other in (KernelBank.load(tmp_path / "bank.npz"), pickle.loads(pickle.dumps(bank))):
        assert other == bank
        assert hash(other) == hash(bank)
        assert np.array_equal(kernel_features(X, other), kernel_features(X, bank))
    with pytest.raises(AttributeError, match="immutable"):
        bank.kind = "other"
    with pytest.raises(ValueError, match="read-only"):
        bank.arrays["dilation"][0] = 1
