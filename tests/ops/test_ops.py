"""The registered ops: the FLOP counter, and bounds of plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_arguments import GEOMETRIES, arguments, with_argument
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv.core.geometry import Geometry
from sparseconv.measure.machine import threads
from sparseconv.ops import calls as ops

OPS = torch.ops.sparseconv


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_relu(geometry: Geometry) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        args = arguments(geometry, dtype)["fprop"]
        with FlopCounterMode(display=False) as counter:
            fused = OPS.fprop(*args, relu=True)
        assert fused.equal(OPS.fprop(*args).relu())
        assert counter.get_total_flops() == 2 * len(args[1]) * fused.shape[0] * fused.shape[2]


@pytest.mark.promise("P5")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_scratch_rows_are_bounded_tightly(geometry: Geometry) -> None:
    """A row must leave space for a tile within the scratch that these channels have."""
    tiles = {"fprop": 30, "dgrad": 30, "wgrad": 64}
    channels = {"fprop": geometry.shape[1], "wgrad": geometry.shape[1]}
    channels["dgrad"] = geometry.shape[0] // geometry.groups
    reach = geometry.dilation * (geometry.shape[2] - 1)
    residues = {tap * geometry.dilation % geometry.stride for tap in range(geometry.shape[2])}
    args = arguments(geometry)
    nnz = len(args["wgrad"][3])
    for name, i in (("fprop", 4), ("dgrad", 3), ("wgrad", 3)):
        op, rows = getattr(OPS, name), args[name][i]
        # All taps of a residue share one run of rows: a tile, and as many as they lie apart.
        most = channels[name] * (len(residues) * tiles[name] + reach // geometry.stride + 1)
        for wrong in (most, most + 1, 10_000):
            poisoned = rows.clone()
            poisoned[nnz - 1] = wrong  # the last; spare ones may follow
            with pytest.raises(ValueError, match="rows"):
                op(*with_argument(args[name], i, poisoned))


def test_plans_are_made_once_and_shared() -> None:
    pattern = sc.KernelCSR.random((4, 3, 5), 20)
    geometry = GEOMETRIES[0]
    assert ops.fprop_rows(pattern, geometry) is ops.fprop_rows(pattern, geometry)
    assert pattern.cached(ops._cpu_dgrad, 1, 1, 1) is pattern.cached(ops._cpu_dgrad, 1, 1, 1)


def test_bias_gradient_does_not_depend_on_threads() -> None:
    """One output channel: torch would split the sum to one number among its threads."""
    for batch, length in ((64, 5000), (1, 300_000)):
        grad, bits = torch.randn(batch, 1, length), set()
        for count in (1, 2, 3):
            bias = torch.zeros(1, requires_grad=True)
            x, pattern = torch.zeros(batch, 1, length), sc.KernelCSR.full((1, 1, 1))
            with threads(count):
                sc.sparse_conv1d(x, torch.ones(1), pattern, bias).backward(grad)
            assert bias.grad is not None
            bits.add(bias.grad.item())
        assert len(bits) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_conv1d(dtype: torch.dtype) -> None:
    x, layer = torch.randn(2, 4, 20), sc.SparseConv1d(4, 8, 5, density=0.4)
    model = torch.nn.Sequential(torch.nn.Conv1d(4, 4, 3), layer)
    with torch.autocast("cpu", dtype):
        y = model(x)
        assert y.dtype == dtype == layer.to_dense()(x).dtype
        assert layer(x.double().to(dtype)).dtype == dtype
    y.float().sum().backward()
    assert layer.values.grad is not None
    assert layer.values.grad.dtype == torch.float32
    double = sc.SparseConv1d(4, 8, 5, dtype=torch.float64)
    with torch.autocast("cpu", dtype):
        assert double(x.double()).dtype == torch.float64


IN_PLACE: dict[str, Callable[[torch.nn.Parameter], Any]] = {
    "SGD": lambda p: torch.optim.SGD([p], 0.1).step(),
    "SGD foreach": lambda p: torch.optim.SGD([p], 0.1, foreach=True).step(),
    "Adam fused": lambda p: torch.optim.Adam([p], 0.1, fused=True).step(),
    "data": lambda p: p.data.mul_(2),
    "numpy": lambda p: p.detach().numpy().__imul__(2),
    "new memory at the old address": lambda p: setattr(p, "data", p.data.clone().mul_(2)),
}


@pytest.mark.promise("P7")
@pytest.mark.parametrize("name", IN_PLACE)
def test_values_are_read_afresh(name: str) -> None:
    """Some of these count no version, and some memory comes back at the same address."""
    layer, x = sc.SparseConv1d(4, 6, 5, padding=2), torch.randn(2, 4, 30)
    for _ in range(5):
        layer.zero_grad()
        before = layer(x)
        before.square().sum().backward()
        IN_PLACE[name](layer.values)
        fresh = sc.SparseConv1d(4, 6, 5, padding=2, pattern=layer.pattern)
        fresh.load_state_dict(layer.state_dict())
        results = []
        for computed in (layer, fresh):
            leaf = x.clone().requires_grad_()
            y = computed(leaf)
            results += [y, *torch.autograd.grad(y.sum(), leaf)]
        assert not results[0].equal(before)
        assert results[0].equal(results[2])
        assert results[1].equal(results[3])


@pytest.mark.promise("P2")
def test_weight_gradients_that_threads_add_up_together() -> None:
    """Two splits of the batch, of more weights than one thread adds up: whole numbers, exactly."""
    torch.manual_seed(0)
    pattern = sc.KernelCSR.full((64, 64, 17))
    x, grad = (torch.randint(-3, 4, (128, 64, length)).float() for length in (40, 24))
    values = torch.zeros(pattern.nnz, requires_grad=True)
    with threads(2):
        (found,) = torch.autograd.grad(sc.sparse_conv1d(x, values, pattern), values, grad)
    wanted = torch.nn.grad.conv1d_weight(x.double(), pattern.shape, grad.double())
    assert found.double().equal(wanted.flatten())
    assert found.untyped_storage().nbytes() == found.nbytes  # the splits are not kept
