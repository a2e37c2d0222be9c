from __future__ import annotations

import dis
from collections.abc import Callable
from typing import Any, cast

import pytest
from blocks import CONV, NORM, POINTWISE, Ops
from torch import Tensor

from sparseconv.nn import block as block_module


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Ops:
    """The operations in the kernels' order of each graph that ran."""
    found: Ops = []
    made = block_module._made

    def watched(*how: Any) -> Callable[..., Tensor] | None:
        run = made(*how)
        if run is None:
            return None
        names = [str(i.argval) for i in dis.get_instructions(cast(Any, run).func)]
        ops = tuple(op for n in names for op in (CONV, NORM, POINTWISE) if n.endswith(f"_{op}"))
        return lambda *tensors: (found.append(ops), run(*tensors))[1]

    monkeypatch.setattr(block_module, "_made", watched)
    monkeypatch.setattr(block_module, "_graphs", {})
    return found
