"""Where torch is asked for more than computing, the C++ paths of layers and chains step aside.

A plain C++ function would be silently wrong in forward mode and under autocast. Each case runs a
layer and a block; their twins compute with the dense reference, module by module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sparseconv import SparseConv1d
from sparseconv.nn.block import Block
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(extension is None, reason="the C++ extension is not built")

Model = Callable[[Tensor], Tensor]


def layer() -> nn.Module:
    return SparseConv1d(3, 4, 5, padding=2, density=0.5, dtype=torch.float64)


def strided() -> nn.Module:
    return SparseConv1d(
        3, 4, 5, stride=2, padding=2, padding_mode="circular", bias=False, dtype=torch.float64
    )


def block() -> nn.Module:
    conv = SparseConv1d(3, 6, 5, padding="same", density=0.5)
    mixed = nn.Conv1d(6, 4, 1, bias=False)
    return Block(conv, nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), mixed).double()


@pytest.fixture(params=[layer, strided, block])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model: nn.Module = request.param()
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, SparseConv1d):
            module.backend = "reference"
    return model, twin


def sample() -> Tensor:
    return torch.randn(2, 3, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def gradients(model: nn.Module, y: Tensor, x: Tensor, grad: Tensor, **how: Any) -> list[Tensor]:
    return list(torch.autograd.grad(y, [x, *model.parameters()], grad, **how))


def test_forward_mode(pair: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for model in pair:
        with forward_ad.dual_level():
            y = model(forward_ad.make_dual(sample(), torch.cos(sample())))
            found.append(forward_ad.unpack_dual(y).tangent)
    assert found[0] is not None
    same(*found)


def test_forward_mode_in_backward_alone(pair: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for model in pair:
        x = sample().requires_grad_()
        y = model(x)
        with forward_ad.dual_level():
            grad = forward_ad.make_dual(torch.cos(y.detach()), torch.sin(y.detach()))
            (gradient,) = torch.autograd.grad(y, x, grad)
            found.append(forward_ad.unpack_dual(gradient).tangent)
    assert found[0] is not None
    same(*found)


def test_transforms(pair: tuple[nn.Module, nn.Module]) -> None:
    for transform in (
        lambda model: torch.func.jvp(model, (sample(),), (torch.cos(sample()),)),
        lambda model: torch.func.vjp(model, sample())[1](torch.ones_like(model(sample()))),
        lambda model: torch.func.grad(lambda x: model(x).square().sum())(sample()),
    ):
        same(*map(transform, pair))


def test_autocast(pair: tuple[nn.Module, nn.Module]) -> None:
    for model in pair:
        model.float()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (model(sample().float()) for model in pair)
    assert found.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_hooks_of_saved_tensors(pair: tuple[nn.Module, nn.Module]) -> None:
    found, packed = [], []
    for model in pair:
        x = sample().requires_grad_()
        with saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
            y = model(x)
        found.append(gradients(model, y, x, torch.cos(y.detach())))
        assert packed
        packed.clear()
    same(*found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(pair: tuple[nn.Module, nn.Module], reentrant: bool) -> None:
    found = []
    for model in pair:
        x = sample().requires_grad_()
        checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    same(*found)


@pytest.mark.parametrize("hooked", ["forward", "backward", "both"])
def test_gradients_of_gradients_with_hooks_of_saved_tensors(
    pair: tuple[nn.Module, nn.Module], hooked: str
) -> None:
    found = []
    for model in pair:
        x = sample().requires_grad_()
        with save_on_cpu() if hooked != "backward" else nullcontext():
            y = model(x)
        with save_on_cpu() if hooked != "forward" else nullcontext():
            (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        found.append(gradients(model, g, x, torch.cos(g.detach())))
    same(*found)


def test_a_layer_that_occurs_twice_with_hooks_of_saved_tensors() -> None:
    layer = SparseConv1d(3, 3, 5, padding="same", density=0.5, dtype=torch.float64)
    x = sample()
    found = []
    for context, again in (nullcontext(), False), (save_on_cpu(), False), (save_on_cpu(), True):
        y = Block(layer, layer)(x)
        with context:
            found.append(torch.autograd.grad(y.square().sum(), layer.values, create_graph=again))
    for other in found[1:]:
        same(found[0], other)


def test_backward_in_autocast(pair: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for model in pair:
        x = sample().requires_grad_()
        y = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(model, y, x, torch.cos(y.detach())))
    same(*found)


def test_batched_gradients(pair: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for model in pair:
        x = sample().requires_grad_()
        y = model(x)
        grads = torch.stack([torch.cos(y.detach()), torch.sin(y.detach())])
        found.append(gradients(model, y, x, grads, is_grads_batched=True))
    same(*found)


def test_gradients_of_gradients(pair: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for model in pair:
        x = sample().requires_grad_()
        y = model(x)
        first = gradients(model, y, x, torch.cos(y.detach()), create_graph=True)
        total = torch.stack([g.square().sum() for g in first]).sum()
        second = torch.autograd.grad(total, [x, *model.parameters()], materialize_grads=True)
        found.append(list(second))
    same(*found)


def test_modes_see_operations_of_both_passes(pair: tuple[nn.Module, nn.Module]) -> None:
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.add(str(op).removesuffix(".default"))
            return op(*args, **(kwargs or {}))

    x = sample().requires_grad_()
    with Watch():
        y = pair[0](x)
    assert "sparseconv.fprop" in seen
    y = pair[0](x)
    with Watch():
        y.sum().backward()
    assert {"sparseconv.dgrad", "sparseconv.wgrad"} < seen


def test_compiled_autograd(pair: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for model in pair:
        x = sample().requires_grad_()
        y = model(x).square().sum()
        with torch._dynamo.config.patch(compiled_autograd=True):
            torch.compile(lambda y=y: y.backward(), backend="eager")()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    same(*found)


def test_negative_views(pair: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for model in pair:
        x = torch._neg_view(sample()).requires_grad_()
        y = model(x)
        found.append([y, *gradients(model, y, x, torch._neg_view(torch.cos(y.detach())))])
    same(*found)


@pytest.mark.parametrize("asked", ["input", "values"])
def test_only_what_is_asked_for_is_computed(pair: tuple[nn.Module, nn.Module], asked: str) -> None:
    model, _ = pair
    x = sample().requires_grad_()
    values = next(p for name, p in model.named_parameters() if name.endswith("values"))
    y = model(x)
    full = dict(
        zip(
            ("input", "values"),
            torch.autograd.grad(y.sum(), [x, values], retain_graph=True),
            strict=True,
        )
    )
    with torch.profiler.profile() as profiler:
        (alone,) = torch.autograd.grad(y.sum(), {"input": x, "values": values}[asked])
    assert alone.equal(full[asked])
    ran = {event.key for event in profiler.key_averages()}
    assert ("sparseconv::dgrad" in ran) == (asked == "input")
    assert ("sparseconv::wgrad" in ran) == (asked == "values")


def test_another_number_of_weights_in_backward_is_refused(
    pair: tuple[nn.Module, nn.Module],
) -> None:
    """As another thread could do; torch itself notices what its own thread writes."""
    model, _ = pair
    values = next(p for name, p in model.named_parameters() if name.endswith("values"))
    y = model(sample())
    values.data = values.data[:-1]
    with pytest.raises((ValueError, RuntimeError), match=r"values|parameter of shape"):
        y.sum().backward()


@pytest.mark.parametrize("change", [lambda t: t[..., :-1], lambda t: t.float()])
def test_hooks_of_saved_tensors_that_change_them_are_refused(
    pair: tuple[nn.Module, nn.Module], change: Callable[[Tensor], Tensor]
) -> None:
    model, _ = pair
    x = sample().requires_grad_()
    with saved_tensors_hooks(lambda t: t, lambda t: change(t) if t.dim() > 1 else t):
        y = model(x)
    with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
        torch.autograd.grad(y.sum(), [x, *model.parameters()])
