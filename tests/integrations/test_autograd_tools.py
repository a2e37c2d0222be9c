"""Differentiation: functional calls, vmap, higher orders, autocast, hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import OPTIONS
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, stack_module_state, vmap

import sparseconv as sc

pytestmark = pytest.mark.promise("P7")


def make_layer(**options: Any) -> sc.SparseConv1d:
    torch.manual_seed(0)
    options = {"padding": 1, "dtype": torch.float64} | options
    if "pattern" not in options:
        options["density"] = 0.5
    return sc.SparseConv1d(2, 4, 3, **options)


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.tool("torch.func.functional_call", "works", "bits of the layer with these parameters")
@pytest.mark.tool("torch.func.functional_call with the state dict of another pattern", "works")
@pytest.mark.parametrize("more", [0, 1])
def test_functional_call(more: int) -> None:
    """A state dict brings values and indices; values alone meet the module's pattern."""

    def make(seed: int, nnz: int) -> sc.SparseConv1d:
        pattern = sc.KernelCSR.random((8, 8, 3), nnz, generator=torch.manual_seed(seed))
        return sc.SparseConv1d(8, 8, 3, pattern=pattern)

    layer, twin, other, x = make(1, 60), make(1, 60), make(2, 60 + more), torch.randn(3, 8, 9)
    call = lambda state: functional_call(layer, state, (x,))  # noqa: E731
    before = layer(x)
    for state in (dict(twin.named_parameters()), twin.state_dict()):
        assert call(state).equal(twin(x))
    stacked = {key: t[None] for key, t in other.state_dict().items()}
    for _ in range(2):
        assert call(other.state_dict()).equal(other(x))
        assert vmap(call)(stacked).equal(other(x)[None])
        assert layer(x).equal(before)
    got = grad(lambda state: call(state | other.state_dict() | state).sum())(
        dict(other.named_parameters())
    )
    other(x).sum().backward()
    assert got["values"].equal(other.values.grad)
    if more:
        with pytest.raises(ValueError, match="values"):
            call(dict(other.named_parameters()))


@pytest.mark.tool("torch.profiler", "works", "each op by its name, with shapes and times")
@pytest.mark.tool("torch.vmap", "works", "inputs join the batch; batches of weights one by one")
@pytest.mark.parametrize("options", OPTIONS[2:4], ids=str)
def test_vmap_over_inputs(options: dict[str, Any]) -> None:
    """Bits of a loop, wherever the new dimension is."""
    torch.manual_seed(0)
    layer = sc.SparseConv1d(4, 6, 5, **options)
    x = torch.randn(5, 3, 4, 12, dtype=layer.values.dtype)
    wanted = torch.stack([layer(part) for part in x])
    for dim in range(4):
        assert vmap(layer, in_dims=dim)(x.movedim(0, dim)).equal(wanted)
    with torch.no_grad(), torch.profiler.profile() as profiler:
        assert vmap(vmap(layer))(x).equal(wanted), "of series, each without a batch"
    counts = {event.key: event.count for event in profiler.key_averages()}
    assert counts["sparseconv::fprop"] <= 3, "once for each level, not for each of 15 series"


@pytest.mark.tool("ensembles: stack_module_state and vmap", "works")
@pytest.mark.tool("ensembles of several patterns, by vmap", "works", "with the same nnz")
def test_ensembles() -> None:
    x = double(3, 2, 9)

    def run(*members: sc.SparseConv1d) -> Tensor:
        call = lambda *state: functional_call(members[0], state, (x,))  # noqa: E731
        return vmap(call)(*stack_module_state(members))

    first = make_layer()
    twin = make_layer(pattern=first.pattern)
    nn.init.ones_(twin.values)
    assert run(first, twin).equal(torch.stack([first(x), twin(x)]))
    other = make_layer(pattern=sc.KernelCSR.random(first.pattern.shape, first.pattern.nnz))
    assert run(first, other).equal(torch.stack([first(x), other(x)]))
    assert run(first, twin).equal(torch.stack([first(x), twin(x)]))


@pytest.mark.tool("forward mode (torch.autograd.forward_ad)", "works")
@pytest.mark.tool("double backward (gradgradcheck)", "works", "every order, forward over reverse")
@pytest.mark.parametrize(("mode", "relu"), [("reflect", False), ("circular", True)])
def test_every_order(mode: str, relu: bool) -> None:
    options: dict[str, Any] = {"stride": 2, "padding": (2, 0), "padding_mode": mode}
    layer = make_layer(**options)
    leaves = tuple(
        t.detach().clone().requires_grad_() for t in (double(2, 2, 6), layer.values, layer.bias)
    )

    def run(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sc.sparse_conv1d(x, values, layer.pattern, bias, **options, relu=relu)

    assert gradcheck(
        run, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(run, leaves, check_fwd_over_rev=True, check_batched_grad=True)
    assert gradcheck(
        lambda *leaves: torch.autograd.grad(run(*leaves).pow(2).sum(), leaves, create_graph=True),
        leaves,
    )


@pytest.mark.tool("torch.autocast", "works", "bfloat16, float16; as nn.Conv1d")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_in_transforms(dtype: torch.dtype) -> None:
    layer, x = make_layer(dtype=torch.float32), torch.randn(3, 2, 9)
    with torch.autocast("cpu", dtype):
        wanted = layer(x)
        assert wanted.dtype == dtype == layer.to_dense()(x).dtype
        assert vmap(layer)(x).equal(wanted)
        gradient = grad(lambda x: layer(x).float().sum())(x)
        y = layer(x.requires_grad_()).float().sum()
    y.backward()
    assert gradient.equal(x.grad)
    assert layer.values.grad.dtype == torch.float32
    double_layer = make_layer()
    with torch.autocast("cpu", dtype):
        assert double_layer(double(3, 2, 9)).dtype == torch.float64


@pytest.mark.tool("anomaly detection, tensor and module hooks", "works")
def test_hooks_see_gradients() -> None:
    layer, x = make_layer(), double(3, 2, 9).requires_grad_()
    seen: dict[str, Any] = {}
    layer.register_full_backward_hook(lambda module, given, got: seen.update(given=given[0]))
    layer.values.register_post_accumulate_grad_hook(lambda p: seen.update(values=p.grad))
    with torch.autograd.detect_anomaly(check_nan=True):
        layer(x).sum().backward()
    assert seen["given"].equal(x.grad)
    assert seen["values"].equal(layer.values.grad)
