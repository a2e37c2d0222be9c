"""``optimize_for_inference``: the copy follows every change, and models around it compute the same.

Each change is made to the copy, whose folded weights are in use, and to the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from dst_runs import scheduled, train_step
from folded import conv, norms, original_and_copy, settled
from model_state import everything
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.nn.block import Block

X = torch.randn(3, 4, 30, generator=torch.Generator().manual_seed(1))


def make(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    sparse = SparseConv1d(4, 6, 3, padding=1, density=0.5)
    layers = (sparse, nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4))
    return kind(*layers)


def fine_tuned(model: nn.Sequential) -> None:
    model.requires_grad_(True)  # in eval mode: with frozen statistics
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model(X).square().sum().backward()
    with torch.no_grad():
        model(X)  # must not fold what the step is about to change
    optimizer.step()
    model.requires_grad_(False)


def norm_in_training(model: nn.Sequential) -> None:
    model[1].train()  # the statistics follow, and torch does not count that
    for _ in range(3):
        model(X + 3)
    model[1].eval()


def another_state(model: nn.Sequential) -> dict[str, Tensor]:
    torch.manual_seed(7)
    other = settled(copy.deepcopy(model))
    in_place(other)
    return other.state_dict()


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)


def new_pattern(model: nn.Sequential) -> None:
    mask = ~model[0].pattern.to_mask()
    mask[0, 0, 0] = True
    pattern = sc.KernelCSR.from_mask(mask)
    model[0].set_pattern(pattern, torch.linspace(-1, 1, pattern.nnz))


def dst_update(model: nn.Sequential) -> None:
    model.requires_grad_(True)
    _, optimizer, dst = scheduled(model, grow="gradient")
    for _ in range(2):
        train_step(model, optimizer, X)
        dst.step()
    model.requires_grad_(False)


def unseen_write(model: nn.Sequential) -> None:
    for parameter in model.parameters():
        parameter.data.add_(0.1)
    model[1].running_mean.numpy()[:] += 1
    model.eval()


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "fused Adam": fine_tuned,
    "norm in training": norm_in_training,
    "load_state_dict": lambda m: m.load_state_dict(another_state(m)),
    "in place": in_place,
    "data": lambda m: setattr(m[0].values, "data", m[0].values.data * 1.5),
    "a write that is not counted, and eval()": unseen_write,
    "set_pattern": new_pattern,
    "DST": dst_update,
    "eps": lambda m: setattr(m[1], "eps", 1.0),
    "padding": lambda m: setattr(m[0], "padding", (3, 0)),
    "new parameter": lambda m: setattr(m[1], "weight", nn.Parameter(torch.linspace(-1, 1, 6))),
    "no affine": lambda m: (setattr(m[1], "weight", None), setattr(m[1], "bias", None)),
    "new norm": lambda m: m.__setitem__(1, nn.BatchNorm1d(6).eval()),
    "new layer": lambda m: m.__setitem__(0, SparseConv1d(4, 6, 1, padding=2, density=1.0)),
    "less modules": lambda m: m.__delitem__(2),
    "another class": lambda m: setattr(m[2], "__class__", nn.Tanh),
    "pruned": lambda m: prune.l1_unstructured(m[3], "weight", 40),
    "not finite any more": lambda m: m[1].running_var.fill_(-1),
}
ONE_NORM_IS_LEFT = ("pruned", "not finite any more")


@pytest.mark.parametrize("kind", [nn.Sequential, Block])
@pytest.mark.parametrize("name", CHANGES)
def test_the_copy_follows_every_change(name: str, kind: type[nn.Sequential]) -> None:
    model, fast = original_and_copy(lambda: make(kind))
    before = fast(X)
    assert norms(fast, X) == 0
    for network in (model, fast):
        torch.manual_seed(2)
        CHANGES[name](network)
    wanted = model.requires_grad_(False)(X)
    torch.testing.assert_close(fast(X), wanted, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert before.shape != wanted.shape or not torch.allclose(before, wanted, atol=1e-2)
    # A new parameter asks for gradients.
    left = norms(fast.requires_grad_(False), X)
    assert left == (1 if name in ONE_NORM_IS_LEFT else 0)


def test_tensors_of_inference_mode_are_never_folded() -> None:
    with torch.inference_mode():
        model, fast = original_and_copy(make)
        torch.testing.assert_close(fast(X), model(X))
        assert norms(fast, X) == 0, "the copy holds ordinary ones"
        for network in (model, fast):
            network.double().float()
            fast(X)
            network[1].running_mean.add_(1)
        assert fast[1].running_mean.is_inference()
        assert torch.equal(fast(X), model(X))
        assert norms(fast, X) == norms(model, X) == 2


@pytest.mark.promise("P8")
def test_threads_share_a_copy() -> None:
    model, fast = original_and_copy(make)
    xs = [X * i for i in range(40)]
    wanted = [model(x) for x in xs]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            fast.eval()  # all fold at once
            for got, want in zip(threads.map(fast, xs), wanted, strict=True):
                torch.testing.assert_close(got, want)


# Models around a Sequential.


class RunsItWhole(nn.Module):
    """A model around a Sequential whose norm can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(), nn.BatchNorm1d(4), nn.ReLU())
        self.again = [self.net]  # through a list, which registers nothing
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1  # side effects
        for child in self.children():
            x = child(x) + x
        return self.again[0](x) * len(self.net)


@pytest.mark.promise("P7")
def test_scripted_and_compiled_models() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 30)
    plain = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    for model in (torch.jit.script(plain), torch.compile(plain, backend="eager")):
        fast = sc.optimize_for_inference(settled(model))
        assert torch.equal(fast(x), model(x))


def test_models_around_a_sequential_its_slices_and_modules() -> None:
    torch.manual_seed(0)
    model, x = settled(RunsItWhole()), torch.randn(3, 4, 30)
    before = everything(model)
    fast = sc.optimize_for_inference(model)
    assert everything(model) == before
    torch.testing.assert_close(fast(x), model(x))
    assert norms(fast, x) == 0
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
