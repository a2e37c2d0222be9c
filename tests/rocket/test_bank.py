"""Banks: what they refuse, how they are kept, and their way from aeon and back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_disk import check_every_write
from random_banks import KINDS, Problem, changed, feature_limits

from sparseconv.rocket import KernelBank, kernel_features

ROCKET, MINI = Problem("rocket", 2).bank, Problem("minirocket", 6).bank


def edited(bank: KernelBank, name: str, at: int, value: Any) -> dict[str, Any]:
    array = bank.arrays[name].copy()
    array[at] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "hydra"}, r"kind must be one of .*'minirocket'.*, but got 'hydra'"),
        ({"kind": "minirocket"}, "needs the array 'taps'"),
        ({"series_channels": 0}, r"series_channels must lie in \[1, 2\*\*31\), but got 0"),
        ({"series_length": -1}, r"series_length must lie in \[1, 2\*\*31\), but got -1"),
        ({"series_length": 2**70}, r"series_length must lie in \[1, 2\*\*31\)"),
        ({"series_length": 1}, "longer than series of 1 samples"),
        ({"features": np.arange(4.0)}, "features must be a vector of int64, .* float64"),
        ({"features": ROCKET.features[:-2]}, r"features must name \d+ columns"),
        ({"features": ROCKET.features - 2}, r"features must name \d+ columns, from 0 on"),
        ({"features": ROCKET.features[::-1]}, "in ascending order"),
        ({"features": ROCKET.features + 1}, "both columns of each kernel"),
        ({"features": 2 * ROCKET.features}, "both columns of each kernel"),
        ({"bias": ROCKET.arrays["bias"][None]}, "bias must be a vector of float32, .* shape"),
        ({"bias": ROCKET.arrays["bias"].astype(str)}, "bias must be a vector of float32"),
        ({"bias": ROCKET.arrays["bias"] * 1j}, "bias must be a vector of float32, .* complex"),
        ({"bias": ROCKET.arrays["bias"][1:]}, "entries of 'bias'"),
        ({"weights": ROCKET.arrays["weights"][1:]}, r"expected \d+ entries of 'weights', but got"),
        ({"channels": ROCKET.arrays["channels"][1:]}, r"expected \d+ entries of 'channels'"),
        ({"length": ROCKET.arrays["length"] * 1.0}, "length must be a vector of int32, .* float64"),
        ({"length": ROCKET.arrays["length"] + np.int64(2**32)}, "length must fit into int32"),
        (edited(ROCKET, "length", 1, 0), r"length must lie in \[1, 11\], but reaches from 0"),
        (edited(ROCKET, "length", 1, 12), r"length must lie in \[1, 11\], .* to 12"),
        (edited(ROCKET, "dilation", 0, 0), r"dilation must lie in \[1, .* reaches from 0"),
        (edited(ROCKET, "dilation", 0, 2**30), r"dilation must lie in .* to 1073741824"),
        (edited(ROCKET, "padding", 0, -1), "padding must lie in"),
        (edited(ROCKET, "padding", 0, 10**4), "kernel 0 is padded by more samples than it spans"),
        (edited(ROCKET, "n_channels", 0, 0), "n_channels must lie in"),
        (edited(ROCKET, "n_channels", 0, 99), "n_channels must lie in"),
        (edited(ROCKET, "channels", 0, 99), "channels must lie in"),
        (edited(ROCKET, "channels", 0, -1), "channels must lie in"),
        (edited(ROCKET, "weights", 3, np.nan), "weights must be finite"),
        (edited(ROCKET, "bias", 0, np.inf), "bias must be finite"),
        ({"bias": np.full(ROCKET.n_kernels, 1e300)}, "bias must be finite"),
        ({name: ROCKET.arrays[name][:0] for name in ROCKET.arrays}, "at least one kernel"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_rocket_kernels(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        changed(ROCKET, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (edited(MINI, "taps", 0, 84), r"taps must lie in \[0, 83\], .* to 84"),
        (edited(MINI, "padded", 0, 2), r"padded must lie in \[0, 1\]"),
        (edited(MINI, "n_biases", 0, 0), "n_biases must lie in"),
        (edited(MINI, "n_biases", 0, 10**4), r"expected \d+ entries of 'biases'"),
        ({"dilation": MINI.arrays["dilation"][::-1]}, "stand by ascending dilation"),
        (edited(MINI, "dilation", -1, 10**4), "is longer than series"),
        (edited(MINI, "biases", 0, -np.inf), "biases must be finite"),
    ],
)
def test_arrays_that_are_no_minirocket_kernels(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        changed(MINI, **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"series_length": 9.5}, "series_length must be an integer, but got 9.5"),
        ({"series_channels": "2"}, "series_channels must be an integer, but got '2'"),
        ({"normalise": "no"}, "normalise must be True or False, but got 'no'"),
        ({"normalise": 2}, "normalise must be True or False, but got 2"),
    ],
)
def test_facts_of_another_type(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        changed(MINI, **changes)


@pytest.mark.parametrize("select", [MINI.select, MINI.select_features, ROCKET.select])
def test_selections_that_name_no_kernels(select: Callable[[Any], KernelBank]) -> None:
    for wrong, says in (
        ([], "names none; a bank holds at least one"),
        ([1, 0, 1], "name 1 twice"),
        ([-1], r"must lie in \[0, \d+\), but hold -1 to -1"),
        ([0, 10**6], r"must lie in \[0, \d+\), but hold 0 to 1000000"),
        ([2**70], r"must lie in \[0, "),
    ):
        with pytest.raises(ValueError, match=says):
            select(wrong)
    for mistaken in (3, None, [1.5], "12", np.ones(9, bool), np.zeros((2, 2), int)):
        with pytest.raises(TypeError, match=r"must be (several )?integers, but got"):
            select(mistaken)


@pytest.mark.parametrize("bank", [ROCKET, MINI], ids=KINDS)
def test_copies_are_equal_banks(bank: KernelBank) -> None:
    for other in (copy.copy(bank), copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))):
        assert other == bank
        assert hash(other) == hash(bank)
        assert len({bank, other}) == 1
    others = [changed(bank, series_length=bank.series_length + 1)]
    others += [changed(bank, normalise=not bank.normalise), bank.select([0])]
    others += [changed(bank, features=bank.features + 2)]
    for name in ("bias", "weights", "biases"):
        others += [changed(bank, **edited(bank, name, -1, 0.125))] if name in bank.arrays else []
    assert bank not in [*others, ROCKET if bank is MINI else MINI, None, 3]
    assert str(bank.n_features) in repr(bank)
    for array in (*bank.arrays.values(), bank.features):
        with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
            array.flags.writeable = True


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_files_that_are_no_banks(tmp_path: Path) -> None:
    path, content = tmp_path / "bank.npz", {"format": "sparseconv kernel bank", "version": 1}
    content |= MINI.content()
    code = np.array([Evil(tmp_path / "ran")])
    for wrong, says in (
        ({}, "is no sparseconv kernel bank, or damaged"),
        ({**content, "format": "sparseconv rocket model"}, "is a sparseconv rocket model"),
        ({**content, "version": 2}, "expected .* of version 1, but .* version 2; use the release"),
        ({**content, "version": [1, 1]}, "or damaged"),
        ({**content, "kind": code}, "or damaged"),
        ({**content, "format": code}, "or damaged"),
        ({**content, "weights": code}, "or damaged"),
        ({**content, "kind": "hydra"}, "no usable kernel bank: kind must be one of"),
        ({**content, "normalise": 3}, "no usable kernel bank: normalise must be"),
        ({**content, "series_length": 50.5}, "no usable kernel bank: series_length must be"),
        ({**content, "series_length": [50, 60]}, "no usable kernel bank"),
        ({**content, "biases": MINI.arrays["biases"][1:]}, "no usable kernel bank: expected"),
        ({**content, "taps": MINI.arrays["taps"].view("V4")}, "no usable kernel bank: taps must"),
        ({name: content[name] for name in content if name != "taps"}, "needs the array 'taps'"),
    ):
        with path.open("wb") as file:
            np.savez(file, allow_pickle=True, **wrong)
        with pytest.raises(ValueError, match=says) as found:
            KernelBank.load(path)
        assert str(path) in str(found.value)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_cut_or_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "bank.npz"
    ROCKET.save(path)
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", ROCKET.arrays["weights"])
    np.save(tmp_path / "code.npy", np.array([Evil(tmp_path / "ran")]))
    others = [(tmp_path / name).read_bytes() for name in ("one.npy", "code.npy")]
    others += [pickle.dumps(Evil(tmp_path / "ran")), b"", b"a bank"]
    for content in (*others, *(whole[:n] for n in range(0, len(whole), 97))):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"bank.npz is no sparseconv kernel bank, or damaged"
        ) as found:
            KernelBank.load(path)
        assert "allow_pickle" not in str(found.value), "advice to run what is in the file"
    assert not (tmp_path / "ran").exists()
    for missing in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(OSError, match=missing.name):
            KernelBank.load(missing)


def test_a_save_that_fails_leaves_the_older_file(
    tmp_path: Path, count_cases: Callable[[int], None]
) -> None:
    path = tmp_path / "bank.npz"
    ROCKET.save(path)
    count_cases(check_every_write(lambda: MINI.save(path), path))
    assert KernelBank.load(path) == MINI
    for nowhere in (tmp_path / "none" / "bank.npz", tmp_path):
        with pytest.raises(OSError, match=nowhere.name):
            MINI.save(nowhere)
    assert [file.name for file in tmp_path.iterdir()] == ["bank.npz"]


X = np.random.default_rng(0).normal(size=(9, 3, 60)).astype(np.float32)


@pytest.fixture(scope="module")
def aeon() -> Any:
    return pytest.importorskip("aeon.transformations.collection.convolution_based")


@pytest.mark.parametrize("channels", [1, 3])
def test_minirocket_to_aeon_and_back(aeon: Any, channels: int) -> None:
    series = X[:, :channels]
    bank = KernelBank.from_aeon(aeon.MiniRocket(700, random_state=0).fit(series))
    back = bank.to_aeon()
    assert KernelBank.from_aeon(back) == bank
    assert np.array_equal(back.transform(series), kernel_features(series, bank))


@pytest.mark.parametrize("seed", range(30))
def test_rocket_to_aeon_and_back(aeon: Any, seed: int) -> None:
    problem = Problem("rocket", seed)
    bank = changed(problem.bank, normalise=False)
    back = bank.to_aeon()
    assert KernelBank.from_aeon(back) == bank
    series = problem.rng.normal(size=(5, bank.series_channels, bank.series_length))
    series = series.astype(np.float32)
    lowest, highest = feature_limits(series, bank)
    features = back.transform(series)
    assert ((lowest <= features) & (features <= highest)).all()
    bank = changed(bank, normalise=True)
    assert KernelBank.from_aeon(bank.to_aeon()) == bank


def test_minirocket_banks_that_aeon_cannot_have(aeon: Any) -> None:
    bank = KernelBank.from_aeon(aeon.MiniRocket(700, random_state=0).fit(X))
    swapped = bank.arrays["taps"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    for other in (
        bank.select_features(range(1, bank.n_features)),
        bank.select(range(84, 168)),  # all kernels of the second dilation, padded the other way
        changed(bank, taps=swapped),
        changed(bank, padded=1 - bank.arrays["padded"]),
        changed(bank, normalise=True),
    ):
        with pytest.raises(ValueError, match=r"has all 84 kernels .* compute them with"):
            other.to_aeon()
    first = bank.select(range(84))
    assert np.array_equal(first.to_aeon().transform(X), kernel_features(X, first))


def test_what_is_no_fitted_rocket(aeon: Any) -> None:
    classifiers = pytest.importorskip("aeon.classification.convolution_based")
    makers = aeon.Rocket, aeon.MiniRocket
    makers += classifiers.RocketClassifier, classifiers.MiniRocketClassifier
    for make in makers:
        with pytest.raises(ValueError, match=f"this {make.__name__} is not fitted; call fit first"):
            KernelBank.from_aeon(make())
    namesake = type("Rocket", (), {"kernels": (), "is_fitted": True})
    for other in (None, aeon.Rocket, namesake(), aeon.MultiRocket(84), classifiers.Arsenal()):
        with pytest.raises(TypeError, match=r"expected aeon's Rocket, .* fitted, but got"):
            KernelBank.from_aeon(other)


def test_classifiers_lend_their_kernels(aeon: Any) -> None:
    classifiers = pytest.importorskip("aeon.classification.convolution_based")
    y = np.arange(len(X)) % 2
    for make in (classifiers.RocketClassifier, classifiers.MiniRocketClassifier):
        fitted = make(n_kernels=200, random_state=0).fit(X, y)
        assert KernelBank.from_aeon(fitted) == KernelBank.from_aeon(fitted._transformer)
