"""Optimizers that ``prune_filters`` or ``DSTScheduler`` cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from refusals import refusals
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import sparseconv as sc
from sparseconv.pruning import WHC

Parameters = list[Tensor]


class Shadow:
    """An average that is not an optimizer, tensor or container."""

    def __init__(self, params: Parameters) -> None:
        self.shadow = {str(i): p.detach().clone() for i, p in enumerate(params)}


def with_attribute(make: Callable[[Parameters], Any]) -> Callable[[Parameters], Optimizer]:
    def build(params: Parameters) -> Optimizer:
        optimizer = SGD(params, 0.1)
        optimizer.held = make(params)  # type: ignore[attr-defined]
        return optimizer

    return build


def masters(params: Parameters) -> list[Any]:
    copies = [p.detach().clone() for p in params]
    return [copies, Adam(copies)]


def replaced(params: Parameters) -> Optimizer:
    optimizer = SGD(params, 0.1)
    step = optimizer.step
    optimizer.step = lambda closure=None: step(closure)  # type: ignore[method-assign]
    return optimizer


def hooked(params: Parameters) -> Optimizer:
    optimizer = SGD(params, 0.1)
    optimizer.register_step_post_hook(lambda *_: [p.clamp_(-1, 1) for p in params])
    return optimizer


flat = with_attribute(lambda params: torch.zeros(sum(p.numel() for p in params)))
shadow = with_attribute(Shadow)
nested = with_attribute(lambda params: [torch.optim.LBFGS(params)])


def prune(make: Callable[[Parameters], Any]) -> Callable[[], Any]:
    model = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 10))
    optimizer = make(list(model.parameters()))
    return lambda: sc.prune_filters(model, torch.ones(1, 2, 12), WHC(), fraction=0.5,
                                    optimizer=optimizer)  # fmt: skip


def schedule(make: Callable[[Parameters], Any]) -> Callable[[], Any]:
    model = nn.Sequential(sc.SparseConv1d(2, 8, 3), nn.ReLU(), sc.SparseConv1d(8, 3, 10))
    optimizer = make(list(model.parameters()))
    return lambda: sc.DSTScheduler(model, optimizer, update_every=1, end_step=9)


test_optimizers = refusals(
    (prune(lambda params: torch.optim.lr_scheduler.StepLR(SGD(params), 1)), TypeError, "StepLR"),
    (prune(torch.optim.LBFGS), NotImplementedError, "LBFGS"),
    (prune(flat), NotImplementedError, "SGD.held"),
    (schedule(shadow), NotImplementedError, "SGD.held.shadow['0']"),
    (prune(replaced), NotImplementedError, "SGD.step"),
    (prune(hooked), NotImplementedError, "SGD._optimizer_step_post_hooks["),
    (prune(with_attribute(masters)), ValueError, "parameter"),
    (schedule(with_attribute(masters)), NotImplementedError, "SGD.held[0][0]"),
    (schedule(nested), NotImplementedError, "SGD.held[0]"),
)  # fmt: skip
