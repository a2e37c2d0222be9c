"""Profiling leaves no trace: in the model, in its input, in the generators, however it ends."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from fake_clock import fake_clock
from model_state import everything
from nested import X, nested
from torch import Tensor, nn

from sparseconv import SparseConv1d
from sparseconv.profiling import profile


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch)


@pytest.mark.promise("P8")
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = nested()
    model.inner.eval()
    model(X)["out"][0].sum().backward()
    model.failing = fails
    before = everything(model)
    with pytest.raises(ValueError, match="the head is broken") if fails else nullcontext():
        profile(model, X)
    assert everything(model) == before


@pytest.mark.promise("P8")
def test_the_input_is_left_as_it_was() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SparseConv1d(3, 4, 5)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            y = self.conv(x)
            x.mul_(scale)
            return y

    x = X.clone()
    found = profile(Greedy(), (x, 3.0), backward=False)
    assert torch.equal(x, X)
    assert len(found.layers) == 1
