"""``sc.prune_filters(..., optimizer=)``: its state follows the filters that are kept."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import Drawn, classifier, data, silenced
from random_networks import RandomNetwork
from torch import nn
from torch.utils._pytree import tree_leaves

import sparseconv as sc
from sparseconv.pruning import WHC

X, _ = data()


def optimizers(model: nn.Module) -> Iterator[torch.optim.Optimizer]:
    first, *others = [p for p in model.parameters() if p.requires_grad]
    groups: Any = [{"params": others}, {"params": [first], "lr": 0.5}]
    yield torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.1)
    yield torch.optim.Adam(model.parameters(), torch.tensor(0.1), amsgrad=True)
    yield torch.optim.AdamW(groups, 0.1)
    yield torch.optim.RMSprop(groups, 0.1, momentum=0.5, centered=True)
    yield torch.optim.Adagrad(groups, 0.1)


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("seed", [0, 5])
def test_an_optimizer_goes_on_as_if_its_filters_were_silent(seed: int, which: int) -> None:
    network = RandomNetwork(seed)
    model, x, drawn = network.model, network.example, Drawn(seed, False)
    next(model.parameters()).requires_grad_(False)
    optimizer = list(optimizers(model))[which]
    start = copy.deepcopy(model.state_dict())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (model(x) * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        optimizer.step()

    step(model, optimizer)
    model.load_state_dict(start)  # whole numbers again: gradients are exact
    # A network of the parameters' positions, pruned alike, tells where each entry comes from.
    marked = copy.deepcopy(model)
    for parameter in marked.parameters():
        parameter.data = torch.arange(parameter.numel()).view_as(parameter).double()
    positions = sc.prune_filters(marked, x, drawn, fraction=0.5).model
    pruned, report = sc.prune_filters(model, x, drawn, fraction=0.5, optimizer=optimizer)
    assert report.parameters[1] < report.parameters[0]
    both = [x for each in (optimizer, report.optimizer) for x in tree_leaves({**each.state})]
    places = [x.data_ptr() for x in both if isinstance(x, torch.Tensor)]
    assert len(set(places)) == len(places)  # no moment is in both

    memo: dict[int, Any] = {}
    whole = silenced(model, report, memo)
    followed = copy.deepcopy(optimizer, memo)
    step(whole, followed)
    assert type(report.optimizer) is type(optimizer)
    step(pruned, report.optimizer)
    for old, new, where in zip(
        whole.parameters(), pruned.parameters(), positions.parameters(), strict=True
    ):
        assert torch.equal(new, old.flatten()[where.long()])
        assert new.requires_grad == old.requires_grad
        for key, value in followed.state.get(old, {}).items():
            wanted = value.flatten()[where.long()] if value.shape == old.shape else value
            assert torch.equal(report.optimizer.state[new][key], wanted)
    for old_group, group in zip(optimizer.param_groups, report.optimizer.param_groups, strict=True):
        assert {**old_group, "params": None} == {**group, "params": None}
        if isinstance(group["lr"], torch.Tensor):
            assert group["lr"] is not old_group["lr"]


class Own(torch.optim.SGD):
    """Has more attributes than torch pickles, and moments in a list."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.scale = 3.0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("moments", [p.detach().clone(), {"name": "first"}])
                p.data -= self.scale * group["lr"] * self.state[p]["moments"][0]


def test_what_an_optimizer_has_of_its_own() -> None:
    model = classifier()
    optimizer = Own(model.parameters())
    optimizer.step()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # replaces optimizer.step
    pruned, report = sc.prune_filters(model, X, WHC(), fraction=0.5, optimizer=optimizer)
    new, state = report.optimizer, copy.deepcopy(model.state_dict())
    first, moments = pruned[0].weight, report.optimizer.state[pruned[0].weight]["moments"]
    whole = optimizer.state[model[0].weight]["moments"][0]
    assert torch.equal(moments[0], whole[list(report.layers[0].kept)])
    assert moments[1] == {"name": "first"}
    before = first.detach().clone()
    new.step()
    assert torch.equal(first, before - 3.0 * 0.1 * moments[0])
    assert all(torch.equal(a, state[key]) for key, a in model.state_dict().items())
