"""Modules that run together in eager mode: which graphs are made, and for how long they fit."""

from __future__ import annotations

import copy
import gc
import linecache
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import CONV, NORM, POINTWISE, Ops, X, make_block, plain
from graph_steps import converted
from torch import Tensor, nn

from sparseconv import KernelCSR, SparseConv1d
from sparseconv.models import DSN, LITE, OSCNN, InceptionTime, ResNet
from sparseconv.models.classifier import Residual
from sparseconv.nn import block as block_module
from sparseconv.nn.block import Block
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(
    not extension.has_fma(), reason="needs the C++ kernels and multiply-adds"
)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "DSN": lambda: DSN(2, 3, nf=5, kernel_size=9, init="random"),
    "InceptionTime": lambda: InceptionTime(2, 3, nf=4, depth=3),
    "ResNet": lambda: ResNet(2, 3, nf=4),
    "LITE": lambda: LITE(2, 3, nf=4),
    "OSCNN": lambda: OSCNN(2, 3, n_timepoints=24),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_run_together(name: str, taken: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = converted(NETWORKS[name]()).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):  # else ReLU follows zeros, up to rounding
            nn.init.normal_(module.bias)
    twin, x = copy.deepcopy(model), torch.randn(5, 2, 24, dtype=torch.float64)
    for training in (True, False):
        y = model.train(training)(x)
        y.sin().sum().backward()
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "runs_eagerly", lambda: False)
            wanted = twin.train(training)(x)
        wanted.sin().sum().backward()
        torch.testing.assert_close(y, wanted)
        for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(model.state_dict(), twin.state_dict())
    assert len(taken) == 2
    assert all(CONV in ops for ops in taken)
    # From the first block into the head, whose average comes after the reduction of channels.
    block = (CONV, NORM)
    whole = (*block, *3 * (POINTWISE, *block), POINTWISE)
    assert name != "DSN" or taken[0][: len(whole)] == whole


@pytest.mark.parametrize(("place", "name"), [("norm", "weight"), ("conv", "values")])
def test_a_weight_that_is_an_attribute_is_read_in_every_call(place: str, name: str) -> None:
    other, block = make_block(), make_block()
    other.get_submodule(place)._note = "as long a list of attributes"  # type: ignore[assignment]
    other(X)
    layer: Any = block.get_submodule(place)
    vars(layer)[name] = layer._parameters.pop(name).detach()
    for factor in (1, 2):
        vars(layer)[name].mul_(factor)
        torch.testing.assert_close(block(X), nn.Sequential(*block)(X))


def test_dense_layers_pad_as_when_they_were_made() -> None:
    for padding in (0, 1):
        conv = nn.Conv1d(6, 6, 1, padding=padding, padding_mode="reflect")
        conv.padding = (0,)
        block = Block(SparseConv1d(6, 6, 5, padding=2), nn.BatchNorm1d(6), nn.ReLU(), conv)
        torch.testing.assert_close(block(X), nn.Sequential(*block)(X))


class Owner:
    """Belongs to the user, who put it into a layer."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise AttributeError("cannot be copied")

    def __hash__(self) -> int:
        raise ValueError("cannot be compared")


@pytest.mark.parametrize("place", ["conv", "norm"])
def test_what_a_user_put_into_layers_is_left_alone(place: str) -> None:
    block, owner = make_block().eval(), Owner()
    block.get_submodule(place).owner = owner  # type: ignore[assignment]
    torch.testing.assert_close(block(X), nn.Sequential(*block)(X))
    held = weakref.ref(owner)
    del block, owner
    gc.collect()
    assert held() is None


def test_weights_of_a_functional_call_make_a_graph(taken: Ops) -> None:
    block = make_block()
    doubled = {name: 2 * p for name, p in block.named_parameters()}
    found = torch.func.functional_call(block, doubled, (X,))
    with torch.no_grad():
        for p in block.parameters():
            p.mul_(2)
    torch.testing.assert_close(found, block(X))
    assert len(taken) == 2


class Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_containers_of_other_classes_are_called() -> None:
    model, x = DSN(1, 3, nf=5, kernel_size=9).eval(), torch.randn(2, 1, 30)
    wanted = model.head(2 * model.blocks(x))
    model.blocks = Twice(*model.blocks)
    torch.testing.assert_close(model(x), wanted)


def test_few_graphs_are_kept_and_no_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "_graphs", {})
    monkeypatch.setattr(block_module, "_MOST_GRAPHS", 2)
    block = make_block()
    sources = len(linecache.cache)
    for length in (20, 30, 40, 20):
        x = torch.randn(3, 6, length)
        torch.testing.assert_close(block(x), plain(block)(x))
    assert len(block_module._graphs) == 2
    assert len(linecache.cache) == sources
    held = [weakref.ref(tensor) for tensor in block.parameters()]
    del block
    gc.collect()
    assert not any(ref() is not None for ref in held)


def test_a_layer_that_occurs_twice_is_two_in_another_block() -> None:
    torch.manual_seed(0)
    layer, norm = SparseConv1d(6, 6, 5, padding=2), nn.BatchNorm1d(6, track_running_stats=False)
    other = copy.deepcopy(layer)
    nn.init.normal_(other.values)
    for layers in ((layer, norm, layer), (layer, norm, other)):
        torch.testing.assert_close(Block(*layers)(X), nn.Sequential(*layers)(X))
    # One tensor in two layers, and then not.
    other.values = layer.values
    for _ in range(2):
        torch.testing.assert_close(Block(layer, norm, other)(X), other(norm(layer(X))))
        other.values = nn.Parameter(2 * layer.values.detach())


def test_other_kernels_and_patterns_get_other_graphs(
    unit: str, taken: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    blocks = KernelCSR.random((32, 32, 3), 1536, block=16)
    pattern = KernelCSR.from_mask(blocks.to_mask())  # of single weights
    conv = SparseConv1d(32, 32, 3, padding=1, pattern=pattern)
    block = Block(nn.BatchNorm1d(32), conv, nn.Conv1d(32, 32, 1)).bfloat16()
    x = torch.randn(4, 32, 60).bfloat16()

    def error() -> float:
        found, wanted = block(x).float(), nn.Sequential(*block)(x).float()
        return float((found - wanted).norm() / wanted.norm())

    assert error() < 0.02
    assert len(taken) == 1
    with monkeypatch.context() as patch:  # bfloat16 is in rows only where there are blocks
        patch.setenv("SPARSECONV_CPU_ISA", "baseline")
        assert error() < 0.02
        assert len(taken) == 1
    pattern = KernelCSR.random((32, 32, 3), conv.pattern.nnz)
    conv.set_pattern(pattern, torch.randn(pattern.nnz).bfloat16())
    assert error() < 0.02


def test_making_a_graph_draws_no_random_numbers(taken: Ops) -> None:
    block = Block(*make_block(), nn.Dropout(0.5), nn.Conv1d(9, 3, 1))
    outputs = []
    for _ in range(2):
        torch.manual_seed(0)
        outputs.append(block(X))
    assert outputs[0].equal(outputs[1])
    assert len(taken) == 2


OTHERS = {
    "layout": X.to_sparse(),
    "dtype": X.double(),
    "nested": torch.nested.nested_tensor([X[0]]),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_another_tensor_is_refused_by_the_layer(other: Tensor) -> None:
    block = Block(SparseConv1d(6, 9, 5, padding=2), nn.BatchNorm1d(9), nn.ReLU())
    block(X)
    with pytest.raises(Exception, match=r".") as found:
        block(other)
    with pytest.raises(type(found.value), match=re.escape(str(found.value))):
        nn.Sequential(*block)(other)


def test_the_same_block_under_autocast() -> None:
    block = make_block()
    for casts in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            found, wanted = block(X), nn.Sequential(*block)(X)
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05 if casts else 1e-5)


def test_what_is_unknown_inside_a_container_is_called(taken: Ops) -> None:
    inner = nn.Sequential(nn.Conv1d(9, 9, 1), nn.LayerNorm(20))
    block = Block(*make_block(), Residual(inner, nn.Identity()), nn.Conv1d(9, 3, 1))
    torch.testing.assert_close(block(X), nn.Sequential(*block)(X))
    assert len(taken) == 1
