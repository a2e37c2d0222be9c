"""optimize_for_inference: nothing is merged where that could change the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from folded import norms, operations, settled
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv import SparseConv1d


def conv(**options: Any) -> SparseConv1d:
    return SparseConv1d(4, 4, 3, padding=1, density=0.5, **options)


class SpecialNorm(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class AlwaysTraining(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


class Doubled(SparseConv1d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def shared_conv() -> nn.Module:
    layer = conv()
    return nn.Sequential(layer, nn.BatchNorm1d(4), layer, nn.BatchNorm1d(4))


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm1d(4)
    return nn.Sequential(conv(), norm, conv(), norm)


def shared_block() -> nn.Module:
    block = nn.Sequential(conv(), nn.BatchNorm1d(4))
    return nn.Sequential(block, nn.Tanh(), block)


def hooked(index: int, kind: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Sequential(conv(), nn.BatchNorm1d(4))
        if kind == "pre":
            model[index].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
        else:
            model[index].register_forward_hook(lambda _, __, out: out * 2)
        return model

    return make


def own_forward() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm1d(4))
    model[0].forward = lambda x: x  # type: ignore[method-assign]
    return model


def variance_of_zero() -> nn.Module:
    norm = nn.BatchNorm1d(4, eps=0)
    norm.running_var.zero_()
    return nn.Sequential(conv(), norm).eval()


LEFT: dict[str, Callable[[], nn.Module]] = {
    "no running statistics": lambda: nn.Sequential(
        conv(), nn.BatchNorm1d(4, track_running_stats=False)
    ),
    "norm first": lambda: nn.Sequential(nn.BatchNorm1d(4), conv()),
    "not adjacent": lambda: nn.Sequential(conv(), nn.Tanh(), nn.BatchNorm1d(4)),
    "other activation": lambda: nn.Sequential(conv(), nn.GELU()),
    "ReLU6": lambda: nn.Sequential(conv(), nn.ReLU6()),
    "subclass of the norm": lambda: nn.Sequential(conv(), SpecialNorm(4)),
    "subclass of the layer": lambda: nn.Sequential(Doubled(4, 4, 3), nn.BatchNorm1d(4)),
    "always in training": lambda: nn.Sequential(conv(), AlwaysTraining(4)),
    "instance norm": lambda: nn.Sequential(conv(), nn.InstanceNorm1d(4)),
    "hook before the layer": hooked(0, "pre"),
    "hook after the layer": hooked(0, "post"),
    "hook before the norm": hooked(1, "pre"),
    "own forward": own_forward,
    "folded weights not finite": variance_of_zero,
    "pruned": lambda: nn.Sequential(
        prune.random_unstructured(nn.Conv1d(4, 4, 3), "weight", 0.5), nn.BatchNorm1d(4)
    ),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)), nn.BatchNorm1d(4)
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_as_it_is(name: str) -> None:
    torch.manual_seed(0)
    model = LEFT[name]()
    fast = sc.optimize_for_inference(model)
    model.eval()
    x = torch.randn(3, 4, 30)
    torch.testing.assert_close(fast(x), model(x), rtol=0, atol=0, equal_nan=True)
    assert operations(fast, x) == operations(model, x)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(3), nn.BatchNorm1d(4, dtype=torch.float64)], ids=str
)
def test_what_does_not_fit_fails_as_before(norm: nn.Module) -> None:
    model = nn.Sequential(conv(), norm).eval()
    said = []
    for network in (model, sc.optimize_for_inference(model)):
        with pytest.raises(RuntimeError) as caught:
            network(torch.randn(3, 4, 30))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("make", [shared_conv, shared_norm, shared_block])
def test_modules_may_stand_in_many_places(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = settled(make()), torch.randn(3, 4, 30)
    fast = sc.optimize_for_inference(model)
    torch.testing.assert_close(fast(x), model(x))
    assert norms(fast, x) == 0


def test_a_relu_may_stand_in_many_places() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(conv(), nn.BatchNorm1d(4), relu, conv(), relu, nn.Tanh(), relu)
    ran = operations(sc.optimize_for_inference(model), torch.randn(3, 4, 30))
    assert (ran["aten::batch_norm"], ran["aten::relu"]) == (0, 1)


def test_a_sequential_that_was_emptied_or_holds_none() -> None:
    fast = sc.optimize_for_inference(nn.Sequential(conv(), nn.ReLU()).eval())
    x = torch.randn(2, 4, 9)
    fast.add_module("none", None)
    with pytest.raises(TypeError, match="NoneType"):
        fast(x)
    for name in list(fast._modules):
        del fast._modules[name]
    assert fast(x) is x
    model = nn.Sequential(conv(), nn.ReLU())
    model.add_module("none", None)
    with pytest.raises(TypeError, match="NoneType"):
        sc.optimize_for_inference(model)(x)


def test_a_function_mode_sees_every_module() -> None:
    fast = sc.optimize_for_inference(nn.Sequential(conv(), nn.BatchNorm1d(4)).eval())
    x, seen = torch.randn(2, 4, 9), []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(getattr(function, "__name__", ""))
            return function(*args, **(kwargs or {}))

    with Mode():
        fast(x)
    assert "batch_norm" in seen
    with torch.device("cpu"):  # a mode, too, but it sees nothing of what is computed
        assert norms(fast, x) == 0
