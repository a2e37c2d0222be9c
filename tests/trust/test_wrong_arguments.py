"""No argument makes an op read or write outside its buffers: it raises, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from child import run_child

from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")


@pytest.mark.promise("P5")
def test_every_wrong_argument_of_every_op(
    campaign: Callable[[int, int], int], count_cases: Callable[[int], None]
) -> None:
    found = run_child("wrong_arguments", 0, campaign(2_000, 100_000))
    assert found["faults"] == []
    count_cases(found["calls"])
    assert found["calls"] > 5_000
