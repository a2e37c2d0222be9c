from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from blocks import CONV, NORM, POINTWISE, Ops
from torch import Tensor

from sparseconv.nn import block as block_module


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Ops:
    """The operations in the kernels' order of each graph that ran."""
    found: Ops = []
    made, rewrite, rewritten = block_module._made, block_module.rewrite, []

    def rewriting(*how: Any) -> Any:
        graph, report = rewrite(*how)
        names = [getattr(node.target, "__name__", "") for node in graph.nodes]
        rewritten.append(tuple(name for name in names if name in (CONV, NORM, POINTWISE)))
        return graph, report

    def watched(*how: Any) -> Callable[..., Tensor] | None:
        run = made(*how)
        if run is None:
            return None
        ops = rewritten[-1]
        return lambda *tensors: (found.append(ops), run(*tensors))[1]

    monkeypatch.setattr(block_module, "rewrite", rewriting)
    monkeypatch.setattr(block_module, "_made", watched)
    monkeypatch.setattr(block_module, "_graphs", {})
    return found
