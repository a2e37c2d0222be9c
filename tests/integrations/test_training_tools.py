"""Training tools of torch over changes of the pattern."""

from __future__ import annotations

import copy

import pytest
import torch
from dst_runs import batches, scheduled, sparse_layers, train_step, two_layers
from tiny import same
from torch import nn

from sparseconv import DSTScheduler, SparseConv1d


@pytest.mark.tool("Muon", "refuses")
@pytest.mark.tool("SparseAdam", "refuses")
@pytest.mark.tool("LBFGS with DSTScheduler", "refuses", "its history is of all parameters at once")
def test_optimizers_whose_state_cannot_follow_a_pattern() -> None:
    model, settings = two_layers(), {"update_every": 1, "end_step": 9}
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(NotImplementedError, match="LBFGS"):
        DSTScheduler(model, optimizer, **settings)
    assert not DSTScheduler(model, optimizer, **settings, grow="static").step()
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(ValueError, match="2D"):
            torch.optim.Muon(model.parameters())
    with pytest.raises(RuntimeError, match="dense gradients"):
        train_step(model, torch.optim.SparseAdam(model.parameters()), next(batches()))


@pytest.mark.tool("gradient accumulation", "works")
@pytest.mark.tool("clip_grad_norm_, clip_grad_value_", "works")
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_accumulated_and_clipped_gradients(grow: str) -> None:
    """Three small batches train like one that holds them all."""
    runs = []
    for parts in (1, 3):
        settings = {"update_every": 2, "end_step": 20, "grow": grow}
        model, optimizer, dst = scheduled(two_layers(torch.float64), "SGD momentum", **settings)
        norms, data = [], batches(torch.float64)
        for _ in range(8):
            optimizer.zero_grad()
            for x in next(data).chunk(parts):
                (model(x).square().mean() / parts).backward()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
            optimizer.step()
            dst.step()
        assert max(norms) > 0.05  # it did clip
        assert dst.updates == 4
        runs.append((norms, model, dst))
    (norms, one, _), (others, three, _) = runs
    torch.testing.assert_close(norms, others)
    for a, b in zip(sparse_layers(one), sparse_layers(three), strict=True):
        assert a.pattern == b.pattern
        torch.testing.assert_close(a.values, b.values)
    nn.utils.clip_grad_value_(one.parameters(), 1e-9)
    assert all(p.grad.abs().max() <= 1e-9 for p in one.parameters())


@pytest.mark.tool("torch.autocast and GradScaler", "works", "float32 weights, half computation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_the_scaler_skips(dtype: torch.dtype) -> None:
    """A gradient that is not finite moves nothing, and is forgotten."""
    layer, optimizer, dst = scheduled(SparseConv1d(2, 3, 5, bias=False), grow="gradient")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(layer.state_dict())
    for value, moves in ((1e20, False), (1e-2, True)):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = layer(torch.full((1, 2, 9), value))
            assert y.dtype == dtype
        scaler.scale(y.float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert dst.step() == moves
        assert same(layer.state_dict(), before) != moves


@pytest.mark.tool("parameter groups, frozen layers", "works")
def test_groups_and_frozen_layers() -> None:
    """A frozen layer keeps its pattern, and need not be in the optimizer."""
    model = two_layers()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    groups = [
        {"params": [x.values for x in sparse_layers(model)], "weight_decay": 0.1},
        {"params": [x.bias for x in sparse_layers(model)], "lr": 1e-3},
    ]
    for parameters in (groups, list(model[2].parameters())):
        optimizer = torch.optim.AdamW(parameters, 1e-2)
        dst = DSTScheduler(model, optimizer, update_every=1, end_step=9, grow="gradient")
        for x, _ in zip(batches(), range(3), strict=False):
            train_step(model, optimizer, x)
            assert dst.step()
        assert same(model[0].state_dict(), before)
        assert model[0].values.grad is None
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match="layer"):
        dst.step()
