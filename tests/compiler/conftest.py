from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from sparseconv.measure.machine import threads


@pytest.fixture(autouse=True)
def no_code_compiled_before() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    with threads(1):
        yield
    torch._dynamo.reset()
