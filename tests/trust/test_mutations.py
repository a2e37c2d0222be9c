"""Damaged patterns, state dicts and checkpoints load validly or are refused; none crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from child import run_child

from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("what", "usual", "long"),
    [("patterns", 1_500, 50_000), ("states", 600, 20_000), ("checkpoints", 80, 10_000)],
)
def test_what_is_damaged_loads_or_is_refused(
    what: str,
    usual: int,
    long: int,
    tmp_path: Path,
    campaign: Callable[[int, int], int],
    count_cases: Callable[[int], None],
) -> None:
    cases = campaign(usual, long)
    found = run_child("mutations", what, 0, cases, tmp_path)
    assert found["faults"] == []
    assert min(found["refused"], found["loaded"]) > cases / 20, "one of the two hardly ran"
    count_cases(cases)
