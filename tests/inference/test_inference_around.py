"""``optimize_for_inference``: models around a Sequential, that run it whole or take it apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from folded import everything, norms, settled
from torch import Tensor, nn

import sparseconv as sc
from sparseconv import SparseConv1d


def conv(**options: Any) -> SparseConv1d:
    return SparseConv1d(4, 4, 3, padding=1, density=0.5, **options)


class Around(nn.Module):
    """A model around a Sequential that could be merged."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(conv(), nn.BatchNorm1d(4), nn.ReLU())


class Calls(Around):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 2:
            x = self.net(x) + x
        return self.again(x)

    def again(self, x: Tensor) -> Tensor:
        return self.net(x)


class CallsSuper(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Decorated(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Calls().net for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) + x
        return x


class Loops(Around):
    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.net:
            x = layer(x)
            kept.append(x)
        return torch.cat(kept)


class Slices(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net[:2](x)


class SlicesElsewhere(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.part(x)

    def part(self, x: Tensor) -> Tensor:
        return self.net[0](x)


class SlicesInABranch(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net[:1](x) if x.sum() > 1e9 else self.net(x)


class ByProperty(Around):
    @property
    def first(self) -> nn.Module:
        return self.net[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.net(x)


class ByName(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule("net.0")(x) + self.net(x)


class ByChildren(Around):
    def forward(self, x: Tensor) -> Tensor:
        for module in list(self.modules())[2:]:
            x = module(x) + x
        return x


class HandsItselfOn(Around):
    def forward(self, x: Tensor) -> Tensor:
        return first_of(self)(x)


def first_of(model: Any) -> nn.Module:
    return model.net[0]


class InnerFunction(Around):
    def forward(self, x: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return self.net[0](x)

        return run(x)


class OverridesCalls(CallsSuper):
    def again(self, x: Tensor) -> Tensor:
        return self.net[0](x)


class Mixed:
    def part(self, x: Tensor) -> Tensor:
        return self.net[0](x)  # type: ignore[attr-defined]


class ByMixin(Around, Mixed):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.part(x)


class ByBoundMethod(Around):
    def __init__(self) -> None:
        super().__init__()
        self.run = self.part

    def part(self, x: Tensor) -> Tensor:
        return self.net[0](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.run(x)


class ByCachedProperty(Around):
    @functools.cached_property
    def first(self) -> nn.Module:
        return self.net[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.first(x)


def adding_the_first(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    @functools.wraps(forward)
    def run(self: Any, x: Tensor) -> Tensor:
        return forward(self, x) + self.net[0](x)

    return run


class ByDecorator(Around):
    @adding_the_first
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ByAttributeAccess(Around):
    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return found[:2] if name == "net" else found

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class WithFunctions(Around):
    """What forward may use: functions, constants, parameters, sizes."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.act, self.gate = F.gelu, torch.tanh
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError
        return self.gate(self.act(self.net(x))) * self.scale + self.shift


class HoldsALayer(Around):
    """Through a list, which registers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = [self.net[0]]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.taps[0](x)


class HasALayer(Around):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.net[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.first(x)


class Counts(Around):
    """Cannot be read (a loop over children), and has side effects when it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        for child in self.children():
            x = child(x) + 0 * torch.rand(1)
        return x


class InAList(Around):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [self.net]

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part[0](x)
        return x


class Helper:
    def __init__(self, net: nn.Sequential) -> None:
        self.net = net

    def run(self, x: Tensor) -> Tensor:
        return self.net[0](x)


class ByHelper(Around):
    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper(self.net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.helper.run(x)


class CountsTheLayers(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * len(self.net)


class ByFlag(Around):
    features = False

    def forward(self, x: Tensor) -> Tensor:
        return self.net[0](x) if self.features else self.net(x)


# Whatever they do with the Sequential besides, where they run it whole it is merged.
MERGED = (
    Calls,
    CallsSuper,
    Decorated,
    WithFunctions,
    Blocks,
    Counts,
    HoldsALayer,
    InAList,
    ByHelper,
    CountsTheLayers,
    ByFlag,
    SlicesElsewhere,
    SlicesInABranch,
    ByProperty,
    ByName,
    InnerFunction,
    HandsItselfOn,
    OverridesCalls,
    HasALayer,
    ByMixin,
    ByBoundMethod,
    ByCachedProperty,
    ByDecorator,
)
RUN_THE_NORM = (Loops, Slices, ByChildren, ByAttributeAccess)


def inside(model: nn.Module) -> Iterator[nn.Module]:
    """The model alone and in other models' places."""
    yield model
    yield nn.Sequential(nn.Tanh(), model)
    yield nn.Sequential(nn.Sequential(model), nn.Tanh())


@pytest.mark.parametrize("kind", [*MERGED, *RUN_THE_NORM])
def test_models_around_a_sequential(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    for model in inside(settled(kind())):
        before, state = everything(model), torch.get_rng_state()
        fast = sc.optimize_for_inference(model)
        assert tiny.same(everything(model), before)
        assert torch.equal(torch.get_rng_state(), state)
        x = torch.randn(3, 4, 30)
        torch.testing.assert_close(fast(x), model(x))
        assert (norms(fast, x) == 0) == (kind in MERGED)


@pytest.mark.parametrize("on", ["net", ""])
def test_a_hook_may_look_inside(on: str) -> None:
    torch.manual_seed(0)
    model, x = settled(Calls()), torch.randn(3, 4, 30)
    first = (lambda m, i: m[0](i[0])) if on else (lambda m, i: m.net[0](i[0]))
    model.get_submodule(on).register_forward_hook(lambda m, i, _: first(m, i))
    torch.testing.assert_close(sc.optimize_for_inference(model)(x), model(x))


@pytest.mark.promise("P7")
def test_scripted_and_compiled_models() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 30)
    plain = nn.Sequential(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    for model in (torch.jit.script(plain), torch.compile(plain, backend="eager")):
        fast = sc.optimize_for_inference(settled(model))
        assert torch.equal(fast(x), model(x))


def test_slices_and_single_modules_are_those_of_the_original() -> None:
    torch.manual_seed(0)
    model, x = settled(Calls()), torch.randn(3, 4, 30)
    fast = sc.optimize_for_inference(model)
    fast(x)
    assert list(map(type, fast.net)) == list(map(type, model.net))
    assert torch.equal(fast.net[:2](x), model.net[:2](x))
    assert torch.equal(fast.net[1](fast.net[0](x)), model.net[1](model.net[0](x)))
    sliced = fast.net[:2].eval()
    torch.testing.assert_close(sliced(x), model.net[:2](x))
    assert norms(sliced, x) == 0
    fast.net.append(nn.Tanh())
    torch.testing.assert_close(fast.net(x), model.net(x).tanh())
    del fast.net[1]
    torch.testing.assert_close(fast.net(x), model.net[0](x).relu().tanh())
