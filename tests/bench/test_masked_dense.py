"""The masked-dense baseline is the same network, trained by the same rule."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseconv import DSTScheduler, SparseConv1d
from sparseconv.bench.network.masked import MaskedDST, PremaskedConv1d, masked_copy
from sparseconv.models import DSN
from sparseconv.models.dsn import PADDINGS

SETTINGS = {"update_every": 2, "end_step": 100, "decay_steps": 80, "prune_floor": 0.001}


def network(**options: Any) -> DSN:
    torch.manual_seed(0)
    return DSN(2, 3, nf=5, kernel_size=9, depth=3, **options)


def masked_layers(model: nn.Module) -> list[PremaskedConv1d]:
    return [layer for layer in model.modules() if isinstance(layer, PremaskedConv1d)]


def batch(n: int = 8, length: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, length, generator=generator), torch.arange(n) % 3


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    X, y = batch()
    optimizer.zero_grad()
    F.nll_loss(model(X.to(next(model.parameters()).dtype)), y).backward()
    optimizer.step()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("init", ["prefix", "random"])
def test_the_copy_is_the_same_function(padding: str, init: str) -> None:
    model = network(padding=padding, init=init, backend="reference").double()
    before = copy.deepcopy(model.state_dict())
    twin = masked_copy(model)
    layers = model.sparse_layers()
    X = batch()[0].double()
    for train_mode in (True, False):
        torch.testing.assert_close(
            twin.train(train_mode)(X), model.train(train_mode)(X), rtol=1e-12, atol=1e-12
        )
    assert not [m for m in twin.modules() if isinstance(m, SparseConv1d)]
    for dense, sparse in zip(masked_layers(twin), layers, strict=True):
        assert dense.weight.shape == sparse.pattern.shape
        assert torch.equal(dense.mask, sparse.pattern.to_mask())
        assert dense.regions == sparse.regions
    assert model.sparse_layers() == layers  # the model is left as it was, but for running means
    assert torch.equal(before["blocks.0.conv.values"], model.state_dict()["blocks.0.conv.values"])


def test_weights_stay_masked_while_gradients_and_moments_are_dense() -> None:
    model = network()
    twin = masked_copy(model)
    assert sum(p.numel() for p in twin.parameters()) == model.cost(20).params_dense
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-2)
    scheduler = MaskedDST(twin, optimizer, **SETTINGS)
    updated = []
    for _ in range(7):
        take_step(twin, optimizer)
        for layer in masked_layers(twin):  # before scheduler.step() as well as after
            assert layer.weight.grad is not None
            inactive = layer.weight.grad[~layer.mask]
            assert (inactive != 0).double().mean() > 0.5  # a channel whose ReLU is shut has none
            assert (layer.weight[~layer.mask] == 0).all()
            assert optimizer.state[layer.weight]["exp_avg"][~layer.mask].abs().max() > 0
        updated.append(scheduler.step())
        for layer in masked_layers(twin):
            assert (layer.weight[~layer.mask] == 0).all()
    assert updated == [False, True, False, True, False, True, False]


def test_it_moves_what_the_sparse_scheduler_moves() -> None:
    """Same weights, seed and schedule: the same patterns and values, also when it was resumed."""
    model = network(backend="reference").double()
    twin = masked_copy(model)
    # Without optimizer state both follow the same trajectory; SGD without momentum has none.
    sparse_optimizer = torch.optim.SGD(model.parameters(), 0.1)
    dense_optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    sparse = DSTScheduler(model, sparse_optimizer, seed=3, **SETTINGS)
    dense = MaskedDST(twin, dense_optimizer, seed=3, **SETTINGS)
    for i in range(12):
        if i == 5:
            state = dense.state_dict()
            dense = MaskedDST(twin, dense_optimizer, **SETTINGS)
            dense.load_state_dict(state)
        for each, optimizer in ((model, sparse_optimizer), (twin, dense_optimizer)):
            take_step(each, optimizer)
        assert sparse.step() == dense.step()
        assert sparse.prune_fraction_now == pytest.approx(dense.prune_fraction_now, rel=1e-12)
        for ours, theirs in zip(model.sparse_layers(), masked_layers(twin), strict=True):
            assert torch.equal(ours.pattern.to_mask(), theirs.mask)
            torch.testing.assert_close(ours.dense_weight(), theirs.weight, rtol=1e-9, atol=1e-12)
    assert sparse.updates == 6
