"""Features of random kernels: aeon's, of series in any memory and of any numbers."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bench.bounds import feature_limits
from sparseconv.rocket import KernelBank, kernel_features
from sparseconv.rocket.features import normalised
from sparseconv.rocket.reference import kernel_features_reference

aeon = pytest.importorskip("aeon.transformations.collection.convolution_based")

SHAPES = [(5, 1, 30), (1, 1, 150), (35, 1, 150), (17, 1, 700), (33, 3, 60), (20, 12, 90)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_minirocket_is_aeons(shape: tuple[int, ...]) -> None:
    X = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    bank = KernelBank.from_aeon(aeon.MiniRocket(300, random_state=0).fit(X))
    got, back = kernel_features(X, bank), bank.to_aeon()
    assert KernelBank.from_aeon(back) == bank
    assert np.array_equal(got, back.transform(X))
    assert np.array_equal(got, kernel_features_reference(X, bank))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rocket_is_aeons(shape: tuple[int, ...], normalise: bool) -> None:
    X = np.random.default_rng(0).normal(1, 3, size=shape).astype(np.float32)
    bank = KernelBank.from_aeon(aeon.Rocket(300, normalise=normalise, random_state=0).fit(X))
    lowest, highest = feature_limits(X, bank)
    back = bank.to_aeon()
    assert KernelBank.from_aeon(back) == bank
    for features in (kernel_features(X, bank), back.transform(X)):
        assert ((lowest <= features) & (features <= highest)).all()


def test_normalised_series() -> None:
    X = np.random.default_rng(0).normal(3, 5, (40, 6, 101)).astype(np.float32)
    X[0], X[1, 2] = 0.1, 1e30  # constant ones become zeros
    found = normalised(X)
    assert np.array_equal(normalised(np.asfortranarray(X)), found)
    assert not found[0].any()
    assert not found[1, 2].any()
    np.testing.assert_allclose(found[2:].mean(2), 0, atol=1e-12)
    np.testing.assert_allclose(found[2:].std(2), 1)
    assert np.isfinite(normalised(3e38 * np.sign(X[2:4]))).all()


@pytest.mark.parametrize("length", [11, 13, 15, 31, 60, 127, 135, 1000])
def test_constant_channels_become_zeros(length: int) -> None:
    """Also where the mean of equal numbers in float64 is another number."""
    values = np.array([36.6, 1000.1, -0.1, 1e-30, 1e30, *np.random.default_rng(0).normal(size=500)])
    X = np.repeat(values[:, None], length, 1)[:, None]
    assert (X.mean(2) != X[..., 0]).any()  # else nothing is tested
    for dtype in (np.float64, np.float32, np.longdouble):
        assert not normalised(X.astype(dtype)).any()
    # A difference that float64 holds; of so small a spread its rounding is up to the tolerance.
    X[..., 0] *= 1 + 1e-9
    np.testing.assert_allclose(normalised(X).std(2), 1, rtol=1e-4)
