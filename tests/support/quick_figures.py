"""Empty files for the figures of a run: drawing takes nine tenths of the time of a small one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparseconv.report import figures


@pytest.fixture(autouse=True, scope="module")
def quick_figures() -> Iterator[None]:
    """Draw none in the tests of this module; ``test_report`` does."""

    def empty(*arguments: object) -> Path:
        path = Path(str(arguments[-1]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    with pytest.MonkeyPatch.context() as patched:
        for name in ("learning_curve", "receptive_fields", "group_weights"):
            patched.setattr(figures, name, empty)
        yield
