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

from sparseconv import DSTScheduler, KernelCSR, Region, SparseConv1d
from sparseconv.dst import prune_and_grow


def make(model: Any = None, parameters: Any = None, **settings: Any) -> Callable[[], DSTScheduler]:
    def call() -> DSTScheduler:
        network = two_layers() if model is None else model
        own = network if isinstance(network, nn.Module) else two_layers()
        optimizer = torch.optim.SGD(parameters(own) if parameters else own.parameters(), 0.1)
        return DSTScheduler(network, optimizer, **{"update_every": 1, "end_step": 9, **settings})

    return call


def with_shared_values() -> nn.Module:
    model = nn.ModuleDict({"a": SparseConv1d(2, 2, 5), "b": SparseConv1d(2, 2, 5)})
    model["b"].values = model["a"].values
    return model


def with_regions(regions: Any) -> nn.Module:
    model = two_layers()
    model[2].regions = regions
    return model


def averaged(average: Callable[[nn.Module], Any]) -> Callable[[], DSTScheduler]:
    def call() -> DSTScheduler:
        model = two_layers()
        return make(model, averages=average(model))()

    return call


def inference_copy(model: nn.Module) -> list[nn.Module]:
    with torch.inference_mode():
        return [copy.deepcopy(model).requires_grad_(False)]


test_scheduler = refusals(
    (make("DSN"), TypeError, "model must be an nn.Module, but got str"),
    (lambda: DSTScheduler(two_layers(), None, update_every=1, end_step=9), TypeError,
     "must be a torch.optim.Optimizer, but got None"),
    (make(nn.Conv1d(1, 1, 3)), ValueError, "create one from an nn.Conv1d with SparseConv1d.from"),
    (make(parameters=lambda m: [*m[0].parameters(), m[2].bias]), ValueError,
     "those of layer '2' are missing; construct the optimizer with"),
    (make(with_shared_values()), RuntimeError, "another layer shares the memory of these values"),
    (make(with_regions((Region((0, 4), (0, 6)),))), ValueError, "does not lie inside a weight of"),
    (make(update_every=0), ValueError, "update_every must be at least 1"),
    (make(end_step=2.5), TypeError, "end_step must be an int"),
    (make(decay_steps=0), ValueError, "decay_steps must be at least 1"),
    (make(prune_fraction=1.01), ValueError, "prune_fraction must lie in [0, 1], but got 1.01"),
    (make(prune_fraction=30), ValueError, "in [0, 1], but got 30.0; 30 % is 0.3"),
    (make(prune_fraction="a"), TypeError, "prune_fraction must be a number, but got str"),
    (make(prune_floor=0.6), ValueError, "prune_floor=0.6 and prune_fraction=0.5"),
    (make(seed=None), TypeError, "seed must be an int, but got None"),
    (make(grow="rigl"), ValueError, "grow must be one of 'random', 'gradient', 'static'"),
    (averaged(lambda m: [m[:1]]), ValueError, "DSTScheduler(model.online, ..., averages=[model.ta"),
    (averaged(lambda m: [two_layers(seed=1)]), ValueError, "model with its current patterns"),
    (averaged(lambda m: [m.state_dict()]), TypeError, "averages must be modules that are copies"),
    (averaged(lambda m: [nn.Linear(2, 2)]), ValueError, "averages must be copies of the model"),
    (averaged(lambda m: [copy.deepcopy(m).share_memory()]), NotImplementedError, "shared memory"),
    (averaged(inference_copy), RuntimeError, "created in torch.inference_mode()"),
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
    with pytest.raises(ValueError, match=f"to another scheduler: expected {key}.* but got {{}}"):
        dst.load_state_dict({**other.state_dict(), key: {}})
    with pytest.raises(ValueError, match="state with keys"):
        dst.load_state_dict({k: v for k, v in other.state_dict().items() if k != key})
    for damaged in ({"ever_active": {}}, {"step_count": -5}, {"updates": 2.5}):
        with pytest.raises((TypeError, ValueError), match=next(iter(damaged))):
            dst.load_state_dict(other.state_dict() | damaged)
    assert same(snapshot(model, optimizer, dst), before)
    dst.load_state_dict(other.state_dict())  # unchanged, it is taken
    assert same(dst.state_dict(), other.state_dict())


WHOLE = Region((0, 2), (0, 4))


def update(**change: Any) -> Callable[[], Any]:
    pattern = KernelCSR.from_positions(torch.arange(4), (2, 1, 4))
    case = {"pattern": pattern, "values": torch.rand(4), "regions": [WHOLE], "fraction": 0.5}
    return lambda: prune_and_grow(**{**case, **change})


test_update = refusals(
    (update(grow="rigl"), ValueError, "grow must be one of 'random', 'gradient', 'static'"),
    (update(fraction=math.nan), ValueError, "[0, 1], but got nan"),
    (update(values=torch.rand(3)), ValueError, "shape (4,), but got [3]"),
    (update(grow="gradient"), ValueError, "dense_grad of shape [2, 1, 4], but got none"),
    (update(grow="gradient", dense_grad=torch.rand(8)), ValueError, "but got one of shape [8]"),
    (update(regions=[Region((0, 3), (0, 4))]), ValueError, "does not lie inside"),
    (update(regions=[WHOLE, Region((1, 2), (3, 4))]), ValueError, "must be disjoint"),
)  # fmt: skip
