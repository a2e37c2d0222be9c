"""The registered ops: plans, what they read, and what FLOP counters show of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension

OPS = torch.ops.sparseconv


def test_plans_belong_to_the_two_tensors() -> None:
    """Made once, for views too; made again after a change in place; freed with the tensors."""
    pattern = sc.KernelCSR.random((4, 3, 5), 20)
    crow, col = pattern.crow_indices.clone(), pattern.col_indices.clone()
    x, values, numbers = torch.randn(2, 3, 9), torch.randn(20), [4, 3, 5, 1, 0, 0, 1, 1, 0, 1, 1]

    def fprop(*arrays: Tensor) -> Tensor:
        return OPS.fprop(x, values, None, *arrays, numbers)

    assert extension.plan_bytes(crow, col) == 0
    first = fprop(crow, col)
    size = extension.plan_bytes(crow, col)
    assert size > 0
    assert fprop(crow.detach(), col.view(20)).equal(first)
    assert extension.plan_bytes(crow, col) == size
    other = sc.KernelCSR.random((4, 3, 5), 20)
    crow.copy_(other.crow_indices), col.copy_(other.col_indices)
    assert fprop(crow, col).equal(fprop(other.crow_indices, other.col_indices))
    for _ in range(500):  # whose memory may come again at the same address
        drawn = sc.KernelCSR.random((4, 3, 5), 20)
        wanted = sc.sparse_conv1d(x, values, drawn, backend="reference")
        torch.testing.assert_close(fprop(drawn.crow_indices.clone(), drawn.col_indices), wanted)
    with torch.inference_mode():  # whose tensors count no changes
        crow, col = pattern.crow_indices.clone(), pattern.col_indices.clone()
        assert fprop(crow, col).equal(first)
        crow.copy_(other.crow_indices), col.copy_(other.col_indices)
        assert fprop(crow, col).equal(fprop(other.crow_indices, other.col_indices))


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


IN_PLACE: dict[str, Callable[[nn.Parameter], Any]] = {
    "SGD": lambda p: torch.optim.SGD([p], 0.1).step(),
    "Adam fused": lambda p: torch.optim.Adam([p], 0.1, fused=True).step(),
    "numpy": lambda p: p.detach().numpy().__imul__(2),
    "new memory at the old address": lambda p: setattr(p, "data", p.data.clone().mul_(2)),
}


@pytest.mark.promise("P7")
@pytest.mark.parametrize("name", IN_PLACE)
def test_values_are_read_afresh(name: str) -> None:
    """Some of these count no version, and some memory comes back at the same address."""
    layer, x = sc.SparseConv1d(4, 6, 5, padding=2), torch.randn(2, 4, 30).requires_grad_()
    for _ in range(5):
        layer.zero_grad()
        before = layer(x)
        before.square().sum().backward()
        IN_PLACE[name](layer.values)
        fresh = sc.SparseConv1d(4, 6, 5, padding=2, pattern=layer.pattern)
        fresh.load_state_dict(layer.state_dict())
        y, wanted = layer(x), fresh(x)
        assert not y.equal(before)
        assert y.equal(wanted)
        dx, wanted_dx = (torch.autograd.grad(each.sum(), x)[0] for each in (y, wanted))
        assert dx.equal(wanted_dx)


@pytest.mark.promise("P2")
def test_weight_gradients_that_threads_add_up_together() -> None:
    """Two splits of the batch, of more weights than one thread adds up: whole numbers, exactly."""
    torch.manual_seed(0)
    pattern = sc.KernelCSR.full((64, 64, 17))
    x, grad = (torch.randint(-3, 4, (128, 64, length)).float() for length in (40, 24))
    values = torch.zeros(pattern.nnz, requires_grad=True)
    with threads(2):
        (found,) = torch.autograd.grad(sc.sparse_conv1d(x, values, pattern), values, grad)
    wanted = nn.grad.conv1d_weight(x.double(), pattern.shape, grad.double())
    assert found.double().equal(wanted.flatten())
    assert found.untyped_storage().nbytes() == found.nbytes  # the splits are not kept


def make_model() -> tuple[nn.Sequential, Tensor, int, int]:
    """A model, an input, and the active multiply-adds of its sparse and dense layer."""
    torch.manual_seed(0)
    sparse = sc.SparseConv1d(3, 6, 5, padding=2, density=0.3)
    model = nn.Sequential(sparse, nn.ReLU(), nn.Conv1d(6, 2, 3, bias=False))
    return model, torch.randn(4, 3, 20), sparse.pattern.nnz * 4 * 20, 6 * 2 * 3 * 4 * 18


@pytest.mark.tool("FlopCounterMode", "works", "active FLOPs, forward and backward, by module")
def test_flop_counter_mode() -> None:
    model, x, sparse, dense = make_model()
    with FlopCounterMode(display=False) as counter:
        y = model(x)
        forward = counter.get_flop_counts()
        y.sum().backward()
    assert sum(forward["Sequential.0"].values()) == 2 * sparse
    assert sum(forward["Global"].values()) == 2 * (sparse + dense)
    # The input needs no gradient, so the first layer has no dgrad. No bias gradient is counted.
    assert counter.get_total_flops() == 2 * (2 * sparse + 3 * dense)


@pytest.mark.tool("thop", "works", "custom_ops={sc.SparseConv1d: a hook of one line}")
def test_thop() -> None:
    thop = pytest.importorskip("thop")
    model, x, sparse, dense = make_model()

    def count(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        layer.total_ops += layer.pattern.nnz * output.shape[0] * output.shape[-1]

    hooks = {sc.SparseConv1d: count}
    macs, parameters = thop.profile(copy.deepcopy(model), (x,), hooks, verbose=False)
    assert macs == sparse + dense
    assert parameters == model[0].pattern.nnz + 6 + 36
    unhooked, _ = thop.profile(model, (x,), verbose=False)
    assert unhooked == dense, "without the hook it takes a layer that it does not know for nothing"


@pytest.mark.tool("fvcore", "works", 'set_op_handle("sparseconv::fprop", a handle of two lines)')
def test_fvcore() -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    model, x, sparse, dense = make_model()

    def handle(inputs: Any, outputs: Any) -> int:
        (nnz,), (n, _, length) = (v.type().sizes() for v in (inputs[1], outputs[0]))
        return nnz * n * length

    analysis = fvcore.FlopCountAnalysis(model, x).set_op_handle("sparseconv::fprop", handle)
    analysis.unsupported_ops_warnings(False).tracer_warnings("none")
    assert analysis.by_module() == {"": sparse + dense, "0": sparse, "1": 0, "2": dense}
