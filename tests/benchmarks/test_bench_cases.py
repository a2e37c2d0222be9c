"""The registry of cases: each builds what it says, twice the same, and the suites are complete."""

from __future__ import annotations

import pytest

from benchmarks.bench import cases
from benchmarks.bench.cases import CASES, SUITES, WITHOUT_CASES, select


def test_every_suite_has_cases_and_every_name_is_one() -> None:
    assert {case.suite for case in CASES.values()} | {*WITHOUT_CASES} == set(SUITES)
    assert len(CASES) == len(list(cases._all()))
    assert all(case.is_valid for case in CASES.values())
    assert {case.suite for case in select(["batch", "dtype"])} == {"batch", "dtype"}
    assert [case.name for case in select(names=["packing"])] == ["packing"]


@pytest.mark.parametrize(
    ("name", "nnz"),
    [
        ("dsn_prefix_L24", 34459),
        ("dsn_evolved_L2709", 34459),
        ("ucr2018_GunPoint_first", 732),
        ("uci_HAR_S50", 86150),
        ("uci_EEG2_S90", 17229),
        ("uci_HAR_dense", 258453),
        ("uci_HAR_ungrouped", 51690),
        ("uea_JapaneseVowels", 27150),
        ("trained_first_N5_L150", 732),
        ("trained_last_N16_L128", 34459),
        ("packing", 47),
    ],
)
def test_active_weights_of_published_layers(name: str, nnz: int) -> None:
    """The number of the paper's counting rule: int(kernels * taps * (1 - S)) for each group."""
    assert CASES[name].make_pattern().nnz == nnz
