"""The registered ops: the FLOP counter, plans, and what they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sparseconv as sc
from sparseconv.measure.machine import threads
from sparseconv.ops.backends import extension

OPS = torch.ops.sparseconv


def test_plans_belong_to_the_two_tensors() -> None:
    """Made once, for views too; made again after a change in place; freed with the tensors."""
    pattern = sc.KernelCSR.random((4, 3, 5), 20)
    crow, col = pattern.crow_indices.clone(), pattern.col_indices.clone()
    x, values, numbers = torch.randn(2, 3, 9), torch.randn(20), [4, 3, 5, 1, 0, 0, 1, 1, 0, 1, 1]

    def fprop(*arrays: torch.Tensor) -> torch.Tensor:
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


IN_PLACE: dict[str, Callable[[torch.nn.Parameter], Any]] = {
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
    wanted = torch.nn.grad.conv1d_weight(x.double(), pattern.shape, grad.double())
    assert found.double().equal(wanted.flatten())
    assert found.untyped_storage().nbytes() == found.nbytes  # the splits are not kept
