"""Where torch is asked for more than computing, the C++ paths of layers and blocks step aside.

A plain C++ function would be silently wrong in forward mode and under autocast. Each case runs a
layer and a block; their twins compute with the dense reference, module by module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from sparseconv import SparseConv1d
from sparseconv.nn.block import Block

Pair = tuple[nn.Module, nn.Module]


def layer() -> nn.Module:
    return SparseConv1d(3, 4, 5, stride=2, padding=2, padding_mode="circular")


def block() -> nn.Module:
    conv = SparseConv1d(3, 6, 5, padding="same", density=0.5)
    mixed = nn.Conv1d(6, 4, 1, bias=False)
    return Block(conv, nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), mixed)


@pytest.fixture(params=[layer, block])
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    model: nn.Module = request.param().double()
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, SparseConv1d):
            module.backend = "reference"
    return model, twin


def sample() -> Tensor:
    return torch.randn(2, 3, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(
    model: nn.Module,
    forward: Callable[[], Any] = nullcontext,
    backward: Callable[[], Any] = nullcontext,
    view: Callable[[Tensor], Tensor] = torch.clone,
    grads: Callable[[Tensor], Tensor] = torch.cos,
    x: Tensor | None = None,
    **how: Any,
) -> list[Tensor]:
    """The output, and the gradients of input and parameters."""
    x = view(sample()).requires_grad_() if x is None else x
    with forward():
        y = model(x)
    with backward():
        grad = view(grads(y.detach()))
        return [y, *torch.autograd.grad(y, [x, *model.parameters()], grad, **how)]


def of_gradients(
    model: nn.Module,
    forward: Callable[[], Any] = nullcontext,
    backward: Callable[[], Any] = nullcontext,
) -> list[Tensor]:
    x = sample().requires_grad_()
    _, *first = gradients(model, forward, backward, x=x, create_graph=True)
    total = torch.stack([g.square().sum() for g in first]).sum()
    return list(torch.autograd.grad(total, [x, *model.parameters()], materialize_grads=True))


def forward_mode(model: nn.Module) -> Tensor:
    with forward_ad.dual_level():
        y = model(forward_ad.make_dual(sample(), torch.cos(sample())))
        return forward_ad.unpack_dual(y).tangent


def forward_mode_in_backward(model: nn.Module) -> Tensor:
    x = sample().requires_grad_()
    y = model(x)
    with forward_ad.dual_level():
        grad = forward_ad.make_dual(torch.cos(y.detach()), torch.sin(y.detach()))
        (gradient,) = torch.autograd.grad(y, x, grad)
        return forward_ad.unpack_dual(gradient).tangent


def compiled_autograd(model: nn.Module) -> list[Any]:
    x = sample().requires_grad_()
    y = model(x).square().sum()
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: y.backward(), backend="eager")()
    return [x.grad, *(p.grad for p in model.parameters())]


def checkpointed(model: nn.Module, reentrant: bool) -> list[Any]:
    x = sample().requires_grad_()
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def per_sample(model: nn.Module) -> dict[str, Tensor]:
    own = {name: p.detach() for name, p in model.named_parameters()}
    run = lambda p, x: functional_call(model, p, (x,)).pow(3).sum()  # noqa: E731
    found: dict[str, Tensor] = vmap(grad(run), in_dims=(None, 0))(own, sample()[:, None])
    return found


ASKED: dict[str, Callable[[nn.Module], Any]] = {
    "forward mode": forward_mode,
    "forward mode in backward": forward_mode_in_backward,
    "jvp": lambda model: torch.func.jvp(model, (sample(),), (torch.cos(sample()),)),
    "vjp": lambda model: torch.func.vjp(model, sample())[1](torch.ones_like(model(sample()))),
    "grad": lambda model: grad(partial(loss, model))(sample()),
    "jacrev": lambda model: torch.func.jacrev(model)(sample()),
    "jacfwd": lambda model: torch.func.jacfwd(model)(sample()),
    "hessian": lambda model: torch.func.hessian(partial(loss, model))(sample()),
    "per-sample gradients": per_sample,
    "checkpoints": partial(checkpointed, reentrant=False),
    "reentrant checkpoints": partial(checkpointed, reentrant=True),
    "hooks of saved tensors": partial(
        gradients, forward=lambda: saved_tensors_hooks(torch.clone, lambda t: t)
    ),
    "backward in autocast": partial(
        gradients, backward=lambda: torch.autocast("cpu", torch.bfloat16)
    ),
    "batched gradients": partial(
        gradients,
        grads=lambda y: torch.stack([torch.cos(y), torch.sin(y)]),
        is_grads_batched=True,
    ),
    "negative views": partial(gradients, view=torch._neg_view),
    "gradients of gradients": of_gradients,
    "the same, saved in forward": partial(of_gradients, forward=save_on_cpu),
    "the same, saved in backward": partial(of_gradients, backward=save_on_cpu),
    "the same, saved in both": partial(of_gradients, forward=save_on_cpu, backward=save_on_cpu),
    "compiled autograd": compiled_autograd,
}


@pytest.mark.promise("P7")
@pytest.mark.tool("torch.func.grad, vjp, jacrev, jacfwd, hessian, linearize", "works")
@pytest.mark.tool("per-sample gradients (vmap of grad)", "works")
@pytest.mark.tool("activation checkpointing, reentrant or not", "works")
@pytest.mark.parametrize("name", ASKED)
def test_as_the_modules_by_the_reference(name: str, pair: Pair) -> None:
    if name == "forward mode in backward" and isinstance(pair[0], Block):
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            ASKED[name](pair[0])
        return
    found, expected = map(ASKED[name], pair)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_linearize(pair: Pair) -> None:
    """Of the reference it may be NaN, as of torch's layer: the circular padding is not written."""
    x = sample()
    found = torch.func.linearize(pair[0], x)[1](torch.cos(x))
    _, expected = torch.func.jvp(pair[1], (x,), (torch.cos(x),))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_autocast(pair: Pair) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (model.float()(sample().float()) for model in pair)
    assert found.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_layer_that_occurs_twice_with_hooks_of_saved_tensors() -> None:
    layer = SparseConv1d(3, 3, 5, padding="same", density=0.5, dtype=torch.float64)
    x, found = sample(), []
    for context, again in (nullcontext(), False), (save_on_cpu(), False), (save_on_cpu(), True):
        y = Block(layer, layer)(x)
        with context:
            found.append(torch.autograd.grad(y.square().sum(), layer.values, create_graph=again))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-9, atol=1e-9)


def test_modes_see_operations_of_both_passes(pair: Pair) -> None:
    with FlopCounterMode(display=False) as forward:
        pair[0](sample())
    y = pair[0](sample().requires_grad_())
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    seen = [{str(op) for op in mode.get_flop_counts()["Global"]} for mode in (forward, backward)]
    assert "sparseconv.fprop" in seen[0]
    lanes = "lanes_" * isinstance(pair[0], Block)
    assert {f"sparseconv.{lanes}dgrad", f"sparseconv.{lanes}wgrad"} <= seen[1]


@pytest.mark.parametrize("asked", ["input", "values"])
def test_only_what_is_asked_for_is_computed(pair: Pair, asked: str) -> None:
    model, _ = pair
    x = sample().requires_grad_()
    values = next(p for name, p in model.named_parameters() if name.endswith("values"))
    y = model(x)
    full = torch.autograd.grad(y.sum(), [x, values], retain_graph=True)
    with torch.profiler.profile() as profiler:
        (alone,) = torch.autograd.grad(y.sum(), x if asked == "input" else values)
    assert alone.equal(full[asked == "values"])
    ran = {event.key for event in profiler.key_averages()}
    lanes = "lanes_" * isinstance(model, Block)
    assert (f"sparseconv::{lanes}dgrad" in ran) == (asked == "input")
    assert (f"sparseconv::{lanes}wgrad" in ran) == (asked == "values")


def test_another_number_of_weights_in_backward_is_refused(pair: Pair) -> None:
    """As another thread could do; torch itself notices what its own thread writes."""
    y = pair[0](sample())
    values = next(p for name, p in pair[0].named_parameters() if name.endswith("values"))
    values.data = values.data[:-1]
    with pytest.raises((ValueError, RuntimeError), match="values"):
        y.sum().backward()


@pytest.mark.parametrize(
    "change", [lambda t: t[..., :-1], lambda t: t.float()], ids=["shorter", "float32"]
)
def test_hooks_of_saved_tensors_that_change_them_are_refused(
    pair: Pair, change: Callable[[Tensor], Tensor]
) -> None:
    hooks = saved_tensors_hooks(lambda t: t, lambda t: change(t) if t.dim() > 1 else t)
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
        gradients(pair[0], forward=lambda: hooks)
