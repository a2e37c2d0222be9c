"""Growth by gradient: exact, watching only while it must, and copied with the model."""

from __future__ import annotations

import copy
import functools
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

from sparseconv import DSTScheduler, KernelCSR, Region, SparseConv1d


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
    layer.register_forward_hook(lambda module, args, y: y.square())  # watched before it
    _, optimizer, dst = scheduled(layer, update_every=2, end_step=100, grow="gradient")
    for step in range(1, 9):
        x = torch.randn(*([2] if batched else []), 4, 23, dtype=torch.float64)
        weight, dense = dense_twin(layer)
        dense(x).pow(6).mean().backward()
        optimizer.zero_grad()
        layer(x).pow(3).mean().backward()
        assert bool(dst._watches) == (step % 2 == 0)
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
        total = dst._watches[""].total
        # Two orders of summing the same products: float64 rounding only, far below 1e-10.
        torch.testing.assert_close(total, weight.grad, rtol=1e-10, atol=1e-10)
        optimizer.step()
        expected = largest_gradients(
            layer, weight.grad, 0.25 * (1 + math.cos(math.pi * (dst.step_count + 1) / 100))
        )
        assert dst.step()
        assert torch.equal(layer.pattern.to_mask(), expected)


def watched() -> tuple[SparseConv1d, torch.optim.Optimizer, DSTScheduler]:
    torch.manual_seed(0)
    layer = SparseConv1d(2, 4, 9, density=0.3, dtype=torch.float64)
    return scheduled(layer, "SGD", update_every=1, end_step=9, grow="gradient")


def attack(layer: SparseConv1d, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    (sign,) = torch.autograd.grad(layer(10 * x).square().mean(), x)
    layer(x + 0.1 * sign).square().mean().backward()


def thrown_away(layer: SparseConv1d, x: Tensor, set_to_none: bool) -> None:
    (layer(10 * x) + layer(x)).square().mean().backward()
    layer.zero_grad(set_to_none)
    (layer(x) * layer(-x)).mean().backward()


def one_series_in_place(layer: SparseConv1d, x: Tensor) -> None:
    layer(x[0]).relu_().square().mean().backward()
    layer(x).relu_().square().mean().backward()


def of_the_values(layer: SparseConv1d, x: Tensor) -> None:
    found = [torch.autograd.grad(layer(part).square().mean(), layer.values)[0] for part in x]
    layer.values.grad = sum(found)


@pytest.mark.parametrize(
    "train",
    [
        attack,
        functools.partial(thrown_away, set_to_none=True),
        functools.partial(thrown_away, set_to_none=False),
        one_series_in_place,
        of_the_values,
    ],
)
def test_the_dense_gradient_is_that_of_values_grad(
    train: Callable[[SparseConv1d, Tensor], None],
) -> None:
    layer, _, dst = watched()
    train(layer, torch.randn(3, 2, 30, dtype=torch.float64))
    (watch,) = dst._watches.values()
    found = watch.total.flatten()[layer.pattern.positions()]
    torch.testing.assert_close(found, layer.values.grad, rtol=1e-12, atol=1e-14)


def one_channel_at_a_time(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    """The second one alone is active: of the first the active weights' gradients are all zero."""
    counted = [x * torch.tensor(channel)[:, None] for channel in ([1.0, 0.0], [0.0, 1.0])]
    for part in counted:
        layer(part).pow(3).mean().backward()
    return counted


def zeroed_around_autograd(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    layer(10 * x).pow(3).mean().backward()
    for parameter in layer.parameters():
        parameter.grad.data.zero_()
    layer(x).pow(3).mean().backward()
    return [x]


def a_penalty_first(layer: SparseConv1d, x: Tensor, set_to_none: bool) -> list[Tensor]:
    layer(10 * x).pow(3).mean().backward()
    layer.zero_grad(set_to_none)
    layer.values.square().sum().backward()  # something else that adds to values.grad
    layer(x).pow(3).mean().backward()
    return [x]


def clipped_between(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    layer(x).pow(3).mean().backward()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1e-3)
    layer(2 * x).pow(3).mean().backward()
    return [x, 2 * x]


def within_a_checkpoint(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    x.requires_grad_()
    first = layer(x).pow(3).mean()
    inner = checkpoint(lambda z: layer(z).pow(3).mean(), 2 * x, use_reentrant=True)
    last = layer(3 * x).pow(3).mean()
    (first + inner + last).backward()  # the last one first, then the checkpoint's own pass
    return [x.detach(), 2 * x.detach(), 3 * x.detach()]


def after_one_that_fails(layer: SparseConv1d, x: Tensor) -> list[Tensor]:
    def fail(grad: Tensor) -> None:
        raise ArithmeticError

    y = x.clone().requires_grad_()
    y.register_hook(fail)
    with pytest.raises(ArithmeticError):
        layer(y).pow(3).mean().backward()
    layer.zero_grad()
    layer(x).pow(3).mean().backward()
    return [x]


@pytest.mark.parametrize(
    "train",
    [
        one_channel_at_a_time,
        zeroed_around_autograd,
        functools.partial(a_penalty_first, set_to_none=True),
        functools.partial(a_penalty_first, set_to_none=False),
        clipped_between,
        within_a_checkpoint,
        after_one_that_fails,
    ],
)
def test_what_counts_is_every_pass_since_the_gradient_was_cleared(
    train: Callable[[SparseConv1d, Tensor], list[Tensor]],
) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(4, 2, 9, dtype=torch.bool)
    mask[:, 1, ::2] = True
    pattern = KernelCSR.from_mask(mask)
    layer = SparseConv1d(2, 4, 9, pattern=pattern, dtype=torch.float64)
    _, _, dst = scheduled(layer, "SGD", update_every=1, end_step=9, grow="gradient")
    for _ in range(2):  # the second time after a gradient that was there
        weight, dense = dense_twin(layer)
        layer.zero_grad()
        for x in train(layer, torch.randn(3, 2, 30, dtype=torch.float64)):
            dense(x).pow(3).mean().backward()
        total = dst._watches[""].total
        torch.testing.assert_close(total, weight.grad, rtol=1e-12, atol=1e-14)


def test_hooks_of_others_are_neither_copied_nor_pickled() -> None:
    layer, _, dst = watched()
    layer.values.register_hook(lambda grad: grad.clamp(-1, 1))
    layer.values.register_post_accumulate_grad_hook(lambda values: None)
    x = torch.randn(3, 2, 30, dtype=torch.float64)
    layer(x).square().mean().backward()
    for copied, its in (pickle.loads(pickle.dumps((layer, dst))), copy.deepcopy((layer, dst))):
        (hook,) = copied._forward_hooks.values()
        assert its._watches[""] is hook
        assert hook.watching
        assert torch.equal(hook.total, dst._watches[""].total)


def test_values_that_are_pruned_for_a_while() -> None:
    layer, optimizer, dst = watched()
    x = torch.randn(3, 2, 30, dtype=torch.float64)
    train_step(layer, optimizer, x)
    assert dst.step()
    prune.l1_unstructured(layer, "values", 0.5)
    before = dst.step_count
    layer(x).square().mean().backward()
    with pytest.raises(RuntimeError, match="by pruning or a parametrization"):
        dst.step()
    assert dst.step_count == before
    prune.remove(layer, "values")
    train_step(layer, optimizer, x)
    assert dst.step()
    later = SparseConv1d(2, 4, 9, dtype=torch.float64)
    _, _, dst = scheduled(later, "SGD", update_every=2, end_step=9, grow="gradient")
    prune.l1_unstructured(later, "values", 0.5)
    assert not dst.step()  # watches from here on


def test_an_input_that_changes_after_the_layer() -> None:
    """Under autocast the layer keeps a copy; elsewhere backward is refused, mostly by autograd."""
    torch.manual_seed(0)
    layer = SparseConv1d(2, 4, 9, density=0.3)
    _, _, dst = scheduled(layer, "SGD", update_every=1, end_step=9, grow="gradient")
    x = torch.randn(3, 2, 30)
    weight, dense = dense_twin(layer)
    found = []
    for changes in (False, True):
        layer.zero_grad()
        given = x.clone()
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(given).float().square().mean()
        if changes:
            given.relu_()
        loss.backward()
        found.append(dst._watches[""].total)
    assert torch.equal(*found)
    dense(x).square().mean().backward()
    torch.testing.assert_close(found[0], weight.grad, rtol=0.1, atol=0.02)
    layer.zero_grad()
    given = x.clone()
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
        loss = layer(given).square().mean()
    given.relu_()
    with pytest.raises(RuntimeError, match=r"\(3, 2, 30\), was modified by an inplace operation"):
        loss.backward()


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


class Scaled(SparseConv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_a_subclass_that_computes_more_cannot_be_watched() -> None:
    scheduled(Scaled(2, 4, 9), grow="random")
    with pytest.raises(NotImplementedError, match="is a Scaled with a forward of its own; put"):
        scheduled(Scaled(2, 4, 9), grow="gradient")


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


def test_watching_ends_with_the_update_and_leaves_nothing_behind() -> None:
    model = two_layers()
    layer = model[0]
    for sparse in sparse_layers(model):
        sparse.backend = "reference"  # whose graphs still run backward after an update
    _, optimizer, dst = scheduled(model, update_every=2, end_step=4, grow="gradient")
    assert not layer._forward_hooks
    dst.step()
    assert len(layer._forward_hooks) == 1
    kept = model(next(batches())).square().mean()
    kept.backward(retain_graph=True)
    watches = list(dst._watches.values())
    assert all(watch.total is not None for watch in watches)
    assert dst.step()
    assert not layer._forward_hooks
    dst.step()  # watching again, for step 4
    kept.backward()  # a graph of the pattern before: its gradient must not count
    assert all(watch.total is None for watch in watches)
    assert all(watch.total is None for watch in dst._watches.values())
    train_step(model, optimizer, next(batches()))
    dst.step()
    dst.step()
    assert not layer._forward_hooks  # step 6 lies behind the end


def test_a_watched_model_can_be_copied_and_pickled_and_outlives_its_scheduler() -> None:
    layer, _, dst = scheduled(two_layers()[2], end_step=4, grow="gradient")
    x = torch.randn(1, 6, 9)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        twin(x).sum().backward()
        assert torch.equal(twin(x), layer(x))
        assert all(watch.total is None for watch in twin._forward_hooks.values())
    assert dst._watches[""].total is None
    del dst
    gc.collect()
    assert not layer._forward_hooks


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
        hooks = [list(layer._forward_hooks.values()) for layer in sparse_layers(its_model)]
        assert hooks == [[watch] for watch in its_dst._watches.values()]
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
    assert all(layer._forward_hooks for layer in sparse_layers(twin_model))
    del twin, runs, its_dst, its_model, its_optimizer
    gc.collect()
    assert not any(layer._forward_hooks for layer in sparse_layers(twin_model))
