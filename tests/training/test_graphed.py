"""Training from CUDA graphs: the same results as eager, from memory that stays where it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda_graph import FakeCudaGraph
from tiny import RECIPE, interrupted, network, run, same
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sparseconv as sc
from sparseconv import KernelCSR, SparseConv1d
from sparseconv.core.geometry import Geometry
from sparseconv.ops import gpu_plans
from sparseconv.training import checkpoint
from sparseconv.training.graphed import WARM_UP, GraphedStep, Outputs
from sparseconv.training.run import Run


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers call the ops one by one, as they do where there is a GPU."""
    monkeypatch.setattr("sparseconv.functional.conv.extension", None)
    monkeypatch.setattr("sparseconv.nn.block.runs_eagerly", lambda: False)


def test_plans_for_a_gpu_stay_where_they_are() -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (8, 4, 7)
    strided = SparseConv1d(4, 8, 7, stride=2)._geometry()
    one = Geometry.of(shape, 1, (0, 0), 1, 1, "zeros")
    first = KernelCSR.random(shape, 60, generator=generator)
    layer = SparseConv1d(4, 8, 7, pattern=first)

    def made(arrays: Any) -> list[Tensor]:
        arrays = arrays.crow_indices, arrays.col_indices
        plans = (
            gpu_plans.triton_fprop(*arrays, strided),
            gpu_plans.triton_dgrad(*arrays, strided),
            gpu_plans.cuda_fprop(*arrays, one),
            gpu_plans.cuda_dgrad(*arrays, one),
        )
        derived = [t for t in tree_leaves(plans) if isinstance(t, Tensor)]
        return [*derived, *gpu_plans.triton_wgrad(*arrays, strided)]

    places = [t.data_ptr() for t in made(layer)]
    # All in one channel: as uneven as it gets, at the same nnz.
    spread = [torch.arange(60) * step + begin for step, begin in ((3, 0), (2, 9), (1, 160))]
    for positions in (torch.arange(60), *spread):
        pattern = KernelCSR.from_positions(positions, (8, 4, 7))
        layer.set_pattern(pattern)
        gpu_plans.refresh(layer.crow_indices, layer.col_indices)
        assert [t.data_ptr() for t in made(layer)] == places
        assert all(map(torch.equal, made(layer), made(pattern)))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: torch sees no CUDA device")
    return request.param


@pytest.mark.parametrize(
    "change",
    [{}, {"grow": "gradient"}, {"grow": "static"}, {"update_every_steps": 3},
     {"skip_step_at_update": True}],
    ids=str,
)  # fmt: skip
def test_the_same_results_as_eager(
    change: dict[str, object], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, epochs=14, **change)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    models, results = [], []
    for graphed in (False, True):
        fake = FakeCudaGraph(monkeypatch) if graphed and device == "cpu" else None
        models.append(network().to(device))
        results.append(run(models[-1], recipe, cuda_graphs=graphed))
        if fake is not None:
            assert fake.captures == 2  # whole batches, and the smaller one at the end
            assert fake.warm_ups == 2 * WARM_UP
            assert fake.replays > 20
    assert same(results[0].history, results[1].history)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert any(row["updated"] for row in results[1].history) == (recipe.grow != "static")


def test_graphs_are_taken_where_they_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, recipe = FakeCudaGraph(monkeypatch), replace(RECIPE, epochs=8)
    eager = run(network(), recipe)
    assert fake.captures == 0, "of a CPU"
    monkeypatch.setattr(Run, "_may_replay", lambda self: True)
    assert same(run(network(), recipe).history, eager.history)
    assert (fake.captures, fake.replays > 10) == (2, True)

    def fails(step: GraphedStep, *inputs: Tensor) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(GraphedStep, "_capture", fails)
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted"):
        assert same(run(network(), recipe).history, eager.history)
    with pytest.raises(RuntimeError, match="not permitted"):
        run(network(), recipe, cuda_graphs=True)


def step_of(model: nn.Module) -> tuple[torch.optim.Optimizer, Callable[..., Outputs]]:
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step(x: Tensor) -> Outputs:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return optimizer, step


def test_captured_again_when_nnz_or_memory_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCudaGraph(monkeypatch)
    model = nn.Sequential(SparseConv1d(2, 3, 5, density=0.5), nn.BatchNorm1d(3))
    networks = model, copy.deepcopy(model)
    (optimizer, step), (_, eager) = map(step_of, networks)
    taken, x = GraphedStep(model, step, optimizer), torch.randn(4, 2, 20)

    def go(captures: int, times: int = WARM_UP + 2) -> None:
        for _ in range(times):
            assert torch.equal(taken(x)[0], eager(x)[0])
        assert fake.captures == captures

    def new_optimizers() -> tuple[torch.optim.Optimizer, ...]:
        nonlocal eager
        (optimizer, taken.function), (eager_optimizer, eager) = map(step_of, networks)
        taken.optimizer = optimizer
        return optimizer, eager_optimizer

    go(0, WARM_UP)
    go(1, 2)
    assert fake.replays == 2
    as_many = KernelCSR.random((3, 2, 5), 15, generator=torch.Generator().manual_seed(3))
    for net in networks:
        net[0].set_pattern(as_many)
    go(1)
    for net in networks:
        net[0].set_pattern(KernelCSR.full((3, 2, 5)))
        net[0].values.grad = None
    optimizers = new_optimizers()
    go(2)
    model[1].weight.data = model[1].weight.data.clone()
    go(3)
    for own in optimizers:
        own.load_state_dict(copy.deepcopy(own.state_dict()))
    go(4)
    for net in networks:
        net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    new_optimizers()
    go(5)
    # The same weights in blocks, which other kernels may multiply.
    model[0].set_pattern(KernelCSR.from_mask(torch.ones(3, 2, 5, dtype=torch.bool), (3, 1)))
    for _ in range(WARM_UP + 1):
        taken(x)
    assert fake.captures == 6
    assert type(model[0].pattern) is KernelCSR


def test_growth_by_gradient_with_every_step_graphed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replay brings no gradient; the step before an update by the function itself repairs it."""
    FakeCudaGraph(monkeypatch)
    layer = SparseConv1d(2, 3, 5, density=0.5)
    optimizer, step = step_of(layer)
    dst = sc.DSTScheduler(layer, optimizer, update_every=WARM_UP + 3, end_step=99, grow="gradient")
    taken, x, before = GraphedStep(layer, step, optimizer), torch.randn(4, 2, 20), layer.pattern
    for _ in range(WARM_UP + 2):
        taken(x)
        assert not dst.step()
    taken(x)
    remedy = r"CUDA graph \(GraphedStep\) does not count.* call the function itself instead of"
    with pytest.raises(RuntimeError, match=remedy):
        dst.step()
    assert (layer.pattern, dst.step_count) == (before, WARM_UP + 2)
    assert (dst.step_count + 1) % dst.update_every == 0  # as the message says
    step(x)
    assert dst.step()
    assert layer.pattern != before


def test_a_checkpoint_of_another_device_is_resumed(tmp_path: Path) -> None:
    """On CUDA the optimizer's settings are others: a tensor for ``lr``, and ``capturable``."""
    model, other, recipe = network(), network(), replace(RECIPE, epochs=4)
    run(model, recipe)
    interrupted(other, 10, recipe=recipe, out=tmp_path)
    file = tmp_path / "checkpoint.pt"
    content = checkpoint.load(file)
    for group in content["optimizer"]["param_groups"]:
        assert not group["capturable"]
        group["capturable"], group["lr"] = True, torch.tensor(group["lr"])
    checkpoint.save(file, content)
    run(other, recipe, out=tmp_path, resume=True)
    groups = checkpoint.load(file)["optimizer"]["param_groups"]
    assert [(group["capturable"], type(group["lr"])) for group in groups] == [(False, float)]
    assert same(model.state_dict(), other.state_dict())
