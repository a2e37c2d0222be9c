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
@pytest.mark.parametrize("seed", [0, 1, 5, 11])
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
    positions = sc.prune_filters(marked, x, drawn, ratio=0.5).model
    pruned, report = sc.prune_filters(model, x, drawn, ratio=0.5, optimizer=optimizer)
    assert report.parameters[1] < report.parameters[0]

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


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adafactor])
def test_optimizers_that_cannot_be_followed(kind: type[torch.optim.Optimizer]) -> None:
    model = classifier()
    optimizer = kind(model.parameters())
    loss = model(X).sum()
    loss.backward()
    optimizer.step(lambda: loss)
    with pytest.raises(ValueError, match=f"{kind.__name__} keeps tensors of other shapes"):
        sc.prune_filters(model, X, WHC(), ratio=0.5, optimizer=optimizer)
