"""What ``DSTScheduler`` and ``prune_and_grow`` refuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dst_runs import scheduled, snapshot, two_layers
from refusals import refusals
from tiny import same
from torch import nn
from torch.nn.utils import parametrize

from sparseconv import DSTScheduler, KernelCSR, Region
from sparseconv.dst import prune_and_grow


def make(model: Any = None, parameters: Any = None, **settings: Any) -> Callable[[], DSTScheduler]:
    def call() -> DSTScheduler:
        network = two_layers() if model is None else model
        own = network if isinstance(network, nn.Module) else two_layers()
        optimizer = torch.optim.SGD(parameters(own) if parameters else own.parameters(), 0.1)
        return DSTScheduler(network, optimizer, **{"update_every": 1, "end_step": 9, **settings})

    return call


def averaged(average: Callable[[nn.Module], Any]) -> Callable[[], DSTScheduler]:
    def call() -> DSTScheduler:
        model = two_layers()
        return make(model, averages=average(model))()

    return call


def inference_copy(model: nn.Module) -> list[nn.Module]:
    with torch.inference_mode():
        return [copy.deepcopy(model).requires_grad_(False)]


test_scheduler = refusals(
    (make("DSN"), TypeError, "model"),
    (lambda: DSTScheduler(two_layers(), None, update_every=1, end_step=9), TypeError, "optimizer"),
    (make(nn.Conv1d(1, 1, 3)), ValueError, "model"),
    (make(parameters=lambda m: [*m[0].parameters(), m[2].bias]), ValueError, "layer '2'"),
    (make(update_every=0), ValueError, "update_every"),
    (make(end_step=2.5), TypeError, "end_step"),
    (make(decay_steps=0), ValueError, "decay_steps"),
    (make(prune_fraction="a"), TypeError, "prune_fraction"),
    (make(prune_floor=0.6), ValueError, "prune_floor"),
    (make(seed=None), TypeError, "seed"),
    (make(grow="rigl"), ValueError, "grow"),
    (averaged(lambda m: [m[:1]]), ValueError, "averages"),
    (averaged(lambda m: [two_layers(seed=1)]), ValueError, "averages"),
    (averaged(lambda m: [nn.Linear(2, 2)]), ValueError, "averages"),
    (averaged(inference_copy), RuntimeError, "layer"),
)  # fmt: skip


def test_computed_values_are_not_taken_for_shared_ones() -> None:
    model = two_layers()
    for layer in (model[0], model[2]):
        parametrize.register_parametrization(layer, "values", nn.Identity())
    assert not make(model, grow="static")().step()


@pytest.mark.promise("P5")
@pytest.mark.parametrize("key", ["hyperparameters", "shapes"])
def test_a_foreign_state_changes_nothing(key: str) -> None:
    model, optimizer, dst = scheduled(None, "Adam")
    other = DSTScheduler(model, optimizer, update_every=1, end_step=9)
    other.step()
    before = snapshot(model, optimizer, dst)
    with pytest.raises(ValueError, match=key):
        dst.load_state_dict({**other.state_dict(), key: {}})
    for missing in (key, "ever_active", "generator", "updates"):
        with pytest.raises(KeyError, match=missing):
            dst.load_state_dict({k: v for k, v in other.state_dict().items() if k != missing})
    assert same(snapshot(model, optimizer, dst), before)
    dst.load_state_dict(other.state_dict())  # unchanged, it is taken
    assert same(dst.state_dict(), other.state_dict())


WHOLE = Region((0, 2), (0, 4))


def update(**change: Any) -> Callable[[], Any]:
    pattern = KernelCSR.from_positions(torch.arange(4), (2, 1, 4))
    case = {"pattern": pattern, "values": torch.rand(4), "regions": [WHOLE], "fraction": 0.5}
    return lambda: prune_and_grow(**{**case, **change})


test_update = refusals(
    (update(fraction=math.nan), ValueError, "fraction"),
    (update(values=torch.rand(3)), ValueError, "values"),
    (update(grow="gradient"), ValueError, "dense_grad"),
    (update(grow="gradient", dense_grad=torch.rand(8)), ValueError, "dense_grad"),
    (update(regions=[Region((0, 3), (0, 4))]), ValueError, "Region"),
    (update(regions=[WHOLE, Region((1, 2), (3, 4))]), ValueError, "regions"),
)  # fmt: skip
