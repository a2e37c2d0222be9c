"""In bfloat16: what has no rule in rows is computed in lanes, in float32."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_steps import check, check_rounded, compiled, isa_without_blocks, sparse
from layers import Function
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparseconv.compiler import backend, compiled_report
from sparseconv.compiler.choice import choose
from sparseconv.ops.backends import extension

pytestmark = pytest.mark.promise("P7")


def test_a_network_with_few_channels() -> None:
    body = [sparse(3, 8, 5), nn.BatchNorm1d(8), nn.ReLU(), sparse(8, 6, 5), nn.GLU(1)]
    model = nn.Sequential(*body, nn.Conv1d(3, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    nn.init.constant_(model[1].bias, 1.0)
    x = torch.randn(5, 3, 60)
    with torch.autocast("cpu", torch.bfloat16):
        (report,) = check_rounded(model, x)
        assert compiled(model)(x).dtype == model(x).dtype == torch.bfloat16
    assert (report.lanes["lanes_conv"], report.lanes["to"], report.leaves) == (2, 1, 0)


def test_orders_are_compared_by_what_they_save(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(backend, "choose", lambda steps: found.append(choose(steps)) or found[-1])
    with torch.no_grad():
        compiled(nn.Sequential(sparse(4, 4, 3), nn.ReLU()).eval())(torch.randn(4, 4, 40))
    assert found == [(set(), pytest.approx(0))]


def test_casts_stay_without_autocast() -> None:
    """A convolution of rounded samples."""
    conv, x = sparse(2, 3, 5), torch.randn(2, 2, 40)
    model = Function(lambda x, conv: conv(x.to(torch.bfloat16).to(torch.float32)), conv)
    assert compiled(model)(x).equal(model(x))
    assert not model(x).equal(conv(x))
    assert compiled_report(model)[0].lanes["lanes_conv"] == 0


# Between two layers.
def in_place(y: Tensor, x: Tensor) -> Tensor:
    """Operations in place on a signal, one of them with float32."""
    y += x
    torch.relu_(y.mul_(2))
    return torch.tanh(y)


def undifferentiated(y: Tensor, x: Tensor) -> Tensor:
    """A factor that was cast without gradients."""
    with torch.no_grad():
        factor = y.to(torch.float32)
    return y * factor


def clipped(y: Tensor, x: Tensor) -> Tensor:
    """A signal that is clipped in place, without gradients."""
    with torch.no_grad():
        y.clamp_(-0.1, 0.1)
    return torch.tanh(y)


def kept(y: Tensor, x: Tensor) -> Tensor:
    """A part of what a dropout without effect returned is changed in place."""
    y = F.dropout(input=y, training=False)
    y[:, 1:].mul_(3)
    return y


def checkpointed(y: Tensor, x: Tensor) -> Tensor:
    """A function that is computed again in the backward pass changes its argument."""
    z = checkpoint(lambda y: torch.tanh(y.mul_(2)), y, use_reentrant=False)
    return y + z


def two(between: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    layers = sparse(4, 4, 3), sparse(4, 4, 3)
    return Function(lambda x, first, second: second(between(first(x), x)), *layers)


def pooled() -> nn.Module:
    """Averages of float32 before a 1x1 convolution, which autocast computes in bfloat16."""
    return nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool1d(4), nn.Conv1d(64, 8, 1))


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize(
    ("make", "channels"),
    [
        *((partial(two, each), 4) for each in (in_place, undifferentiated, clipped, kept)),
        (pooled, 64),
    ],
)
def test_dtypes_and_gradients_of_mixed_graphs(
    make: Callable[[], nn.Module], channels: int, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not blocks:
        monkeypatch.setenv("SPARSECONV_CPU_ISA", isa_without_blocks())
    with torch.autocast("cpu", torch.bfloat16):
        check_rounded(make(), torch.randn(5, channels, 60))


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize(
    "write",
    [lambda y, x: y.copy_(x), lambda y, x: y.zero_(), lambda y, x: y.masked_fill_(x > 0, 0.0),
     lambda y, x: y.__ipow__(2), lambda y, x: operator.ipow(y, 2), operator.iadd,
     lambda y, x: torch.relu_(input=y), lambda y, x: torch._foreach_mul_([y], 2.0),
     lambda y, x: torch.ops.aten.mul_.Scalar(self=y, other=2),
     lambda y, x: y.detach().gt_(0), lambda y, x: F.relu(inplace=True, input=y)],
)  # fmt: skip
def test_what_is_written_is_read_later(write: Callable[..., object], casts: bool) -> None:
    def between(y: Tensor, x: Tensor) -> Tensor:
        write(y, x)
        return y

    compare = check_rounded if casts else check
    with torch.autocast("cpu", torch.bfloat16, enabled=casts):
        compare(two(between), torch.randn(2, 4, 40))


def test_around_a_checkpoint() -> None:
    model, x = two(checkpointed).eval(), torch.randn(2, 4, 40)
    with torch.no_grad():
        torch.testing.assert_close(compiled(model)(x), model(x))
    assert "checkpoint" in str(compiled_report(model))


def test_a_checkpoint_inside_repeats_masks_and_counts_once() -> None:
    norm = nn.BatchNorm1d(4)
    first, last = sparse(4, 4, 3, bias=False), sparse(4, 4, 3, bias=False)
    drops = nn.Sequential(first, nn.Dropout(0.5), last).double()

    def forward(x: Tensor) -> Tensor:
        return last(checkpoint(drops[:2], x, use_reentrant=False))

    x = torch.randn(4, 4, 40, dtype=torch.float64, requires_grad=True)
    y = compiled(forward)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close((grad * x).sum(), y.sum())  # y is linear in x, with one mask
    z = compiled(lambda x: checkpoint(norm, x, use_reentrant=False))(x.float())
    z.sum().backward()
    assert norm.num_batches_tracked == 1


class Doubling(torch.autograd.Function):
    """Writes into its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 2 * grads[0]


def test_a_function_that_writes_into_a_signal() -> None:
    def doubled(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        y = first(x)
        z = Doubling.apply(y)
        return second(y) + z

    model = Function(doubled, sparse(4, 4, 3), sparse(4, 4, 3))
    report = check(model, torch.randn(4, 4, 40))[-1]  # of what records gradients
    assert not report.lanes
    assert "writes into a signal" in str(report)


def test_inside_a_checkpoint() -> None:
    model, x = nn.Sequential(sparse(4, 4, 3), nn.Sigmoid(), sparse(4, 4, 3)), torch.randn(5, 4, 60)
    y = checkpoint(compiled(model), x.requires_grad_(), use_reentrant=False)
    (found,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.skipif(
    not extension.has_block_kernels(), reason="needs a CPU with AVX-512 BF16 or AMX"
)
@pytest.mark.parametrize("casts", [False, True])
def test_networks_of_blocks(casts: bool) -> None:
    """Under autocast and of bfloat16: all their layers but the first are in rows."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 40), (40, 32)):
        block = 16 if inputs > 1 else 1
        layers += [sparse(inputs, outputs, 7, block=block), nn.BatchNorm1d(outputs), nn.ReLU()]
    layers += [nn.MaxPool1d(3, 1, 1), nn.Conv1d(32, 16, 1), nn.Dropout(0.0)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    if not casts:
        model.to(torch.bfloat16)
    wanted = {"lanes_conv": 3, "lanes_norm": 3, "lanes_max_pool": 1, "lanes_pointwise": 1,
              "lanes_mean": 1, "lanes_dropout": 1}  # fmt: skip
    for batch, length in ((6, 30), (3, 71)):
        x = torch.randn(batch, 1, length, dtype=torch.float32 if casts else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=casts):
            report = check_rounded(model, x)
        assert {name: report[-1].lanes[name] for name in wanted} == wanted
        assert (report[-1].enters, report[-1].leaves) == (1, 0)
        wide = copy.deepcopy(model).double().eval()
        run = compiled(model.eval())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=casts):
            exact, plain, found = wide(x.double()), model(x).double(), run(x).double()
        # BatchNorm becomes part of the convolutions, whose weights are then rounded.
        bound = 2 * (plain - exact).norm() + torch.finfo(torch.bfloat16).eps * exact.norm()
        assert (found - exact).norm() <= bound
        model.train()
