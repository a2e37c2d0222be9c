"""Banks: how they are kept, their way from aeon and back, and aeon's features."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_banks import Problem

from benchmarks.bench.random_kernels import feature_limits
from sparseconv.rocket import KernelBank, kernel_features
from sparseconv.rocket.bank import KINDS
from sparseconv.rocket.features import normalised

ROCKET, MINI = Problem("rocket", 2).bank, Problem("minirocket", 6).bank
X = np.random.default_rng(0).normal(size=(9, 3, 60)).astype(np.float32)


@pytest.mark.parametrize("bank", [ROCKET, MINI], ids=KINDS)
def test_copies_are_equal_banks(
    bank: KernelBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = np.random.default_rng(0).normal(size=(9, bank.series_channels, bank.series_length))
    features = kernel_features(series, bank)
    bank.save(tmp_path / "bank.npz")
    copies = copy.copy(bank), copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))
    for other in (*copies, KernelBank.load(tmp_path / "bank.npz")):
        assert other == bank
        assert np.array_equal(kernel_features(series, other), features)
        with pytest.raises(ValueError, match="read-only"):
            other.arrays["dilation"][0] = 1
    others = [replace(bank, normalise=not bank.normalise), bank.select([0])]
    others += [replace(bank, features=bank.features + 2)]
    others += [replace(bank, series_length=bank.series_length + 1)]
    assert bank not in [*others, ROCKET if bank is MINI else MINI, None, 3]
    monkeypatch.setattr("sparseconv.rocket.features.extension", None)
    lowest, highest = feature_limits(series.astype(np.float32), bank)
    features = kernel_features(series, bank)  # of the reference
    assert ((lowest <= features) & (features <= highest)).all()


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def wrong_files(folder: Path) -> list[dict[str, Any]]:
    content = {"format": "sparseconv kernel bank, version 1", **MINI.content()}
    code, a, length = np.array([Evil(folder / "ran")]), MINI.arrays, MINI.series_length
    wrong = [
        ("format", "sparseconv rocket model, version 1"), ("format", code),
        ("kind", "hydra"), ("kind", code), ("weights", code), ("taps", code),
        ("series_length", 50.5), ("series_length", -length), ("biases", a["biases"][1:]),
        ("features", MINI.features[1:]), ("taps", a["taps"] + 84), ("padded", a["padded"] + 2),
        ("dilation", a["dilation"] * 1.0), ("dilation", a["dilation"] + length),
        ("channels", a["channels"] - MINI.series_channels),
        ("channels", a["channels"] + MINI.series_channels),
    ]  # fmt: skip
    without = {name: content[name] for name in content if name != "taps"}
    return [without, *(content | {name: value} for name, value in wrong)]


@pytest.mark.promise("P5")
def test_files_that_are_no_banks(tmp_path: Path, count_cases: Callable[[int], None]) -> None:
    path = tmp_path / "bank.npz"
    ROCKET.save(path)
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", np.array([Evil(tmp_path / "ran")]))
    contents = [
        (tmp_path / "one.npy").read_bytes(),
        pickle.dumps(Evil(tmp_path / "ran")),
        b"a bank",
    ]
    contents += [whole[:n] for n in range(0, len(whole), 97)]
    for wrong in wrong_files(tmp_path):
        with path.open("wb") as file:
            np.savez(file, allow_pickle=True, **wrong)
        contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bank\.npz"):
            KernelBank.load(path)
    assert not (tmp_path / "ran").exists()
    count_cases(len(contents))
    with pytest.raises(OSError, match=r"none\.npz"):
        KernelBank.load(tmp_path / "none.npz")


@pytest.fixture(scope="module")
def aeon() -> Any:
    return pytest.importorskip("aeon.transformations.collection.convolution_based")


def test_minirocket_banks_that_aeon_cannot_have(aeon: Any) -> None:
    bank = KernelBank.from_aeon(aeon.MiniRocket(700, random_state=0).fit(X))
    for other in (
        bank.select_features(range(1, bank.n_features)),
        bank.select(range(84, 168)),  # all kernels of the second dilation, padded the other way
        replace(bank, arrays={**bank.arrays, "taps": bank.arrays["taps"][::-1]}),
        replace(bank, normalise=True),
    ):
        with pytest.raises(ValueError, match="84 kernels"):
            other.to_aeon()
    first = bank.select(range(84))
    assert KernelBank.from_aeon(first.to_aeon()) == first


def test_selections() -> None:
    for bank in (ROCKET, MINI):
        last = bank.n_kernels - 1
        assert bank.select([last, 0]) == bank.select([0, last])
        assert bank.select(range(bank.n_kernels)) == bank
        assert bank.select(np.arange(bank.n_kernels) == last) == bank.select([last, last])
        assert bank.select([last]).select_features(range(2)).features[-1] < bank.n_features
    assert ROCKET.select_features([4, 5]) == ROCKET.select([2])
    small = MINI.select_features([5, 1, 3])
    assert small.features.tolist() == [1, 3, 5]
    assert small.select_features([2, 0]).features.tolist() == [1, 5]


SHAPES = [(5, 1, 30), (1, 1, 150), (35, 1, 150), (17, 1, 700), (33, 3, 60), (20, 12, 90)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("MiniRocket", {}), ("Rocket", {"normalise": True}), ("Rocket", {"normalise": False})],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_are_aeons(
    shape: tuple[int, ...], name: str, options: dict[str, bool], aeon: Any
) -> None:
    X = np.random.default_rng(0).normal(1, 3, size=shape).astype(np.float32)
    bank = KernelBank.from_aeon(getattr(aeon, name)(300, random_state=0, **options).fit(X))
    lowest, highest = feature_limits(X, bank)  # of MiniROCKET the same
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
