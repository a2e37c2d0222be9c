"""One thread for tests of small tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparseconv.measure.machine import threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors only: threads would wait for each other, and for those of other tests."""
    with threads(1):
        yield
