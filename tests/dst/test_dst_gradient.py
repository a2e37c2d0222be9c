"""Growth by gradient: exact, watching only while it must, and copied with the model."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dst_runs import batches, scheduled, snapshot, sparse_layers, train_step, two_layers
from tiny import same
from torch import Tensor
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from sparseconv import DSTScheduler, Region, SparseConv1d
from sparseconv.nn.block import Block


def largest_gradients(layer: SparseConv1d, dense_grad: Tensor, fraction: float) -> Tensor:
    """Compute the mask that RigL asks for, with sorts over dense arrays."""
    weight = layer.dense_weight().detach().abs()
    mask = layer.pattern.to_mask()
    new = mask.clone()
    for region in layer.regions:
        box = (slice(*region.out_channels), slice(None), slice(*region.taps))
        count = math.ceil(fraction * int(mask[box].sum()))
        ranked = torch.where(mask[box], weight[box], math.inf).flatten()
        survivors = mask[box].flatten().clone()
        survivors[ranked.argsort()[:count]] = False
        score = torch.where(survivors, -1.0, dense_grad[box].abs().flatten())
        survivors[score.argsort(descending=True)[:count]] = True
        new[box] = survivors.view(new[box].shape)
    return new


def dense_twin(layer: SparseConv1d) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A dense weight with every tap trainable, and the layer's function of it."""
    weight = layer.dense_weight().detach().requires_grad_()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(x, layer.resolved_padding, mode)
        options = (layer.stride, 0, layer.dilation, layer.groups)
        return F.conv1d(padded, weight, layer.bias, *options)

    return weight, forward


CONVOLUTIONS: list[dict[str, Any]] = [
    {"padding": 3},
    {"padding": "same", "dilation": 2},
    {"padding": (0, 6), "padding_mode": "replicate"},
    {"padding": (5, 1), "padding_mode": "reflect", "stride": 3, "groups": 2},
    {"padding": 4, "padding_mode": "circular", "stride": 2, "dilation": 2, "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("batched", [True, False])
def test_growth_picks_exactly_the_largest_dense_gradients(
    options: dict[str, Any], batched: bool
) -> None:
    torch.manual_seed(3)
    layer = SparseConv1d(4, 6, 5, density=0.25, dtype=torch.float64, **options)
    layer.regions = (Region((0, 2), (0, 3)), Region((2, 6), (1, 5)))
    layer.register_forward_hook(lambda module, args, y: y.square())
    _, optimizer, dst = scheduled(layer, update_every=2, end_step=100, grow="gradient")
    for step in range(1, 9):
        x = torch.randn(*([2] if batched else []), 4, 23, dtype=torch.float64)
        weight, dense = dense_twin(layer)
        dense(x).pow(6).mean().backward()
        optimizer.zero_grad()
        layer(x).pow(3).mean().backward()
        assert (layer.dense_probe is not None) == (step % 2 == 0)
        optimizer.step()
        fraction = 0.25 * (1 + math.cos(math.pi * step / 100))
        expected = largest_gradients(layer, weight.grad, fraction)
        updated = dst.step()
        assert updated == (step % 2 == 0)
        if updated:
            assert torch.equal(layer.pattern.to_mask(), expected)


def test_gradients_add_up_over_backwards_and_uses_while_other_forwards_do_not_count() -> None:
    torch.manual_seed(4)
    layer = SparseConv1d(3, 3, 5, padding=2, density=0.3, dtype=torch.float64)
    _, optimizer, dst = scheduled(layer, end_step=100, grow="gradient")
    for _ in range(4):
        weight, dense = dense_twin(layer)
        optimizer.zero_grad()
        for _ in range(3):  # gradient accumulation, the layer twice in each forward pass
            x = torch.randn(2, 3, 16, dtype=torch.float64)
            dense(dense(x).tanh()).square().sum().backward()
            y = layer(layer(input=x).tanh())
            with torch.no_grad():
                layer(x * 100)
            with torch.inference_mode():
                layer(x * 100)
            layer.eval()
            layer(x * 100)  # builds a graph that is never run backward
            layer.train()
            copy.deepcopy(layer)(x * 100).sum().backward()  # a copy is not the layer
            y.square().sum().backward()
        total = layer.dense_probe.grad
        # Two orders of summing the same products: float64 rounding only, far below 1e-10.
        torch.testing.assert_close(total, weight.grad, rtol=1e-10, atol=1e-10)
        optimizer.step()
        expected = largest_gradients(
            layer, weight.grad, 0.25 * (1 + math.cos(math.pi * (dst.step_count + 1) / 100))
        )
        assert dst.step()
        assert torch.equal(layer.pattern.to_mask(), expected)


def thrown_away(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    layer(2 * x).pow(3).mean().backward()
    layer.zero_grad()
    layer(x).pow(3).mean().backward()
    return [2 * x, x]


def attack(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    given = x.clone().requires_grad_()
    (sign,) = torch.autograd.grad(layer(10 * given).pow(3).mean(), given)
    torch.autograd.grad(layer(x).pow(3).mean(), layer.values)
    layer(x + 0.1 * sign).pow(3).mean().backward()
    return [x + 0.1 * sign]


def one_series_in_place(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    layer(x[0]).pow_(3).mean().backward()
    return [x[0]]


def within_checkpoints(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    x.requires_grad_()
    loss = layer(x).pow(3).mean()
    for factor, reentrant in ((2, True), (3, False)):
        run = lambda z: layer(z).pow(3).mean()  # noqa: E731
        loss = loss + checkpoint(run, factor * x, use_reentrant=reentrant)
    loss.backward()
    return [x.detach(), 2 * x.detach(), 3 * x.detach()]


def in_a_block(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    bottleneck = torch.nn.Conv1d(2, 2, 1, dtype=x.dtype)
    Block(bottleneck, layer)(x).pow(3).mean().backward()
    return [bottleneck(x).detach()]


def for_each_sample(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    own = {name: p.detach() for name, p in layer.named_parameters()}
    run = lambda p, x: torch.func.functional_call(layer, p, (x,)).pow(3).mean()  # noqa: E731
    torch.func.vmap(torch.func.grad(run), in_dims=(None, 0))(own, x)
    return one_series_in_place(layer, x)


TRAININGS = (
    thrown_away,
    attack,
    one_series_in_place,
    within_checkpoints,
    in_a_block,
    for_each_sample,
)


@pytest.mark.parametrize("train", TRAININGS)
def test_every_backward_pass_since_the_latest_step_counts(
    train: Callable[[SparseConv1d, Tensor], list[Tensor]],
) -> None:
    torch.manual_seed(0)
    layer = SparseConv1d(2, 4, 9, padding="same", density=0.3, dtype=torch.float64)
    _, _, dst = scheduled(layer, grow="gradient")
    weight, dense = dense_twin(layer)
    for x in train(layer, torch.randn(3, 2, 30, dtype=torch.float64)):
        dense(x).pow(3).mean().backward()
    found = layer.dense_probe.grad
    torch.testing.assert_close(found, weight.grad, rtol=1e-12, atol=1e-14)
    assert dst.step()


def test_values_that_are_pruned_for_a_while() -> None:
    layer, optimizer, dst = scheduled(SparseConv1d(2, 4, 9, density=0.3), grow="gradient")
    x = torch.randn(3, 2, 30)
    train_step(layer, optimizer, x)
    assert dst.step()
    prune.l1_unstructured(layer, "values", 0.5)
    layer(x).square().mean().backward()
    with pytest.raises(RuntimeError, match="by pruning or a parametrization"):
        dst.step()
    assert dst.step_count == 1
    prune.remove(layer, "values")
    train_step(layer, optimizer, x)
    assert dst.step()


def test_autocast_keeps_what_the_layer_computed_with() -> None:
    torch.manual_seed(0)
    layer = SparseConv1d(2, 4, 9, density=0.3)
    _, _, dst = scheduled(layer, grow="gradient")
    x = torch.randn(3, 2, 30)
    weight, dense = dense_twin(layer)
    given = x.clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(given).float().square().mean()
    given.relu_()
    loss.backward()
    dense(x).square().mean().backward()
    torch.testing.assert_close(layer.dense_probe.grad, weight.grad, rtol=0.1, atol=0.02)
    assert dst.step()


def test_a_model_that_moves_takes_its_probe_along() -> None:
    layer, optimizer, dst = scheduled(SparseConv1d(2, 4, 9), grow="gradient")
    layer.double()
    train_step(layer, optimizer, torch.randn(3, 2, 30, dtype=torch.float64))
    assert layer.dense_probe.grad.dtype == torch.float64
    assert dst.step()


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_gradients_that_are_not_finite_move_nothing(loss: float) -> None:
    model, optimizer, dst = scheduled(two_layers(), update_every=1, end_step=9, grow="gradient")
    x = next(batches())
    before = snapshot(model, optimizer)
    (model(x).square().mean() * loss).backward()
    model.zero_grad()  # as if GradScaler had left out the step
    assert not dst.step()
    assert same(snapshot(model, optimizer), before)
    assert (dst.step_count, dst.updates) == (1, 0)
    train_step(model, optimizer, x)
    assert dst.step()


def test_gradient_growth_without_a_backward_pass_is_refused_and_can_be_repaired() -> None:
    model, optimizer, dst = scheduled(None, "Adam", update_every=2, grow="gradient")
    data = batches()
    late = model(next(data)).square().mean()  # made before the step that is watched
    dst.step()
    late.backward()
    model[0](next(data)).square().mean().backward()  # leaves out the second layer
    before = snapshot(model, optimizer, dst)
    with pytest.raises(
        RuntimeError, match=r"backward pass through layer '2' between step.* 1 and 2"
    ):
        dst.step()
    assert same(snapshot(model, optimizer, dst), before)
    train_step(model, optimizer, next(data))
    assert dst.step()


def test_a_watched_layer_is_exported_and_traced_as_any_other() -> None:
    layer, _, _ = scheduled(SparseConv1d(2, 4, 9), grow="gradient")
    x = torch.randn(3, 2, 30)
    for graph in (torch.export.export(layer, (x,)).graph, torch.jit.trace(layer, x).graph):
        assert "clone" not in str(graph)
        assert "Probe" not in str(graph)


def test_watching_ends_with_the_update_and_leaves_nothing_behind() -> None:
    model = two_layers()
    layer = model[0]
    for sparse in sparse_layers(model):
        sparse.backend = "reference"  # whose graphs still run backward after an update
    _, optimizer, dst = scheduled(model, update_every=2, end_step=4, grow="gradient")
    assert layer.dense_probe is None
    dst.step()
    kept = model(next(batches())).square().mean()
    kept.backward(retain_graph=True)
    assert layer.dense_probe.grad is not None
    assert copy.deepcopy(layer).dense_probe is None
    assert dst.step()
    assert layer.dense_probe is None
    dst.step()  # watching again, for step 4
    kept.backward()  # a graph of the pattern before: its gradient must not count
    assert layer.dense_probe.grad is None
    train_step(model, optimizer, next(batches()))
    dst.step()
    dst.step()
    assert layer.dense_probe is None  # step 6 comes after the end


def test_a_layer_outlives_its_scheduler_and_may_get_another() -> None:
    layer, optimizer, dst = scheduled(two_layers()[2], grow="gradient")
    other = DSTScheduler(layer, optimizer, update_every=1, end_step=9, grow="gradient")
    del dst
    gc.collect()
    train_step(layer, optimizer, torch.randn(1, 6, 9))
    assert other.step()
    del other
    gc.collect()
    assert layer.dense_probe is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
@pytest.mark.parametrize("seen", [False, True], ids=["before backward", "after backward"])
def test_a_copied_run_continues_like_the_original(copied: Callable[[Any], Any], seen: bool) -> None:
    model, optimizer, dst = scheduled(None, "Adam", update_every=2, grow="gradient")
    data = [x for x, _ in zip(batches(), range(6), strict=False)]
    train_step(model, optimizer, data[0])
    dst.step()
    if seen:
        train_step(model, optimizer, data[1])
    runs = [(model, optimizer, dst), copied((model, optimizer, dst))]
    for its_model, its_optimizer, its_dst in runs:
        if not seen:
            train_step(its_model, its_optimizer, data[1])
        assert its_dst.step()
        for x in data[2:]:
            train_step(its_model, its_optimizer, x)
            its_dst.step()
        assert its_dst.updates == 3
    assert same(*(snapshot(*run)[:4] for run in runs))
    twin_model, _, twin = runs[1]
    twin.load_state_dict({**twin.state_dict(), "step_count": 1, "updates": 0})
    assert all(layer.dense_probe is not None for layer in sparse_layers(twin_model))
