"""Optimizers that hold others, written as in the libraries that users take them from."""

from __future__ import annotations

import gc
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import sparseconv as sc
from sparseconv.pruning import Magnitude


class SAM(Optimizer):
    """Climbs along the gradient, takes the gradient there, comes back and steps."""

    def __init__(self, params: Any, base: type[Optimizer], **options: Any) -> None:
        super().__init__(params, {"rho": 0.05, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> None:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        held = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["move"] = 0.05 * p.grad / (norm + 1e-12)
            p.add_(self.state[p]["move"])
        with torch.enable_grad():
            closure()
        for p in held:
            p.sub_(self.state[p]["move"])
        self.base_optimizer.step()


class Lookahead(Optimizer):
    """Holds one, its groups, state and a method, and slow weights in lists like its groups."""

    def __init__(self, optimizer: Optimizer) -> None:  # without that of Optimizer
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.state: Any = defaultdict(dict)
        self.fast_state, self.zero_grad = optimizer.state, optimizer.zero_grad  # type: ignore[method-assign]
        self._optimizer_step_pre_hooks: Any = OrderedDict()
        self._optimizer_step_post_hooks: Any = OrderedDict()
        self.slow_weights = [[p.clone().detach() for p in g["params"]] for g in self.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        self.optimizer.step(lambda: 0.0)
        with torch.no_grad():
            for group, slow in zip(self.param_groups, self.slow_weights, strict=True):
                for p, q in zip(group["params"], slow, strict=True):
                    q.add_(p - q, alpha=0.5)
                    p.copy_(q)
                    self.state[p].setdefault("mean", torch.zeros_like(p)).lerp_(p, 0.1)


class Several(Optimizer):
    """Holds optimizers in a list; its groups are theirs."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return [group for each in self.optimizers for group in each.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        for each in self.optimizers:
            each.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for each in self.optimizers:
            each.zero_grad(set_to_none)


HOLDING: dict[str, Callable[[Any], Optimizer]] = {
    "Adam": lambda p: Adam(p, 1e-2),
    "SAM": lambda p: SAM(p, Adam, lr=1e-2),
    "Lookahead": lambda p: Lookahead(Adam(p, 1e-2)),
    "Lookahead twice": lambda p: Lookahead(Lookahead(Adam(p, 1e-2))),
    "several": lambda p: Several(*(Adam([each], 1e-2) for each in p)),
}
each_optimizer = pytest.mark.parametrize("name", HOLDING)
X, Y = torch.randn(12, 2, 40, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


def network(conv: Callable[..., nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = conv(2, 16, 9), conv(16, 16, 5)
    head = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(first, nn.BatchNorm1d(16), nn.ReLU(), second, nn.ReLU(), *head)


def step(model: nn.Module, optimizer: Optimizer) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    optimizer.step(closure)


def state(optimizer: Optimizer, model: nn.Module) -> list[Tensor]:
    """Every tensor that the garbage collector finds in it, but parameters and gradients."""
    stack, seen = [optimizer], {id(x) for p in model.parameters() for x in (p, p.grad)}
    found = []
    while stack:
        held: Any = stack.pop()
        if id(held) in seen or isinstance(held, type | nn.Module) or hasattr(held, "__globals__"):
            continue
        seen.add(id(held))
        if isinstance(held, Tensor):
            found += [held] * (held.numel() > 1)
        else:
            stack += gc.get_referents(held)
    return found


@pytest.mark.tool("optimizers that contain optimizers (SAM, Lookahead, lists)", "works")
@each_optimizer
def test_the_successor_trains_the_pruned_network(name: str) -> None:
    model = network(nn.Conv1d)
    optimizer = HOLDING[name](model.parameters())
    step(model, optimizer)
    small, report = sc.prune_filters(model, X, Magnitude(2), fraction=0.5, optimizer=optimizer)
    assert report.optimizer is not None
    before, after = state(optimizer, model), state(report.optimizer, small)
    assert len(after) == len(before)
    assert {id(x) for x in after}.isdisjoint(map(id, before))
    for old in before:
        if old.shape == model[0].weight.shape:
            kept = old[list(report.layers[0].kept)]
            assert any(kept.shape == new.shape and kept.equal(new) for new in after)
    small.train()
    whole, half = ([p.detach().clone() for p in m.parameters()] for m in (model, small))
    for _ in range(5):
        step(small, report.optimizer)
    moved = [(a - b).abs().max() > 1e-4 for a, b in zip(half, small.parameters(), strict=True)]
    assert all(moved)
    assert len(moved) == 8
    assert all(a.equal(b) for a, b in zip(whole, model.parameters(), strict=True))


@each_optimizer
def test_all_that_is_kept_follows_a_change_of_pattern(name: str) -> None:
    model = network(lambda *shape: sc.SparseConv1d(*shape, density=0.3))
    optimizer = HOLDING[name](model.parameters())
    dst = sc.DSTScheduler(model, optimizer, update_every=3, end_step=9)
    for _ in range(3):
        step(model, optimizer)
        before = [(x, x.clone()) for x in state(optimizer, model)]
        masks = [model[i].pattern.to_mask() for i in (0, 3)]
        moved = dst.step()
    assert moved
    followed = 0
    for layer, mask in zip((model[0], model[3]), masks, strict=True):
        for now, old in before:
            if now.shape == layer.values.shape:
                whole = torch.zeros(mask.shape).masked_scatter(mask, old)
                kept = whole[layer.pattern.to_mask()].where(layer.values != 0, 0)  # grown ones are
                assert now.equal(kept)
                assert not now.equal(old)
                followed += 1
    assert followed >= 4


class Knowing(SGD):
    """Holds the model, a method of it, and its weights under another name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), 0.1)
        self.model, self.run = model, model.forward
        self.data = [p.data for p in model.parameters()]


def test_what_an_optimizer_knows_of_the_model_and_its_scheduler() -> None:
    model = network(nn.Conv1d)
    optimizer = Knowing(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step(model, optimizer)
    schedule.step()
    small, report = sc.prune_filters(model, X, Magnitude(2), fraction=0.5, optimizer=optimizer)
    new: Any = report.optimizer
    schedule.optimizer = new
    assert new.model is small
    assert new.run.__self__ is small
    step(small, new)
    schedule.step()
    assert new.param_groups[0]["lr"] == 0.025
    assert optimizer.param_groups[0]["lr"] == 0.05
    places = [x.data_ptr() for x in new.data]
    assert places == [p.data_ptr() for p in small.parameters()]
