"""Profiling leaves no trace: in the model, in its input, in the generators, however it ends."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_clock import fake_clock
from model_state import everything
from nested import Nested, X, nested
from torch import Tensor, nn

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.profiling import profile, stopwatch


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch)


def prepared() -> Nested:
    model = nested()
    model.inner.eval()
    model(X)["out"][0].sum().backward()
    model.first.register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    return model


@pytest.mark.promise("P8")
@pytest.mark.parametrize("how", ["training", "inference", "fails", "stopped"])
def test_the_model_is_left_as_it_was(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = stopwatch.interleave

    def stop(candidates: Mapping[str, Any], **options: Any) -> Any:
        times = fake(candidates, **options)
        if "layers inference" in candidates:
            raise KeyboardInterrupt
        return times

    if how == "stopped":
        monkeypatch.setattr(stopwatch, "interleave", stop)
    model = prepared()
    model.failing = how == "fails"
    before = everything(model)
    raised = {
        "fails": pytest.raises(ValueError, match="the head is broken"),
        "stopped": pytest.raises(KeyboardInterrupt),
    }
    with raised.get(how, nullcontext()):
        profile(model, X, backward=how != "inference")
    assert everything(model) == before
    if how != "fails":
        model(X)
        assert everything(model) != before  # the comparison sees what a forward pass does


@pytest.mark.promise("P8")
def test_gradient_growth_sees_nothing_of_it() -> None:
    """A ``DSTScheduler`` that gathers dense gradients grows the same weights as without."""
    grown = []
    for profiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(SparseConv1d(3, 4, 5), nn.ReLU(), SparseConv1d(4, 4, 5))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        dst = sc.DSTScheduler(model, optimizer, update_every=1, end_step=5, grow="gradient")
        for _ in range(2):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            if profiled:
                profile(model, X)
            optimizer.step()
            dst.step()
        grown.append([layer.pattern.to_mask().tolist() for layer in model[::2]])
    assert grown[0] == grown[1]


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
