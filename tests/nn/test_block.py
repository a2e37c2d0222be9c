"""``Block`` is a sequence of ordinary modules: nobody can tell, but by the clock."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune

from sparseconv import SparseConv1d
from sparseconv.bench.network.masked import masked_copy
from sparseconv.models import DSN
from sparseconv.nn import block as block_module
from sparseconv.nn.block import Block
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.skipif(
    extension is None or extension.isas() == ["baseline"], reason="needs the C++ kernels and AVX2"
)

FUSED = ("conv1x1", "batch_norm_relu")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fused computations that ran, in their order; no input is too small for them."""
    calls: list[str] = []

    def watch(name: str) -> Callable[..., Tensor]:
        function = getattr(block_module, name)

        def call(*args: Any) -> Tensor:
            calls.append(name)
            result: Tensor = function(*args)
            return result

        return call

    for name in ("CONV_POSITIONS", "NORM_ELEMENTS"):
        monkeypatch.setattr(block_module, name, 0)
    monkeypatch.setattr(ShortAvgPool1d, "LEAST", 0)
    for name in FUSED:
        monkeypatch.setattr(block_module, name, watch(name))
    return calls


def make_block(dtype: torch.dtype = torch.float32, **options: Any) -> Block:
    torch.manual_seed(0)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["bottleneck"] = nn.Conv1d(6, 4, 1, bias=False)
    layers["conv"] = SparseConv1d(4, 9, 5, padding="same", **options)
    layers["norm"] = nn.BatchNorm1d(9)
    layers["relu"] = nn.ReLU()
    return Block(layers).to(dtype)


def plain(block: Block) -> nn.Sequential:
    return nn.Sequential(OrderedDict(copy.deepcopy(block)._modules))  # type: ignore[arg-type]


def test_it_takes_the_fused_path(taken: list[str]) -> None:
    block = make_block()
    twin = plain(block)
    x = torch.randn(3, 6, 20)
    torch.testing.assert_close(block(x), twin(x))
    assert taken == list(FUSED)
    for a, b in zip(block.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("isa", extension.isas() if extension is not None else [])
def test_every_instruction_set_but_the_baseline(
    isa: str, taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECONV_CPU_ISA", isa)
    block = make_block()
    x = torch.randn(3, 6, 20)
    torch.testing.assert_close(block(x), plain(block)(x))
    assert taken == ([] if isa == "baseline" else list(FUSED))


def test_small_inputs_go_module_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("too small to gain anything")

    model = DSN(1, 2)
    for name in FUSED:
        monkeypatch.setattr(block_module, name, never)
    model(torch.randn(1, 1, 24))
    for length, name in ((500, "bottleneck"), (24, "norm")):
        children = dict(model.blocks[1].named_children())
        part = Block(OrderedDict([(name, children[name]), ("relu", nn.ReLU())]), backend="cpp")
        with pytest.raises(AssertionError, match="too small"):
            part(torch.randn(16, 141, length))


def hook(*_: Any) -> None:
    return None


def own_forward(block: Block) -> None:
    norm = block.norm
    norm.forward = lambda x: nn.BatchNorm1d.forward(norm, x)


def with_bottleneck(kernel_size: int, **options: Any) -> Callable[[Block], Any]:
    conv = nn.Conv1d(6, 4, kernel_size, bias=False, **options)
    return lambda block: block.set_submodule("bottleneck", conv)


class NamedNorm(nn.BatchNorm1d):
    """Not exactly nn.BatchNorm1d."""


class RaisedReLU(nn.ReLU):
    """Not exactly nn.ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


# What changes a block, and what is then still fused.
CHANGES: dict[str, tuple[Callable[[Block], Any], list[str]]] = {
    "norm hook": (lambda b: b.norm.register_forward_hook(hook), ["conv1x1"]),
    "norm pre-hook": (lambda b: b.norm.register_forward_pre_hook(hook), ["conv1x1"]),
    "norm backward hook": (lambda b: b.norm.register_full_backward_hook(hook), ["conv1x1"]),
    "norm backward pre-hook": (lambda b: b.norm.register_full_backward_pre_hook(hook), ["conv1x1"]),
    "relu hook": (lambda b: b.relu.register_forward_hook(hook), ["conv1x1"]),
    "bottleneck hook": (lambda b: b.bottleneck.register_forward_hook(hook), ["batch_norm_relu"]),
    "conv hook": (lambda b: b.conv.register_forward_hook(hook), list(FUSED)),
    "own forward": (own_forward, ["conv1x1"]),
    "norm subclass": (lambda b: b.set_submodule("norm", NamedNorm(9)), ["conv1x1"]),
    "relu subclass": (lambda b: b.set_submodule("relu", RaisedReLU()), ["conv1x1"]),
    "other activation": (lambda b: b.set_submodule("relu", nn.ELU()), ["conv1x1"]),
    "no activation": (lambda b: b.pop(3), ["conv1x1"]),
    "weight norm": (lambda b: parametrizations.weight_norm(b.bottleneck), ["batch_norm_relu"]),
    "pruned": (lambda b: prune.l1_unstructured(b.bottleneck, "weight", 3), ["batch_norm_relu"]),
    "bias": (lambda b: b.set_submodule("bottleneck", nn.Conv1d(6, 4, 1)), ["batch_norm_relu"]),
    "stride": (with_bottleneck(1, stride=2), ["batch_norm_relu"]),
    "groups": (with_bottleneck(1, groups=2), ["batch_norm_relu"]),
    "padding": (with_bottleneck(1, padding=1), ["batch_norm_relu"]),
    "three taps": (with_bottleneck(3), ["batch_norm_relu"]),
    "spelled out": (with_bottleneck(1, padding="same"), list(FUSED)),
    "no sparse layer": (lambda b: b.set_submodule("conv", nn.Conv1d(4, 9, 1, bias=False)), []),
    "reference": (lambda b: setattr(b.conv, "backend", "reference"), []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_the_modules_do_is_done(name: str, taken: list[str]) -> None:
    change, fused = CHANGES[name]
    block = make_block()
    change(block)
    x = torch.randn(3, 6, 20)
    sequence = nn.Sequential(OrderedDict(block._modules))  # of the same modules, hooks and all
    torch.testing.assert_close(block(x), sequence(x))
    assert taken == fused


def test_hooks_see_what_they_should() -> None:
    seen: dict[str, Tensor] = {}
    block = make_block()
    for name, module in block.named_children():
        module.register_forward_hook(
            lambda module, args, y, name=name: seen.setdefault(name, y.detach().clone())
        )
    block(torch.randn(3, 6, 20))
    assert list(seen) == ["bottleneck", "conv", "norm", "relu"]
    assert seen["relu"].equal(seen["norm"].relu())


def test_global_hooks(taken: list[str]) -> None:
    called = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, y: called.append(type(module).__name__)
    )
    try:
        make_block()(torch.randn(3, 6, 20))
    finally:
        handle.remove()
    assert called == ["Conv1d", "SparseConv1d", "BatchNorm1d", "ReLU", "Block"]
    assert not taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_are_torchs(dtype: torch.dtype, taken: list[str]) -> None:
    x = torch.randn(3, 6, 20)
    assert make_block(dtype)(x.to(dtype)).dtype == dtype
    with torch.autocast("cpu", dtype):
        assert make_block()(x).dtype == dtype
    assert not taken


@pytest.mark.promise("P7")
def test_environment_and_compiler(taken: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = make_block(), torch.randn(3, 6, 20)
    want = block(x)
    assert taken == list(FUSED)
    want.sum().backward()  # plans of a pattern are made outside the compiler
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), want)
    monkeypatch.setenv("SPARSECONV_BACKEND", "reference")
    torch.testing.assert_close(block(x), want)
    assert taken == list(FUSED)


def test_transforms_and_traces_run_on_torch(taken: list[str]) -> None:
    norm, x = nn.BatchNorm1d(4), torch.randn(3, 6, 20)
    block = Block(nn.Conv1d(6, 4, 1, bias=False), norm, nn.ReLU(), backend="cpp").eval()
    want = block(x)
    assert taken == ["conv1x1"]
    torch.testing.assert_close(torch.func.vmap(lambda x: block(x[None])[0])(x), want)
    torch.testing.assert_close(torch.jit.trace(block, x, check_trace=False)(x), want)
    assert taken == ["conv1x1"]


def test_a_slice_keeps_the_backend(taken: list[str]) -> None:
    block = Block(nn.Conv1d(6, 4, 1, bias=False), nn.BatchNorm1d(4), nn.ReLU(), backend="cpp")
    block[1:](block[:1](torch.randn(3, 6, 20)))
    assert taken == list(FUSED)
    assert type(block[0]) is nn.Conv1d


def test_forward_mode_runs_on_torch(taken: list[str]) -> None:
    x, tangent = torch.randn(2, 3, 6, 20)
    block = Block(nn.Conv1d(6, 4, 1, bias=False), nn.BatchNorm1d(4), nn.ReLU(), backend="cpp")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        got, want = (forward_ad.unpack_dual(m(dual)) for m in (block, nn.Sequential(*block)))
        torch.testing.assert_close(got.tangent, want.tangent)
        block = make_block().eval()
        dense = plain(block)
        dense.conv = block.conv.to_dense()
        got, want = (forward_ad.unpack_dual(m(dual)) for m in (block, dense))
        torch.testing.assert_close(got.tangent, want.tangent)
    assert taken == []


def test_a_sequence_like_any_other() -> None:
    block, x = make_block(), torch.randn(3, 6, 20)
    twin = plain(block)
    assert block.state_dict().keys() == twin.state_dict().keys()
    assert repr(block) == repr(twin).replace("Sequential", "Block")
    assert [name for name, _ in block.named_modules()] == [n for n, _ in twin.named_modules()]
    want = block.eval()(x)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other(x).equal(want)
    assert isinstance(block[:2], nn.Sequential)
    assert block[2:](block[:2](x)).equal(want)
    twin.load_state_dict(block.state_dict())
    torch.testing.assert_close(twin.eval()(x), want)


def test_networks_pickled_with_sequences_still_load(taken: list[str]) -> None:
    model = DSN(3, 2, nf=4, kernel_size=9, depth=2)
    x = torch.randn(2, 3, 30)
    model(x)
    assert taken == [*FUSED, *FUSED, "conv1x1"]
    taken.clear()
    want = model.eval()(x)
    assert taken == 3 * ["conv1x1"], "in eval mode torch normalises"
    for i, block in enumerate(model.blocks):
        model.blocks[i] = plain(block)
    model.head = plain(model.head)
    old = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(old(x), want)
    assert len(taken) == 3, "an old copy runs as it did"
    fresh = DSN(3, 2, nf=4, kernel_size=9, depth=2)
    fresh.load_state_dict(old.state_dict())
    torch.testing.assert_close(fresh.eval()(x), want)


def test_the_masked_rival_runs_on_torch(taken: list[str]) -> None:
    masked_copy(DSN(3, 2, nf=4, kernel_size=9, depth=2)).blocks(torch.randn(2, 3, 30))
    assert not taken


@pytest.mark.parametrize("length", [1, 24, 57, 128, 300])
def test_training_is_that_of_the_plain_modules(length: int, taken: list[str]) -> None:
    steps, dtype = 5, torch.float64
    torch.manual_seed(length)
    fused = DSN(1, 3, nf=5, kernel_size=9, init="random").to(dtype)
    modules = copy.deepcopy(fused)
    for i, block in enumerate(modules.blocks):
        modules.blocks[i] = plain(block)
    modules.head = plain(modules.head)
    modules.head[0] = nn.AdaptiveAvgPool1d(50)
    X, y = torch.randn(6, 1, length, dtype=dtype), torch.arange(6) % 3
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (fused, modules)]
    for _ in range(steps):
        for model, optimizer in zip((fused, modules), optimizers, strict=True):
            optimizer.zero_grad()
            F.nll_loss(model(X), y).backward()
            optimizer.step()
    assert len(taken) == steps * (3 + 4 + 1)
    for (name, a), b in zip(fused.state_dict().items(), modules.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_second_derivatives() -> None:
    block = make_block(torch.float64)
    x = torch.randn(2, 6, 9, dtype=torch.float64, requires_grad=True)
    got, want = (
        torch.autograd.grad(
            torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0].square().sum(),
            list(model.parameters()),
        )
        for model in (block, plain(block))
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
