"""The ops beside pages that nobody may touch, and on tensors whose offsets no int32 holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from child import TESTS, run_child

from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
def test_inputs_flush_against_guard_pages(
    campaign: Callable[[int, int], int], count_cases: Callable[[int], None]
) -> None:
    found = run_child("guarded", 0, campaign(100, 5_000))
    assert found["faults"] == []
    count_cases(found["calls"])


def test_one_byte_too_many_beside_a_guard_page_is_noticed() -> None:
    command = [sys.executable, str(TESTS / "guarded.py"), "control"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(TESTS.parent)}, capture_output=True, check=False
    )
    assert done.returncode < 0, done.stderr.decode()


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
def test_offsets_that_no_int32_holds(tmp_path: Path, count_cases: Callable[[int], None]) -> None:
    found = run_child("far_apart", "strides", tmp_path)
    assert found["faults"] == []
    count_cases(found["calls"])


@pytest.mark.promise("P5")
@pytest.mark.parametrize("what", ["fprop", "dgrad", "wgrad", "bytes"])
def test_results_of_more_elements_than_an_int32_counts(
    what: str,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    count_cases: Callable[[int], None],
) -> None:
    if not pytestconfig.getoption("--campaign"):
        pytest.skip("takes 5 GB of memory and a minute: in campaigns only")
    found = run_child("far_apart", what, tmp_path)
    assert found["faults"] == []
    count_cases(found["calls"])
