"""The programs that several tests compile, each exported once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from edge_networks import export


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """``exported(name, weights)``: the folder of a network's program, which no test changes."""
    return functools.cache(
        lambda name, weights: export(name, tmp_path_factory.mktemp(name) / weights, weights)
    )
