"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sparseconv.measure.machine import threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sharing out work this small costs more than the work."""
    with threads(1):
        yield
