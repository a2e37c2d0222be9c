"""``optimize_for_inference``: nothing is fused where that could change or hide something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folded import bordering, conv, flat, norms, operations, original_and_copy, outcome, settled
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv import SparseConv1d
from sparseconv.models import DSN
from sparseconv.nn.block import Block

X = torch.randn(3, 4, 40, generator=torch.Generator().manual_seed(0))


class AlwaysTraining(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


class Doubled(SparseConv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def hooked() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.register_forward_hook(lambda _, __, out: out * 2)
    return norm


def frozen(layer: int, name: str) -> list[nn.Module]:
    """A parameter is a buffer, as in networks that are never trained again."""
    layers = [conv(bias=True), nn.BatchNorm1d(4)]
    delattr(layers[layer], name)
    layers[layer].register_buffer(name, torch.tensor([3.0, -1.0, 0.5, 2.0]))
    return layers


def not_finite() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    norm.running_var.fill_(-1)
    return norm


def pooled(*arguments: Any, **options: Any) -> list[nn.Module]:
    return [nn.Conv1d(4, 4, *arguments, **options), nn.AdaptiveAvgPool1d(1)]


# Models in which nothing is fused.
MODELS: dict[str, Callable[[], list[nn.Module]]] = {
    "no running statistics": lambda: [conv(), nn.BatchNorm1d(4, track_running_stats=False)],
    "norm first": lambda: [nn.BatchNorm1d(4), conv()],
    "other activation": lambda: [conv(), nn.GELU()],
    "subclass of the layer": lambda: [Doubled(4, 4, 3), nn.BatchNorm1d(4)],
    "frozen bias": lambda: frozen(0, "bias"),
    "frozen scale": lambda: frozen(1, "weight"),
    "always in training": lambda: [conv(), AlwaysTraining(4)],
    "hook after the norm": lambda: [conv(), hooked()],
    "folded weights not finite": lambda: [conv(), not_finite()],
    "norm of another size": lambda: [conv(), nn.BatchNorm1d(3)],
    "norm of another dtype": lambda: [conv(), nn.BatchNorm1d(4).double()],
    "pruned": lambda: [
        prune.random_unstructured(nn.Conv1d(4, 4, 3), "weight", 0.5), nn.BatchNorm1d(4),
    ],
    "weight norm": lambda: [parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), nn.BatchNorm1d(4)],
    # Averages that are not the same before the convolution.
    "groups": lambda: pooled(1, groups=2),
    "three taps": lambda: pooled(3),
    "padding": lambda: pooled(1, padding=1),
    "stride": lambda: pooled(1, stride=2),
    "two bins": lambda: [nn.Conv1d(4, 4, 1), nn.AdaptiveAvgPool1d(2)],
    "ReLU between": lambda: [nn.Conv1d(4, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1)],
    "maximum": lambda: [nn.Conv1d(4, 4, 1), nn.AdaptiveMaxPool1d(1)],
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_left_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*MODELS[name]())
    fast = sc.optimize_for_inference(model)
    model.eval()
    assert str(outcome(fast, X)) == str(outcome(model, X))  # for NaN is not NaN
    if "another" not in name:  # torch refuses those
        assert operations(fast, X) == operations(model, X)


# Something watches a copy that was fused before, or asks for more than its output. Each gives what
# can be compared with what the original shows.


def flops(network: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops()


def autocast(network: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network(x)


def vmap(network: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda x: network(x[None])[0], randomness="same")(x)


def forward_mode(network: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(network(forward_ad.make_dual(x, x.cos()))).tangent


def hooks_on(place: str) -> Callable[[nn.Module, Tensor], Any]:
    def watch(network: nn.Module, x: Tensor) -> Any:
        seen: list[Tensor] = []
        if place not in dict(network.named_modules()):  # this model is less deep
            return seen
        module = network.get_submodule(place)
        handles = [
            module.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
            module.register_forward_hook(
                lambda _, args, y: seen.extend([args[0].detach().clone(), y.detach().clone()])
            ),
        ]
        seen.append(network(x))
        for handle in handles:
            handle.remove()
        return seen

    return watch


def hooks_on_all(network: nn.Module, x: Tensor) -> str:
    called: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: called.append(
            "sequence" if isinstance(module, nn.Sequential) else type(module).__name__
        )
    )
    try:
        network(x)
    finally:
        handle.remove()
    return " ".join(called)


def function_mode(network: nn.Module, x: Tensor) -> str:
    seen: list[str] = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    with Mode():
        network(x)
    return " ".join(name for name in seen if name in ("batch_norm", "relu", "conv1d"))


def other_state(network: nn.Module, x: Tensor) -> Tensor:
    state = {k: t + 1 for k, t in network.state_dict().items() if t.is_floating_point()}
    return torch.func.functional_call(network, state, (x,))


def input_gradient(network: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(network(x).square().sum(), x)[0]


WATCHERS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "flops": flops,
    "autocast": autocast,
    "vmap": vmap,
    "forward mode": forward_mode,
    "jvp": lambda network, x: torch.func.jvp(network, (x,), (x.cos(),))[1],
    "grad": lambda network, x: torch.func.grad(lambda x: network(x).square().sum())(x),
    "compile": lambda network, x: torch.compile(network, backend="aot_eager", fullgraph=True)(x),
    "script": lambda network, x: torch.jit.script(network)(x),
    "trace": lambda network, x: torch.jit.trace(network, x, check_trace=False)(x),
    **{f"hooks on {place}": hooks_on(place) for place in ("0", "1", "2", "3", "0.0", "0.2", "1.0")},
    "hooks on all": hooks_on_all,
    "function mode": function_mode,
    "other state": other_state,
    "gradient": input_gradient,
    "export": lambda network, x: torch.export.export(network, (x,)).module()(x),
    "fx": lambda network, x: torch.fx.symbolic_trace(network)(x),
}
ONLY_DENSE = ("script", "trace", "fx")  # SparseConv1d knows none of them


def dense(kind: type[nn.Sequential]) -> nn.Sequential:
    return kind(nn.Conv1d(4, 9, 3), nn.BatchNorm1d(9), nn.ReLU(), nn.Conv1d(9, 4, 1))


@pytest.mark.promise("P7")
@pytest.mark.parametrize("kind", [nn.Sequential, Block])
@pytest.mark.parametrize("name", WATCHERS)
def test_watchers_see_what_the_original_shows(name: str, kind: type[nn.Sequential]) -> None:
    for make in (dense,) if name in ONLY_DENSE else (flat, bordering):
        model, fast = original_and_copy(lambda make=make: make(kind))
        model.requires_grad_(False)
        before, watch = fast(X), WATCHERS[name]
        seen, wanted = watch(fast, X), watch(model, X)
        if isinstance(wanted, str):
            assert seen == wanted
        else:
            torch.testing.assert_close(seen, wanted)
        assert torch.equal(fast(X), before)
        assert norms(fast, X) == 0


# Training the copy


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_the_original(training: bool) -> None:
    torch.manual_seed(0)
    model = settled(DSN(2, 3, nf=5, kernel_size=9, depth=2))
    fast, x = sc.optimize_for_inference(model), torch.randn(8, 2, 40)
    with torch.inference_mode():
        fast(x)
    model.train(training)
    fast.requires_grad_(True).train(training)
    for network in (model, fast):
        F.nll_loss(network(x), torch.arange(8) % 3).backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    for name, parameter in fast.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
    for a, b in zip(fast.buffers(), model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_fused_only_while_nothing_asks_for_gradients() -> None:
    _, fast = original_and_copy(flat)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert norms(fast, X) == 0
    assert norms(fast, X.clone().requires_grad_()) == 2
    with torch.no_grad():
        assert norms(fast, X.clone().requires_grad_()) == 0
        fast[1].weight.requires_grad_(True)  # may be written to without being counted
        assert norms(fast, X) == 1
    before = fast.train()[1].running_mean.clone()
    fast(X)
    assert not fast[1].running_mean.equal(before)
    fast.requires_grad_(False).eval()
    assert norms(fast, X) == 0
