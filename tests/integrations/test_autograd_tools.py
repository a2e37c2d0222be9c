"""Differentiation: torch.func, forward mode, higher orders, checkpointing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layers import OPTIONS
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils.checkpoint import checkpoint

import sparseconv as sc

pytestmark = pytest.mark.promise("P7")


def make_layer(**options: Any) -> sc.SparseConv1d:
    torch.manual_seed(0)
    options = {"padding": 1, "density": 0.5, "dtype": torch.float64} | options
    return sc.SparseConv1d(2, 4, 3, **options)


def dense_loss(layer: sc.SparseConv1d, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """A loss of the layer's parameters, by torch's own operations only."""

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        at = layer.pattern.positions()
        flat = torch.zeros(layer.pattern.numel, dtype=x.dtype).index_put(
            (at,), parameters["values"]
        )
        y = F.conv1d(x, flat.view(layer.pattern.shape), parameters["bias"], padding=1)
        return y.pow(3).sum()

    return loss


def sparse_loss(layer: sc.SparseConv1d, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda parameters: functional_call(layer, parameters, (x,)).pow(3).sum()


@pytest.mark.tool("torch.func.functional_call", "works", "bits of the layer with these parameters")
def test_functional_call() -> None:
    layer, x = make_layer(), torch.randn(3, 2, 9, dtype=torch.float64)
    other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    got = functional_call(layer, other, (x,))
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(other[name])
    assert got.equal(layer(x))


@pytest.mark.tool("torch.func.functional_call with the state dict of another pattern", "refuses")
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("more", [0, 1], ids=["as many weights", "one more weight"])
def test_functional_call_with_another_pattern(more: int, taps: int) -> None:
    """A state dict brings values and indices, but the pattern is the module's."""

    def make(seed: int, nnz: int) -> sc.SparseConv1d:
        pattern = sc.KernelCSR.random((8, 8, taps), nnz, generator=torch.manual_seed(seed))
        return sc.SparseConv1d(8, 8, taps, pattern=pattern)

    x, nnz = torch.randn(3, 8, 9), 20 * taps
    layer, other, twin = make(1, nnz), make(2, nnz + more), make(1, nnz)
    wanted = layer(x)
    copies = (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), make(2, nnz))
    copies[-1].load_state_dict(layer.state_dict(), assign=True)
    for module in (layer, *copies):
        assert functional_call(module, twin.state_dict(), (x,)).equal(twin(x))
        assert functional_call(module, module.state_dict(), (x,)).equal(wanted)
        with pytest.raises(RuntimeError, match="functional_call cannot change a pattern"):
            functional_call(module, other.state_dict(), (x,))
        assert module(x).equal(wanted), "it is as it was"
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    assert functional_call(layer, state, (x,)).equal(twin(x))
    if not more:
        for name, tensor in other.state_dict().items():
            state[name].copy_(tensor)
        with pytest.raises(RuntimeError, match="functional_call cannot change a pattern"):
            functional_call(layer, state, (x,))
    both = [{name: t[None] for name, t in one.state_dict().items()} for one in (twin, other)]
    ensemble = vmap(lambda state: functional_call(layer, state, (x,)))
    torch.testing.assert_close(ensemble(both[0])[0], twin(x))
    with pytest.raises(RuntimeError, match="functional_call cannot change a pattern"):
        ensemble(both[1])


@pytest.mark.tool("torch.vmap", "works", "inputs join the batch; batches of weights one by one")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_vmap_over_inputs(options: dict[str, Any]) -> None:
    """Bits of a loop, in one call of the kernels, wherever the new dimension stands."""
    torch.manual_seed(0)
    layer = sc.SparseConv1d(4, 6, 5, **options)
    x = torch.randn(5, 3, 4, 12, dtype=layer.values.dtype)
    wanted = torch.stack([layer(part) for part in x])
    for dim in range(4):
        assert vmap(layer, in_dims=dim)(x.movedim(0, dim)).equal(wanted)
    with torch.no_grad():
        assert vmap(vmap(layer))(x).equal(wanted), "of series, each without a batch"


def test_vmap_does_not_loop() -> None:
    layer, calls = make_layer(), []
    for size in (3, 50):
        with torch.profiler.profile() as profiler:
            vmap(layer)(torch.randn(size, 3, 2, 9, dtype=torch.float64))
        counts = {event.key: event.count for event in profiler.key_averages()}
        calls.append(counts["sparseconv::fprop"])
    assert calls[0] == calls[1]
    assert vmap(layer)(torch.zeros(0, 3, 2, 9, dtype=torch.float64)).shape == (0, 3, 4, 9)


@pytest.mark.tool("ensembles: stack_module_state and vmap", "works")
def test_an_ensemble_of_one_pattern() -> None:
    first, x = make_layer(), torch.randn(3, 2, 9, dtype=torch.float64)
    second = make_layer(pattern=first.pattern)
    with torch.no_grad():
        second.values.mul_(-2)
    parameters, _ = stack_module_state([first, second])
    got = vmap(lambda p: functional_call(first, p, (x,)))(parameters)
    assert got.equal(torch.stack([first(x), second(x)]))
    each = vmap(lambda p, x: functional_call(first, p, (x,)))(parameters, torch.stack([x, 2 * x]))
    assert each.equal(torch.stack([first(x), second(2 * x)]))


@pytest.mark.tool("ensembles of several patterns, by vmap", "refuses", "one pattern in a call")
@pytest.mark.parametrize("in_dims", [0, 1])
def test_an_ensemble_of_several_patterns(in_dims: int) -> None:
    """The pattern is the module's, so another member's values would meet the wrong taps."""
    x = torch.randn(3, 2, 9, dtype=torch.float64)

    def run(*members: sc.SparseConv1d) -> Tensor:
        parameters, buffers = stack_module_state(members)
        tag = buffers["pattern_tag"].movedim(0, in_dims)
        dims = {name: in_dims if name == "pattern_tag" else 0 for name in buffers}
        return vmap(lambda p, b: functional_call(members[0], (p, b), (x,)), in_dims=(0, dims))(
            parameters, buffers | {"pattern_tag": tag}
        )

    first = make_layer()
    assert run(first, make_layer(pattern=first.pattern))[0].equal(first(x))
    other = sc.KernelCSR.random(
        first.pattern.shape, first.pattern.nnz, generator=torch.Generator().manual_seed(8)
    )
    with pytest.raises(RuntimeError, match="its values may belong to other positions"):
        run(first, make_layer(pattern=other))


@pytest.mark.tool("torch.func.grad, vjp, jacrev, jacfwd, hessian, linearize", "works")
def test_derivatives_of_parameters() -> None:
    """As torch finds them for the dense convolution."""
    layer, x = make_layer(), torch.randn(3, 2, 7, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    got, wanted = sparse_loss(layer, x), dense_loss(layer, x)
    for derive in (grad, jacrev, jacfwd, hessian):
        torch.testing.assert_close(derive(got)(parameters), derive(wanted)(parameters))
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    one = torch.ones((), dtype=torch.float64)

    def along(f: Callable[..., Tensor]) -> list[Any]:
        tangent = linearize(f, parameters)[1](tangents)
        return [*jvp(f, (parameters,), (tangents,)), tangent, *vjp(f, parameters)[1](one)]

    torch.testing.assert_close(along(got), along(wanted))


def test_derivatives_of_inputs() -> None:
    layer = make_layer()
    dense, x = layer.to_dense(), torch.randn(2, 6, dtype=torch.float64)
    for derive in (jacrev, jacfwd):
        torch.testing.assert_close(derive(layer)(x), derive(dense)(x))
    losses = [lambda x, m=m: m(x).pow(3).sum() for m in (layer, dense)]
    torch.testing.assert_close(hessian(losses[0])(x), hessian(losses[1])(x))
    torch.testing.assert_close(jacfwd(jacfwd(losses[0]))(x), jacrev(jacrev(losses[1]))(x))


@pytest.mark.tool("per-sample gradients (vmap of grad)", "works")
def test_per_sample_gradients() -> None:
    layer, x = make_layer(), torch.randn(4, 3, 2, 9, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    got = vmap(lambda p, x: grad(sparse_loss(layer, x))(p), in_dims=(None, 0))(parameters, x)
    each = [grad(sparse_loss(layer, part))(parameters) for part in x]
    for name, stacked in got.items():
        assert stacked.equal(torch.stack([gradients[name] for gradients in each])), "the same bits"


@pytest.mark.tool("forward mode (torch.autograd.forward_ad)", "works")
@pytest.mark.parametrize("moved", ["x", "values", "bias", "x values bias"])
@pytest.mark.parametrize("relu", [False, True])
def test_forward_mode(moved: str, relu: bool) -> None:
    layer = make_layer()
    tensors = {"x": torch.randn(3, 2, 9, dtype=torch.float64), **dict(layer.named_parameters())}
    tangents = {name: torch.randn_like(t) for name, t in tensors.items()}
    for gradients in (torch.enable_grad, torch.no_grad):
        with gradients(), forward_ad.dual_level():
            dual = {
                name: forward_ad.make_dual(t, tangents[name]) if name in moved.split() else t
                for name, t in tensors.items()
            }
            y = sc.sparse_conv1d(
                dual["x"], dual["values"], layer.pattern, dual["bias"], padding=1, relu=relu
            )
            at = layer.pattern.positions()
            flat = torch.zeros(layer.pattern.numel, dtype=torch.float64)
            weight = flat.index_put((at,), dual["values"]).view(layer.pattern.shape)
            wanted = F.conv1d(dual["x"], weight, dual["bias"], padding=1)
            wanted = wanted.relu() if relu else wanted
            torch.testing.assert_close(
                forward_ad.unpack_dual(y).tangent, forward_ad.unpack_dual(wanted).tangent
            )


@pytest.mark.tool("double backward (gradgradcheck)", "works", "every order, forward over reverse")
@pytest.mark.parametrize("relu", [False, True])
def test_every_order(relu: bool) -> None:
    layer = make_layer(stride=2, padding=(2, 0), padding_mode="reflect")
    inputs = (torch.randn(2, 2, 6, dtype=torch.float64), layer.values, layer.bias)
    leaves = tuple(t.detach().clone().requires_grad_() for t in inputs)

    def run(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        options = {"stride": 2, "padding": (2, 0), "padding_mode": "reflect", "relu": relu}
        return sc.sparse_conv1d(x, values, layer.pattern, bias, **options)

    assert gradcheck(
        run, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(run, leaves, check_fwd_over_rev=True, check_batched_grad=True)
    assert gradcheck(
        lambda *leaves: torch.autograd.grad(run(*leaves).pow(2).sum(), leaves, create_graph=True),
        leaves,
    )


@pytest.mark.tool("activation checkpointing, reentrant or not", "works", "bits of the plain step")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        sc.SparseConv1d(2, 6, 5), nn.ReLU(), nn.Dropout(0.5), sc.SparseConv1d(6, 3, 3)
    )
    x = torch.randn(4, 2, 20, requires_grad=True)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        torch.manual_seed(1)
        model.zero_grad()
        x.grad = None
        y = run(x)
        y.square().sum().backward()
        found.append([y, x.grad, *(p.grad for p in model.parameters())])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


@pytest.mark.tool("torch.autocast", "works", "bfloat16, float16; as nn.Conv1d")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_in_transforms(dtype: torch.dtype) -> None:
    layer, x = make_layer(dtype=torch.float32), torch.randn(3, 2, 9)
    with torch.autocast("cpu", dtype):
        wanted = layer(x)
        assert wanted.dtype == dtype == layer.to_dense()(x).dtype
        assert vmap(layer)(x).equal(wanted)
        gradient = grad(lambda x: layer(x).float().sum())(x)
    x.requires_grad_()
    with torch.autocast("cpu", dtype):
        y = layer(x).float().sum()
    y.backward()
    assert gradient.equal(x.grad)


@pytest.mark.tool("anomaly detection, tensor and module hooks", "works")
def test_hooks_see_gradients() -> None:
    layer, x = make_layer(), torch.randn(3, 2, 9, dtype=torch.float64, requires_grad=True)
    seen: list[Any] = []
    layer.register_full_backward_hook(lambda module, given, got: seen.append((given, got)))
    layer.values.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    with torch.autograd.detect_anomaly(check_nan=True):
        layer(x).sum().backward()
    (given, got), gradient = seen if isinstance(seen[0], tuple) else seen[::-1]
    assert given[0].equal(x.grad)
    assert got[0].equal(torch.ones_like(got[0]))
    assert gradient.equal(layer.values.grad)
