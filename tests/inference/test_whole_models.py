"""``optimize_for_inference``: models around a Sequential, that run it whole or take it apart."""

from __future__ import annotations

import pytest
import torch
from folded import conv, norms, settled
from model_state import everything
from torch import Tensor, nn

import sparseconv as sc


class Around(nn.Module):
    """A model around a Sequential whose norm can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(), nn.BatchNorm1d(4), nn.ReLU())
        self.again = [self.net]  # through a list, which registers nothing
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class RunsItWhole(Around):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1  # side effects
        for child in self.children():
            x = child(x) + x
        return self.again[0](x) * len(self.net)


class RunsEachByItself(Around):
    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for layer in self.net:
            x = layer(x)
            outputs.append(x)
        return torch.cat(outputs)


@pytest.mark.parametrize(("kind", "folded"), [(RunsItWhole, True), (RunsEachByItself, False)])
def test_models_around_a_sequential(kind: type[nn.Module], folded: bool) -> None:
    torch.manual_seed(0)
    inner = settled(kind())
    for model in (inner, nn.Sequential(nn.Sequential(inner), nn.Tanh())):
        before = everything(model)
        fast = sc.optimize_for_inference(model)
        assert everything(model) == before
        x = torch.randn(3, 4, 30)
        torch.testing.assert_close(fast(x), model(x))
        assert (norms(fast, x) == 0) == folded


@pytest.mark.promise("P7")
def test_scripted_and_compiled_models() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 30)
    plain = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    for model in (torch.jit.script(plain), torch.compile(plain, backend="eager")):
        fast = sc.optimize_for_inference(settled(model))
        assert torch.equal(fast(x), model(x))


def test_slices_and_single_modules_are_those_of_the_original() -> None:
    torch.manual_seed(0)
    model, x = settled(RunsItWhole()), torch.randn(3, 4, 30)
    fast = sc.optimize_for_inference(model)
    fast(x)
    assert list(map(type, fast.net)) == list(map(type, model.net))
    assert torch.equal(fast.net[:2](x), model.net[:2](x))
    assert torch.equal(fast.net[1](fast.net[0](x)), model.net[1](model.net[0](x)))
    sliced = fast.net[:2].eval()
    torch.testing.assert_close(sliced(x), model.net[:2](x))
    assert norms(sliced, x) == 0
    fast.net.append(nn.Tanh())
    torch.testing.assert_close(fast.net(x), model.net(x).tanh())
    del fast.net[1]
    torch.testing.assert_close(fast.net(x), model.net[0](x).relu().tanh())
