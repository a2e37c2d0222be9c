"""DSTScheduler: the schedule, what follows a weight, and what an update costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from dst_runs import (
    OPTIMIZERS,
    amounts,
    batches,
    in_blocks,
    scheduled,
    sparse_layers,
    train_step,
    two_layers,
)
from tiny import same
from torch import Tensor, nn

from sparseconv import KernelCSR, SparseConv1d
from sparseconv.dst import DSTScheduler, prune_and_grow

# --- the schedule ---


def test_updates_happen_at_multiples_up_to_the_end_and_follow_the_cosine() -> None:
    settings = {"update_every": 3, "end_step": 12, "decay_steps": 10, "prune_floor": 0.001}
    model, _, dst = scheduled(**settings, prune_fraction=0.5)
    assert dst.prune_fraction_now == 0.5
    updated_at = []
    for step in range(1, 20):
        before = [layer.pattern for layer in sparse_layers(model)]
        for layer in sparse_layers(model):
            nn.init.constant_(layer.values, 1.0)
        updated = dst.step()
        r = 0.001 + 0.2495 * (1 + math.cos(math.pi * min(step, 10) / 10))
        assert dst.prune_fraction_now == pytest.approx(r, rel=1e-14, abs=0)
        assert dst.step_count == step
        changed = [a.pattern is not b for a, b in zip(sparse_layers(model), before, strict=True)]
        assert changed == [updated, updated]
        if updated:
            updated_at.append(step)
            for layer in sparse_layers(model):
                zeros = layer.dense_weight().detach().eq(0) & layer.pattern.to_mask()
                for region, nnz in zip(layer.regions, amounts(layer), strict=True):
                    box = zeros[slice(*region.out_channels), :, slice(*region.taps)]
                    assert int(box.sum()) == math.ceil(dst.prune_fraction_now * nnz)
    assert updated_at == [3, 6, 9, 12]
    assert dst.updates == 4
    for text in ("2 layers", "update_every=3", "updates=4"):
        assert text in repr(dst)
    _, _, dst = scheduled(end_step=4, prune_floor=0)  # decays until its end
    assert [dst.step() for _ in range(6)] == [True, True, True, False, False, False]
    assert dst.prune_fraction_now == 0.0  # at step 4 nothing is left to prune
    _, _, dst = scheduled(grow="static")
    assert dst.prune_fraction_now == 0.0


def test_itop_rate_is_the_share_of_weights_that_were_ever_active() -> None:
    """Also in patterns that others have set."""
    model, _, dst = scheduled(end_step=99, prune_floor=0.3)
    layers, ever = sparse_layers(model), [torch.zeros(12 * 7), torch.zeros(24 * 5)]
    for step in range(12):
        masks = [layer.pattern.to_mask().flatten() for layer in layers]
        ever = [seen.maximum(mask) for seen, mask in zip(ever, masks, strict=True)]
        if step % 4 != 2:  # else the scheduler meets the new pattern at the next step only
            assert dst.itop_rate() == torch.cat(ever).double().mean()
        if step % 4 == 1:
            model.load_state_dict(two_layers(seed=step).state_dict())
        else:
            dst.step()


# --- what follows a weight ---


@pytest.mark.tool("torch.optim (every elementwise optimizer)", "works")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("grow", "make"), [("random", in_blocks), ("gradient", two_layers), ("gradient", in_blocks)]
)
def test_survivors_keep_everything_and_grown_weights_start_from_zero(
    name: str, grow: str, make: Callable[[], nn.Module]
) -> None:
    model, optimizer, dst = scheduled(make(), name, update_every=4, end_step=40, grow=grow)
    data, generator, followed = batches(), torch.Generator(), 0
    for step in range(1, 13):
        train_step(model, optimizer, next(data))
        if step % 4:
            assert not dst.step()
            continue
        generator.set_state(dst.state_dict()["generator"])
        fraction, expected = 0.25 * (1 + math.cos(math.pi * step / 40)), []
        for layer in sparse_layers(model):
            by: dict[str, Any] = {"grow": grow, "generator": generator}
            if grow == "gradient":
                by["dense_grad"] = layer.dense_probe.grad
            pattern, source = prune_and_grow(
                layer.pattern, layer.values, layer.regions, fraction, **by
            )
            state = optimizer.state[layer.values]
            rest = {k: v for k, v in state.items() if not (isinstance(v, Tensor) and v.dim())}
            own = [layer.values, layer.values.grad, *(state[k] for k in state if k not in rest)]
            moved = [torch.where(source < 0, 0, tensor.detach()[source]) for tensor in own]
            expected.append((pattern, own, moved, rest, copy.deepcopy(rest)))
        assert dst.step()
        for layer, (pattern, own, moved, rest, kept) in zip(
            sparse_layers(model), expected, strict=True
        ):
            state = optimizer.state[layer.values]
            now = [layer.values, layer.values.grad, *(state[k] for k in state if k not in rest)]
            assert all(a is b for a, b in zip(now, own, strict=True)), "the same objects"
            assert layer.pattern == pattern
            assert all(map(torch.equal, own, moved))
            assert same({k: state[k] for k in rest}, kept)
            followed += len(own) - 2
    assert bool(followed) == (name != "SGD")


def test_layers_without_weights_or_regions_and_of_a_single_weight_are_ordinary() -> None:
    for nnz, regions in ((0, None), (1, None), (1, ())):
        pattern = KernelCSR.from_positions(torch.arange(nnz), (2, 1, 3))
        layer = SparseConv1d(1, 2, 3, pattern=pattern)
        layer.regions = layer.regions if regions is None else regions
        _, optimizer, dst = scheduled(layer, "Adam", grow="gradient")
        for _ in range(5):
            train_step(layer, optimizer, torch.randn(2, 1, 9))
            assert dst.step() == (nnz > 0 and regions is None)
        assert layer.pattern.nnz == nnz


# --- what else an update leaves alone ---


@pytest.mark.promise("P8")
def test_an_update_neither_reads_nor_advances_the_global_generator() -> None:
    runs = []
    for seed in (0, 1):
        model, _, dst = scheduled(seed=3)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        for _ in range(4):
            dst.step()
        assert torch.equal(torch.get_rng_state(), before)
        runs.append([layer.pattern for layer in sparse_layers(model)])
    assert runs[0] == runs[1]
    other, _, dst = scheduled(seed=4)
    dst.step()
    assert [layer.pattern for layer in sparse_layers(other)] != runs[0]


def test_values_that_two_layers_share_keep_both_patterns_only_frozen():
    shared = [SparseConv1d(2, 2, 3, density=0.5) for _ in range(2)]
    shared[1].values = shared[0].values
    model = nn.Sequential(two_layers(), *shared)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> bool:
        return DSTScheduler(model, optimizer, update_every=1, end_step=9, grow="random").step()

    with pytest.raises(RuntimeError, match="two layers have the same values"):
        step()
    shared[0].values.requires_grad_(False)
    assert step()
