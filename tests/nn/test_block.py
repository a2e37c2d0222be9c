"""``Block`` is a sequence of ordinary modules: only the clock shows a difference."""

from __future__ import annotations

import copy
import pickle
import platform
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import CONV, NORM, POINTWISE, Ops, X, make_block, plain
from layers import Function
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module as modules
from torch.nn.utils import parametrizations

from sparseconv import KernelCSR, SparseConv1d
from sparseconv.models import DSN
from sparseconv.nn import block as block_module
from sparseconv.nn.block import Block
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(
    not extension.has_fma(), reason="needs the C++ kernels and multiply-adds"
)


FUSED = [(POINTWISE, CONV, NORM)]  # computed in one graph
NO_NORM = FOLDED = [(POINTWISE, CONV)]
NO_1X1 = [(CONV, NORM)]


@pytest.mark.promise("P7")
@pytest.mark.parametrize("isa", extension.isas())
def test_every_instruction_set_with_multiply_adds(
    isa: str, taken: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make_block()
    twin = plain(block)
    block(X)
    block.load_state_dict(twin.state_dict())
    taken.clear()
    monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
    torch.testing.assert_close(block(X), twin(X))
    assert extension.has_fma() == (isa != "baseline" or platform.machine() in ("aarch64", "arm64"))
    assert taken == (FUSED if extension.has_fma() else [])
    torch.testing.assert_close(block.state_dict(), twin.state_dict())


def hook(*_: Any) -> None:
    return None


def own_forward(block: Block) -> None:
    norm = block.norm
    norm.forward = lambda x: nn.BatchNorm1d.forward(norm, x)


def weighted(b: Block, *shape: int, padding: Any = (0,)) -> None:
    b.bottleneck.weight, b.bottleneck.padding = nn.Parameter(torch.ones(shape)), padding


def reordered(b: Block) -> None:
    bias = b.norm.bias
    del b.norm.weight, b.norm.bias
    b.norm.bias, b.norm.weight = bias, nn.Parameter(torch.full((9,), 2.0))


def overwritten(b: Block) -> None:
    b.conv.col_indices.copy_(KernelCSR.random(b.conv.pattern.shape, 36).col_indices)


class Subclass(Tensor):
    pass


def of_subclass(block: Block) -> None:
    weight = block.bottleneck.weight.detach()
    block.bottleneck.weight = nn.Parameter(weight.as_subclass(Subclass))


def with_bottleneck(kernel_size: int, **options: Any) -> Callable[[Block], Any]:
    conv = nn.Conv1d(6, 4, kernel_size, bias=False, **options)
    return lambda block: block.set_submodule("bottleneck", conv)


class RaisedReLU(nn.ReLU):
    """Not exactly nn.ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class UncheckedNorm(nn.BatchNorm1d):
    _check_input_dim = hook


# What changes a block, and what is then still fused.
CHANGES: dict[str, tuple[Callable[[Block], Any], list[str]]] = {
    "norm hook": (lambda b: b.norm.register_forward_hook(hook), NO_NORM),
    "norm backward hook": (lambda b: b.norm.register_full_backward_hook(hook), NO_NORM),
    "relu hook": (lambda b: b.relu.register_forward_hook(hook), FUSED),
    "own forward": (own_forward, NO_NORM),
    "relu subclass": (lambda b: b.set_submodule("relu", RaisedReLU()), FUSED),
    "other activation": (lambda b: b.set_submodule("relu", nn.ELU()), FUSED),
    "frozen statistics": (lambda b: b.norm.eval(), FOLDED),
    "own average": (lambda b: setattr(b.norm, "momentum", None), NO_NORM),
    "no affine": (lambda b: b.set_submodule("norm", nn.BatchNorm1d(9, affine=False)), FUSED),
    "norm subclass": (lambda b: b.set_submodule("norm", UncheckedNorm(9)), NO_NORM),
    "weight norm": (lambda b: parametrizations.weight_norm(b.bottleneck), NO_1X1),
    "bias": (lambda b: b.set_submodule("bottleneck", nn.Conv1d(6, 4, 1)), FUSED),
    "stride": (with_bottleneck(1, stride=2), NO_1X1),
    "groups": (with_bottleneck(1, groups=2), NO_1X1),
    "padding": (with_bottleneck(1, padding=1), NO_1X1),
    "three taps": (with_bottleneck(3), NO_1X1),
    "subclass of tensor": (of_subclass, []),
    "no sparse layer": (lambda b: b.set_submodule("conv", nn.Conv1d(4, 9, 1, bias=False)), []),
    "reference": (lambda b: setattr(b.conv, "backend", "reference"), []),
    "double": (lambda b: b.double(), FUSED),
    "bfloat16": (lambda b: b.bfloat16(), []),
    "untracked": (lambda b: setattr(b.norm, "track_running_stats", False), FUSED),
    "longer": (lambda b: weighted(b, 4, 6, 3, padding="same"), NO_1X1),
    "reordered": (reordered, FUSED),
    "few channels": (lambda b: weighted(b, 2, 6, 2), []),
    "many channels": (lambda b: weighted(b, 6, 4, 1), []),
    "wide weight": (lambda b: b.bottleneck.double(), []),
    "no bias": (lambda b: b.conv.register_parameter("bias", None), FUSED),
    "no mean": (lambda b: setattr(b.norm, "running_mean", None), []),
    "no count": (lambda b: b.norm.register_buffer("num_batches_tracked", None), FUSED),
    "whole momentum": (lambda b: setattr(b.norm, "momentum", 1), FUSED),
    "array in the layer": (lambda b: setattr(b.conv, "scores", np.ones(4)), FUSED),
    "array in the norm": (lambda b: setattr(b.norm, "scores", np.ones(4)), NO_NORM),
    "list in a tuple": (lambda b: setattr(b.norm, "notes", ("kept", ["a list"])), []),
    "two outputs": (lambda b: b.append(nn.MaxPool1d(2, return_indices=True)), []),
    "compiled": (lambda b: b.bottleneck.compile(backend="eager", disable=True), NO_1X1),
    "compiled call": (lambda b: setattr(b.relu, "_compiled_call_impl", torch.neg), FUSED),
    "overwritten pattern": (overwritten, []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_the_modules_do_is_done(name: str, taken: Ops) -> None:
    change, fused = CHANGES[name]
    block = make_block()
    block(X)  # planned as it was
    taken.clear()
    with torch.no_grad():
        change(block)
    x = X.to(next(block.parameters()).dtype)
    sequence = nn.Sequential(OrderedDict(block._modules))  # of the same modules, hooks and all
    held = [*block.parameters(), *block.buffers()]
    before, results = [t.detach().clone() for t in held], []
    for model in (block, sequence):
        try:
            y: Any = model(x)
        except (RuntimeError, ValueError) as error:
            y = str(error)
        results.append((y, [t.detach().clone() for t in held]))
        for t, old in zip(held, before, strict=True):
            t.data.copy_(old)
    (found, *after), (wanted, *expected) = results
    if isinstance(wanted, str):
        assert found == wanted
    else:
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(after, expected)
    assert taken == fused


@pytest.mark.parametrize(
    "register",
    [
        modules.register_module_forward_hook,
        modules.register_module_forward_pre_hook,
        modules.register_module_full_backward_hook,
        modules.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_hooks_of_all_modules(register: Any, taken: Ops) -> None:
    block = make_block()
    handle = register(hook)
    try:
        block(X)
    finally:
        handle.remove()
    with saved_tensors_hooks(lambda x: x, lambda x: x):
        block(X)
    assert taken == []


@pytest.mark.promise("P5")
@pytest.mark.parametrize(("name", "value"), [("eps", 0.0), ("eps", None), ("momentum", "a")])
def test_what_batch_norm_refuses_is_refused(name: str, value: Any) -> None:
    block = make_block()
    block(X)
    setattr(block.norm, name, value)
    before = block.norm.running_var.clone()
    with pytest.raises((ValueError, TypeError)):
        block(X)
    assert before.equal(block.norm.running_var)


@pytest.mark.promise("P5")
def test_what_cannot_be_saved_changes_no_statistics() -> None:
    with torch.inference_mode():
        x = X.clone()

    def refuse(_: Any) -> Any:
        raise RuntimeError("cannot be saved")

    for context, given in ((nullcontext(), x), (saved_tensors_hooks(refuse, refuse), X)):
        block = make_block()
        before = copy.deepcopy(block.norm.state_dict())
        with context, pytest.raises(RuntimeError, match="saved"):
            block(given)
        for name, tensor in block.norm.state_dict().items():
            assert tensor.equal(before[name]), name


def test_a_sequence_like_any_other(taken: Ops) -> None:
    block = make_block()
    twin = plain(block)
    want = block.eval()(X)
    for other in (copy.deepcopy(block), copy.copy(block), pickle.loads(pickle.dumps(block))):
        assert other(X).equal(want)
    assert isinstance(block[:2], nn.Sequential)
    torch.testing.assert_close(block[2:](block[:2](X)), want)
    twin.load_state_dict(block.state_dict())
    torch.testing.assert_close(twin.eval()(X), want)
    assert type(block[0]) is nn.Conv1d


@pytest.mark.parametrize("place", ["blocks", "head"])
def test_parts_of_a_network_with_hooks_are_called(place: str) -> None:
    model, seen = DSN(1, 3, nf=5, kernel_size=9), []
    model.get_submodule(place).register_forward_hook(lambda *_: seen.append(place))
    model(torch.randn(2, 1, 30))
    assert seen == [place]


# --- in bfloat16, in rows: on AMX, on AVX-512, and on their twins (ops: test_row_ops) ---

BF16 = torch.bfloat16
UNIT = torch.finfo(BF16).eps / 2  # of one rounding


def test_autocast_and_a_model_of_bfloat16(
    unit: str, taken: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are as near to float64 as those of torch's modules, within a factor of two."""
    torch.manual_seed(0)
    model = DSN(3, 4, nf=16, kernel_size=9, depth=2, block=16)
    x, y = torch.randn(6, 3, 30), torch.arange(6) % 4

    def gradients(model: nn.Module, x: Tensor, casts: bool) -> list[Tensor]:
        with torch.autocast("cpu", BF16, enabled=casts):
            out = model(x)
        loss = F.nll_loss(out.to(torch.float64 if x.dtype == torch.float64 else torch.float32), y)
        return list(torch.autograd.grad(loss, list(model.parameters())))

    exact = gradients(copy.deepcopy(model).double(), x.double(), False)
    taken.clear()
    for twin, given, casts in (
        (copy.deepcopy(model), x, True),
        (copy.deepcopy(model).to(BF16), x.to(BF16), False),
    ):
        modules = copy.deepcopy(twin)
        got = gradients(twin, given, casts)
        assert taken.pop().count(CONV) == 2, "two blocks run together"
        with monkeypatch.context() as patch:
            patch.setattr(block_module, "runs_eagerly", lambda: False)
            others = gradients(modules, given, casts)
        assert not taken
        assert [g.dtype for g in got] == [p.dtype for p in twin.parameters()]
        for a, b, wanted in zip(got, others, exact, strict=True):
            assert (a.double() - wanted).norm() <= 2 * (
                b.double() - wanted
            ).norm() + UNIT * wanted.norm()
    with torch.autocast("cpu", torch.float16):
        model(x)
    assert not taken


def test_a_norm_that_begins_keeps_float32_and_types_are_those_of_modules(unit: str) -> None:
    torch.manual_seed(0)
    conv = SparseConv1d(32, 32, 3, padding=1, block=16)
    block = Block(nn.BatchNorm1d(32), nn.ReLU(), conv, nn.BatchNorm1d(32), nn.ReLU())
    x = 1000 + torch.randn(3, 32, 40)
    plain = nn.Sequential(*copy.deepcopy(block))
    with torch.autocast("cpu", BF16):
        y, wanted = block(x), plain(x)
    assert (y - wanted).norm() <= 4 * UNIT * wanted.norm()
    torch.testing.assert_close(block[0].running_var, plain[0].running_var)
    for layers in (block[2:], plain[2:]):
        with pytest.raises((RuntimeError, TypeError), match=r"(?i)type"):
            layers(x.to(BF16))  # float32 weights without autocast


def test_a_1x1_convolution_of_too_many_channels_runs_as_a_module(unit: str) -> None:
    block = Block(SparseConv1d(16, 16, 3, padding=1, block=16), nn.Conv1d(16, 2100, 1))
    x = torch.randn(1, 16, 5)
    with torch.autocast("cpu", BF16):
        torch.testing.assert_close(block(x), nn.Sequential(*block)(x))


def test_modules_of_other_types_are_called(taken: Ops) -> None:
    block = make_block()
    pair, first = Function(lambda x: (x, "state")), Function(lambda pair: pair[0])
    sequence = nn.Sequential(*block, pair, first, *copy.deepcopy(block)[1:]).eval()
    sequence[-3] = SparseConv1d(9, 9, 3, padding=1)
    torch.testing.assert_close(Block(*sequence)(X), sequence(X))
    assert taken
    with pytest.raises(TypeError, match="input"):
        block("a series")
    block.register_module("nothing", None)
    with pytest.raises(TypeError, match="not callable"):
        block(X)


def test_what_is_written_in_place_is_seen(taken: Ops) -> None:
    x = X.clone()
    conv = SparseConv1d(6, 6, 3, padding=1)
    block = Block(nn.LeakyReLU(0.5, True), conv, nn.BatchNorm1d(6), nn.ReLU(inplace=True))
    torch.testing.assert_close(block(x), nn.Sequential(*block)(X.clone()))
    assert x.equal(F.leaky_relu(X, 0.5))
    assert not taken
    block[1:](x)
    assert taken == [(CONV, NORM)]
