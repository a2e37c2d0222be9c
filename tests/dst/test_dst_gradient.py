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
from dst_runs import batches, scheduled, snapshot, sparse_layers, train_step, two_layers
from tiny import same
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from sparseconv import DSTScheduler, Region, SparseConv1d, SparseConvTranspose1d
from sparseconv.dst import prune_and_grow
from sparseconv.nn.block import Block

CONVOLUTIONS: list[dict[str, Any]] = [
    {"padding": 3},
    {"padding": "same", "dilation": 2},
    {"padding": (0, 6), "padding_mode": "replicate"},
    {"padding": (5, 1), "padding_mode": "reflect", "stride": 3, "groups": 2},
    {"padding": 4, "padding_mode": "circular", "stride": 2, "dilation": 2, "bias": False},
]
TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"stride": 4, "padding": 2, "output_padding": 3, "groups": 2},
    {"stride": 2, "dilation": 3, "output_padding": 2, "bias": False},
    {"stride": 3, "padding": 1},
]


@pytest.mark.parametrize(
    ("kind", "options", "block"),
    [
        *((SparseConv1d, options, block) for options in CONVOLUTIONS for block in (1, (1, 2))),
        *((SparseConvTranspose1d, options, 1) for options in TRANSPOSED),
    ],
    ids=str,
)
@pytest.mark.parametrize("batched", [True, False])
def test_growth_is_by_the_dense_gradient(
    kind: Any, options: dict[str, Any], batched: bool, block: Any
) -> None:
    torch.manual_seed(3)
    layer = kind(4, 6, 5, density=0.25, dtype=torch.float64, block=block, **options)
    layer.regions = (Region((0, 2), (0, 3)), Region((2, layer.pattern.shape[0]), (1, 5)))
    layer.register_forward_hook(lambda module, args, y: y.square())
    _, optimizer, dst = scheduled(layer, update_every=2, end_step=100, grow="gradient")
    for step in range(1, 9):
        x = torch.randn(*([2] if batched else []), 4, 23, dtype=torch.float64)
        dense = layer.to_dense()
        dense(x).pow(6).mean().backward()
        optimizer.zero_grad()
        layer(x).pow(3).mean().backward()
        optimizer.step()
        assert (layer.dense_probe is not None) == (step % 2 == 0)
        if layer.dense_probe is not None:
            # Two orders of summing the same products.
            grad = next(dense.parameters()).grad
            torch.testing.assert_close(layer.dense_probe.grad, grad, rtol=1e-10, atol=1e-12)
            fraction = 0.25 * (1 + math.cos(math.pi * step / 100))
            by = {"grow": "gradient", "dense_grad": grad}
            grown = prune_and_grow(layer.pattern, layer.values, layer.regions, fraction, **by)
        assert dst.step() == (step % 2 == 0)
        if step % 2 == 0:
            assert layer.pattern == grown[0]


Layer = Callable[[Tensor], Tensor]
Loss = Callable[[Layer], Tensor]


def loss_of(x: Tensor) -> Loss:
    return lambda layer: layer(x).pow(3).mean()


def accumulated(layer: SparseConv1d, x: Tensor) -> list[Loss]:
    """Three backward passes, the layer twice in each, and passes that do not count."""
    losses: list[Loss] = [
        lambda f, scale=scale: f(f(scale * x).tanh()[:, :2]).square().sum() for scale in (1, 2, 3)
    ]
    for loss in losses:
        with torch.no_grad():
            layer(x * 100)
        with torch.inference_mode():
            layer(x * 100)
        layer(x * 100)  # builds a graph that is never run backward
        copy.deepcopy(layer)(x * 100).sum().backward()  # a copy is not the layer
        torch.autograd.grad(loss_of(10 * x)(layer), layer.values)
        loss(layer).backward()
        layer.zero_grad()
    return losses


def one_series_in_place(layer: SparseConv1d, x: Tensor) -> list[Loss]:
    layer(x[0]).pow_(3).mean().backward()
    return [loss_of(x[0])]


def within_checkpoints(layer: SparseConv1d, x: Tensor) -> list[Loss]:
    given = x.clone().requires_grad_()
    loss = loss_of(given)(layer)
    for factor, reentrant in ((2, True), (3, False)):
        run = lambda z: loss_of(z)(layer)  # noqa: E731
        loss = loss + checkpoint(run, factor * given, use_reentrant=reentrant)
    loss.backward()
    return [loss_of(x), loss_of(2 * x), loss_of(3 * x)]


def in_a_block(layer: SparseConv1d, x: Tensor) -> list[Loss]:
    bottleneck = torch.nn.Conv1d(2, 2, 1, dtype=x.dtype)
    Block(bottleneck, layer)(x).pow(3).mean().backward()
    return [loss_of(bottleneck(x).detach())]


def for_each_sample(layer: SparseConv1d, x: Tensor) -> list[Loss]:
    own = {name: p.detach() for name, p in layer.named_parameters()}
    run = lambda p, x: torch.func.functional_call(layer, p, (x,)).pow(3).mean()  # noqa: E731
    torch.func.vmap(torch.func.grad(run), in_dims=(None, 0))(own, x)
    return one_series_in_place(layer, x)


TRAININGS = (accumulated, one_series_in_place, within_checkpoints, in_a_block, for_each_sample)


@pytest.mark.tool("gradient accumulation", "works")
@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("train", TRAININGS)
def test_every_backward_pass_since_the_latest_step_counts(
    train: Callable[[SparseConv1d, Tensor], list[Loss]], block: int
) -> None:
    torch.manual_seed(0)
    layer = SparseConv1d(2, 4, 9, padding="same", density=0.3, dtype=torch.float64, block=block)
    _, _, dst = scheduled(layer, grow="gradient")
    dense = layer.to_dense()
    weight = next(dense.parameters())
    for loss in train(layer, torch.randn(3, 2, 30, dtype=torch.float64)):
        loss(dense).backward()
    torch.testing.assert_close(layer.dense_probe.grad, weight.grad, rtol=1e-12, atol=1e-12)
    assert dst.step()


def test_autocast_keeps_what_the_layer_computed_with() -> None:
    torch.manual_seed(0)
    layer = SparseConv1d(2, 4, 9, density=0.3)
    _, _, dst = scheduled(layer, grow="gradient")
    x = torch.randn(3, 2, 30)
    dense = layer.to_dense()
    weight = next(dense.parameters())
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


def test_gradient_growth_without_a_backward_pass_is_refused_and_can_be_repaired() -> None:
    model, optimizer, dst = scheduled(None, "Adam", update_every=2, grow="gradient")
    data = batches()
    late = model(next(data)).square().mean()  # made before the step that is watched
    dst.step()
    for backward in (lambda: None, late.backward):
        backward()
        before = snapshot(model, optimizer, dst)
        with pytest.raises(RuntimeError, match=r"a SparseConv1d between calls 1 and 2 .*none"):
            dst.step()
        assert same(snapshot(model, optimizer, dst), before)
    train_step(model, optimizer, next(data))
    assert dst.step()


class SkipsLayers(nn.Module):
    """In each step another set of its layers is left out, as by LayerDrop or DropPath."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.end = nn.Conv1d(2, 4, 1), nn.Linear(4, 3)
        self.layers = nn.ModuleList(SparseConv1d(4, 4, 5, padding=2, density=0.3) for _ in range(3))
        self.scales: tuple[float | None, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x if scale is None else x + scale * layer(x).tanh()
        return self.end(x.mean(2))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_layer_that_a_step_leaves_out_keeps_its_pattern(set_to_none: bool) -> None:
    torch.manual_seed(0)
    model = SkipsLayers()
    average = AveragedModel(model)
    _, optimizer, dst = scheduled(model, "Adam", end_step=99, grow="gradient", averages=[average])
    for scales in ((1, None, 1), (None, None, 1), (None, 0.0, 1), (None, None, None), (1, 1, 1)):
        model.scales = scales
        patterns = [layer.pattern for layer in model.layers]
        optimizer.zero_grad(set_to_none=set_to_none)
        model(next(batches())).square().mean().backward()
        optimizer.step()
        moves = [bool(scale) for scale in scales]
        rate = dst.itop_rate()
        assert dst.step() == any(moves)
        moved = [x.pattern is not p for x, p in zip(model.layers, patterns, strict=True)]
        assert moved == moves
        assert any(moves) or dst.itop_rate() == rate
        assert [x.pattern for x in average.module.layers] == [x.pattern for x in model.layers]


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


@pytest.mark.tool("torch.optim.lr_scheduler", "works")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
@pytest.mark.parametrize("seen", [False, True], ids=["before backward", "after backward"])
def test_a_copied_run_continues_like_the_original(copied: Callable[[Any], Any], seen: bool) -> None:
    model, optimizer, dst = scheduled(None, "Adam", update_every=2, grow="gradient")
    torch.optim.lr_scheduler.StepLR(optimizer, 2)  # which puts a method into the optimizer
    data = [x for x, _ in zip(batches(), range(6), strict=False)]
    for x in (*data[:2], data[0]):
        train_step(model, optimizer, x)
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
        assert its_dst.updates == 4
    assert same(*(snapshot(*run)[:4] for run in runs))
    twin_model, _, twin = runs[1]
    twin.load_state_dict({**twin.state_dict(), "step_count": 1, "updates": 0})
    assert all(layer.dense_probe is not None for layer in sparse_layers(twin_model))
