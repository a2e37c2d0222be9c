"""What ``kernel_features`` takes for series and for ``out``, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_banks import KINDS, Problem, changed

from sparseconv.ops.backends import extension
from sparseconv.rocket import KernelBank, kernel_features
from sparseconv.rocket.features import normalised


@pytest.fixture(params=KINDS)
def bank(request: pytest.FixtureRequest) -> KernelBank:
    return changed(Problem(request.param, 6).bank, normalise=request.param == "rocket")


@pytest.fixture
def series(bank: KernelBank) -> Any:
    shape = 5, bank.series_channels, bank.series_length
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_series_in_any_memory(bank: KernelBank, series: Any) -> None:
    expected, before = kernel_features(series, bank), series.copy()
    unaligned = np.empty(series.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(series.shape)
    unaligned[:] = series
    frozen = series.copy()
    frozen.flags.writeable = False
    for same in (
        list(series), series.tolist(), torch.from_numpy(series), series.astype(">f4"),
        np.asfortranarray(series), np.repeat(series, 2, axis=2)[..., ::2],
        series[::-1].copy()[::-1], unaligned, frozen, series.astype(np.float64),
    ):  # fmt: skip
        assert np.array_equal(kernel_features(same, bank), expected)
    assert np.array_equal(series, before)
    assert kernel_features(series[:0], bank).shape == (0, bank.n_features)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float16", "longdouble"])
def test_series_of_other_numbers(dtype: str, bank: KernelBank, series: Any) -> None:
    other = (9 * series).astype(np.int8).astype(dtype)
    expected = kernel_features(other.astype(np.float32), bank)
    assert np.array_equal(kernel_features(other, bank), expected)


def test_one_channel_may_be_left_out() -> None:
    bank = Problem("minirocket", 2).bank
    assert bank.series_channels == 1
    X = np.random.default_rng(0).normal(size=(3, bank.series_length))
    assert np.array_equal(kernel_features(X, bank), kernel_features(X[:, None], bank))


def test_normalised_series() -> None:
    X = np.random.default_rng(0).normal(3, 5, (40, 6, 101)).astype(np.float32)
    X[0], X[1, 2] = 0.1, 1e30  # constant ones become zeros
    found = normalised(X)
    assert np.array_equal(normalised(np.asfortranarray(X)), found)
    assert not found[0].any()
    assert not found[1, 2].any()
    np.testing.assert_allclose(found[2:].mean(2), 0, atol=1e-12)
    np.testing.assert_allclose(found[2:].std(2), 1)
    huge = 3e38 * np.sign(X[2:4])
    assert np.isfinite(normalised(huge)).all()


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


def test_series_that_do_not_fit(bank: KernelBank, series: Any) -> None:
    _, channels, length = series.shape
    shape = rf"expected series of shape \(n_cases, {channels}, {length}\), .* pad or cut"
    nan, inf, large = series.copy(), series.copy(), series.astype(np.float64)
    nan[1, 0, 3], inf[-1, -1, -1], large[0, 0, 0] = np.nan, -np.inf, 1e300
    for wrong, says in (
        (series[:, :, 1:], shape),
        (series[:, 1:], shape),
        (series[:, 0], shape),
        (series[0, 0], rf"but got \({length},\)"),
        (series[None], shape),
        (None, shape),
        ([series[0], series[1, :, 1:]], "but got several shapes; pad or cut"),
        (series.astype(str), "of real numbers, but got dtype <U"),
        (series > 0, "of real numbers, but got dtype bool"),
        (series * 1j, "of real numbers, but got dtype complex"),
        (series.astype(object), "of real numbers, but got dtype object"),
        (nan, "finite in float32, .* numpy.nan_to_num"),
        (inf, "finite in float32, .* rescale"),
        (large, "finite in float32, .* rescale"),
    ):
        with pytest.raises(ValueError, match=says):
            kernel_features(wrong, bank)


def test_out_that_does_not_fit(bank: KernelBank, series: Any) -> None:
    good = np.empty((len(series), bank.n_features), np.float32)
    assert kernel_features(series, bank, out=good) is good
    frozen, unaligned = good.copy(), np.empty(good.nbytes + 1, np.uint8)[1:]
    frozen.flags.writeable = False
    for wrong, says in (
        (good.astype(np.float64), "but got float64 of shape"),
        (good.astype(">f4"), "but got >f4 of shape"),
        (good[1:], "but got float32 of shape"),
        (np.asfortranarray(good), "not C-contiguous"),
        (np.repeat(good, 2, axis=1)[:, ::2], "not C-contiguous"),
        (unaligned.view(np.float32).reshape(good.shape), "aligned"),
        (frozen, "writeable"),
        (good.tolist(), "but got list"),
        (torch.from_numpy(good), "but got Tensor"),
    ):
        with pytest.raises(ValueError, match=rf"expected out to be .* of shape .*{says}"):
            kernel_features(series, bank, out=wrong)


def test_out_in_the_memory_of_the_series() -> None:
    bank = Problem("minirocket", 6).bank
    memory = np.zeros((2, bank.series_channels, bank.series_length), np.float32)
    out = memory.reshape(-1)[: 2 * bank.n_features].reshape(2, -1)
    with pytest.raises(ValueError, match="out in memory of its own, but it overlaps the series"):
        kernel_features(memory, bank, out=out)


@pytest.mark.parametrize("other", [None, "bank.npz", {}, KernelBank])
def test_what_is_no_bank(other: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a KernelBank, but got .*from_aeon"):
        kernel_features(np.zeros((2, 1, 30)), other)


@pytest.mark.skipif(extension is None, reason="the C++ extension is not built")
def test_an_instruction_set_that_is_none(
    bank: KernelBank, series: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECONV_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match=r"SPARSECONV_CPU_ISA must be one of .* but got 'sse9'"):
        kernel_features(series, bank)
