"""``torch.compile(model, backend="sparseconv")``: what models compute does not change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from graph_steps import check, compiled, converted, sparse, step
from layers import Function
from torch import Tensor, nn
from torch._dynamo.utils import counters

import sparseconv as sc
from sparseconv.compiler import compiled_report, sparseconv
from sparseconv.nn.pooling import ShortAvgPool1d
from sparseconv.testing import error_bound

pytestmark = pytest.mark.promise("P7")


def waves(
    x: Tensor, first: nn.Module, last: nn.Module, mix: nn.Module, *others: nn.Module
) -> Tensor:
    """Padding before and cropping after convolutions, halves of the channels, 1x1, PReLU."""
    a, b = first(F.pad(x, (4, 0))).chunk(2, 1)
    y = torch.tanh(a) * torch.sigmoid(b)
    y = y + mix(y)
    relu, norm = others
    return F.max_pool1d(norm(relu(last(y)[:, :, :-4])), 3, 1, 1)


def test_padding_cropping_and_halves() -> None:
    convs = sparse(4, 12, 3, padding=0, dilation=2), sparse(6, 6, 3, padding=4, dilation=2)
    model = Function(waves, *convs, nn.Conv1d(6, 6, 1), nn.PReLU(6), nn.BatchNorm1d(6))
    report = check(model, torch.randn(4, 4, 40))[0]
    assert (report.enters, report.leaves) == (1, 1)
    assert not report.outside, report
    assert report.lanes["lanes_pointwise"] == report.lanes["lanes_activation"] == 1
    assert not report.lanes["add"], "the 1x1 convolution adds"
    assert not report.lanes["sigmoid"], "one operation gates"


def test_dropout_scales_what_it_keeps_and_repeats_with_the_seed() -> None:
    x = torch.ones(16, 8, 500, requires_grad=True)
    run = compiled(Function(lambda x: F.dropout(F.max_pool1d(x, 1, 1), 0.25)))
    torch.manual_seed(3)
    y, other = run(x), run(x)
    torch.manual_seed(3)
    assert run(x).equal(y)
    assert not other.equal(y)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.equal(y)
    assert y.unique().tolist() == [0, torch.tensor(1 / 0.75).item()]
    kept = (y > 0).float()
    deviation = (0.75 * 0.25 / y.numel()) ** 0.5
    assert (kept.mean() - 0.75).abs() < 5 * deviation
    for dims in ((0, 1), (0, 2), (1, 2)):  # nor does it depend on where an element is
        spread = (0.75 * 0.25 * kept.mean(dims).numel() / kept.numel()) ** 0.5
        assert (kept.mean(dims) - 0.75).abs().max() < 5 * spread


class Causal(nn.Module):
    """A block of a TCN: padded, cropped, dilated."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        pairs = ((inputs, outputs), (outputs, outputs))
        self.convs = nn.ModuleList(
            sc.SparseConv1d(a, b, 3, padding=2 * dilation, dilation=dilation) for a, b in pairs
        )
        self.crop = 2 * dilation
        self.across = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs:
            y = F.relu(conv(y)[:, :, : -self.crop].contiguous())
            y = F.dropout(y, 0.0, self.training)
        return F.relu(y + self.across(x))


def block(inputs: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [sparse(channels, outputs, 5), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def u_net(x: Tensor, *layers: nn.Module) -> Tensor:
    down1, down2, up, last, head = layers
    first = down1(x)
    deep = down2(F.max_pool1d(first, 2))
    return head(last(torch.cat((up(deep), first), dim=1)))


def fcn() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, taps in ((2, 16, 8), (16, 32, 5), (32, 16, 3)):
        layers += [sparse(inputs, outputs, taps), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "InceptionTime": (
        lambda: converted(sc.models.InceptionTime(2, 3, nf=4, depth=3)),
        {"lanes_conv": 9, "lanes_norm": 4, "lanes_max_pool": 3, "lanes_pointwise": 7,
         "lanes_mean": 1},
    ),
    "ResNet": (
        lambda: converted(sc.models.ResNet(2, 3, nf=8)),
        {"lanes_conv": 9, "lanes_norm": 12, "lanes_pointwise": 2, "lanes_mean": 1},
    ),
    "FCN": (fcn, {"lanes_conv": 3, "lanes_norm": 3, "lanes_mean": 1}),
    "TCN": (
        lambda: nn.Sequential(Causal(2, 6, 1), Causal(6, 6, 2), Causal(6, 6, 4)),
        {"lanes_conv": 6, "lanes_dropout": 6, "lanes_pointwise": 3},
    ),
    "U-Net": (
        lambda: Function(
            u_net, block(2, 8), block(8, 16), nn.ConvTranspose1d(16, 8, 2, stride=2), block(16, 8),
            nn.Conv1d(8, 3, 1),
        ),
        {"lanes_conv": 6, "lanes_norm": 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in NETWORKS),
        *((name, torch.float32) for name in ("FCN", "TCN", "U-Net")),  # compiled in less time
    ],
    ids=str,
)
def test_networks(name: str, dtype: torch.dtype) -> None:
    make, wanted = NETWORKS[name]
    model = make().to(dtype)
    for batch, length, training in ((16, 48, True), (3, 70, False)):
        x = torch.randn(batch, 2, length, dtype=dtype)
        check(model.train(training), x, 60)
        with torch.no_grad():
            folded, plain = compiled(model.eval())(x), model(x)
        terms = torch.tensor(batch * length * 60)
        assert (folded - plain).abs().max() <= error_bound(x, plain.abs().max(), terms, dtype)
    graph = compiled_report(model)[0]
    assert {name: graph.lanes[name] for name in wanted} == wanted
    if name != "TCN":  # its lengths are too short to pay without gradients
        assert (graph.enters, graph.leaves) == ((2, 2) if name == "U-Net" else (1, 0))


@pytest.mark.tool('torch.compile(backend="sparseconv")', "works", "a changed pattern is seen")
def test_a_changed_pattern_is_seen_by_the_same_graph() -> None:
    model, x = fcn(), torch.randn(4, 2, 40)
    run = compiled(model)
    before = step(model, run, x)
    pattern = sc.KernelCSR.random(model[0].pattern.shape, model[0].pattern.nnz)
    model[0].set_pattern(pattern, model[0].values.detach().clone())
    assert not step(model, run, x)[0].equal(before[0])
    check(model, x)
    assert counters["stats"]["unique_graphs"] == 1
    with torch.no_grad():  # a write of what is there changes nothing
        model[0].col_indices.copy_(pattern.col_indices)
        run(x)
        model[0].col_indices.copy_(sc.KernelCSR.random(pattern.shape, pattern.nnz).col_indices)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="overwritten in place"):
                run(x)


def test_any_size_in_two_graphs() -> None:
    model = fcn()
    for batch, length in ((4, 40), (5, 41), (7, 60), (16, 33), (4, 40)):
        check(model, torch.randn(batch, 2, length))
    assert counters["stats"]["unique_graphs"] == 2
    report = compiled_report(model)
    assert all(graph.lanes["lanes_conv"] == 3 for graph in report)
    assert report[0].modules == [str(i) for i in range(10)]
    assert str(report).startswith("graph 1 and 2, in lanes: ")


def test_gradients_are_not_written_to() -> None:
    """An addition hands one tensor to both branches; and the graph can be run through twice."""

    def both(x: Tensor, *layers: nn.Module) -> Tensor:
        branches = (norm(conv(x)) for conv, norm in (layers[:2], layers[2:]))
        return F.max_pool1d(sum(branches, x), 3, 1, 1)

    layers = sparse(4, 4, 3), nn.BatchNorm1d(4), sparse(4, 4, 3), nn.BatchNorm1d(4)
    model, x = Function(both, *layers), torch.randn(4, 4, 40)
    report = check(model, x)
    assert report[0].lanes["lanes_norm"] == 2
    y = compiled(model)(x).sin().sum()
    parameters = list(model.parameters())
    first = torch.autograd.grad(y, parameters, retain_graph=True)
    assert all(a.equal(b) for a, b in zip(first, torch.autograd.grad(y, parameters), strict=True))


def test_nan_reaches_what_it_reaches_in_torch() -> None:
    model, x = nn.Sequential(fcn()[:3], nn.MaxPool1d(3, 1, 1)).eval(), torch.randn(4, 2, 40)
    x[1, 0, 7] = float("nan")
    with torch.no_grad():
        wanted, found = model(x).isnan(), compiled(model)(x).isnan()
    assert wanted.any()
    assert found.equal(wanted)


def test_gradients_of_gradients() -> None:
    model, x = fcn().double(), torch.randn(4, 2, 40, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (compiled(copy.deepcopy(model)), model):
        (grad,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
        tensors = [x, *run.parameters()]
        again = torch.autograd.grad(grad.square().sum(), tensors, materialize_grads=True)
        found.append((grad.detach(), *again))
    torch.testing.assert_close(found[0], found[1])


def test_what_has_no_rule_runs_in_torch() -> None:
    model, x = fcn().to(torch.bfloat16), torch.randn(4, 2, 40, dtype=torch.bfloat16)
    assert compiled(model)(x).equal(model(x))
    report = compiled_report(model)
    assert (report[0].lanes, report[0].enters) == ({}, 0)

    def odd(x: Tensor) -> Tensor:
        return torch.sigmoid(F.interpolate(x, scale_factor=2.0)).cumsum(2)

    x = x.float()
    assert torch.compile(odd, backend=sparseconv)(x).equal(odd(x))


def test_assertions_of_users_stay() -> None:
    def asserts(x: Tensor, net: nn.Module) -> Tensor:
        torch._assert_async((x < 9).all())
        torch._assert_async((x > -9).all(), "too low")
        return net(x)

    net, x = fcn().eval(), torch.randn(4, 2, 40)
    run = compiled(Function(asserts, net))
    with torch.no_grad():
        assert run(x).equal(compiled(net)(x))
        for wrong, message in ((x + 99, "Expected"), (x - 99, "too low")):
            with pytest.raises(RuntimeError, match=message):
                run(wrong)


def test_a_graph_break() -> None:
    def broken(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
        y = first(x)
        torch._dynamo.graph_break()
        return F.max_pool1d(last(y), 3, 1, 1)

    report = check(Function(broken, fcn()[:6], sparse(32, 32, 3)), torch.randn(4, 2, 40))
    assert [graph.lanes["lanes_conv"] for graph in report] == [2, 1]


def test_what_is_joined_only_in_part() -> None:
    """A concatenation that is normalised and added; a norm of one series; named arguments."""

    def odd(x: Tensor, *layers: nn.Module) -> Tensor:
        a, b, norm, mix, other = layers
        y = torch.cat([a(x), b(x)], 1)
        y = F.relu(norm(y) + y)
        return other(F.conv1d(input=y, weight=mix.weight))

    norm = nn.BatchNorm1d(6, track_running_stats=False)
    layers = sparse(4, 3, 3), sparse(4, 3, 3), norm, nn.Conv1d(6, 6, 1)
    model = Function(odd, *layers, nn.BatchNorm1d(6))
    check(model, torch.randn(4, 4, 40))
    check(model.eval(), torch.randn(4, 4, 40))
    model = nn.Sequential(nn.Conv1d(2, 16, 3, padding=1), nn.BatchNorm1d(16)).eval()
    model[1].running_mean.normal_()
    x = torch.randn(2, 16)
    torch.testing.assert_close(compiled(model)(x), model(x))
    empty = torch.randn(0, 4, 10)
    assert compiled(sparse(4, 4, 3))(empty).shape == (0, 4, 10)


@pytest.mark.parametrize(
    "between",
    [
        lambda y: F.pad(y, (1, 2), value=1.0), lambda y: F.pad(y, (1, 2), mode="reflect"),
        lambda y: y.narrow(0, 1, 3),
    ],
    ids=["ones", "reflect", "series"],
)  # fmt: skip
def test_samples_and_series_of_other_kinds(between: Callable[[Tensor], Tensor]) -> None:
    def pooled(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
        return F.max_pool1d(last(F.max_pool1d(between(first(x)), 3, 1, 1)), 3, 1, 1)

    model = Function(pooled, sparse(4, 4, 3), sparse(4, 4, 3))
    assert check(model, torch.randn(4, 4, 40))[0].outside


def test_operations_in_place() -> None:
    def writes(x: Tensor, body: nn.Module, head: nn.Module, on_a_view: bool = False) -> Tensor:
        y = body(x)
        y += y.tanh()
        y.mul_(0.5)
        z = F.relu(y[:, :4] if on_a_view else y, inplace=True)
        return head((F.max_pool1d(y, 3, 1, 1) + z.sum()).mean(2))

    def made(function: Callable[..., Tensor]) -> nn.Module:
        head = nn.Sequential(nn.Linear(32, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
        return Function(function, fcn()[:5], head)

    x = torch.randn(4, 2, 40)
    assert check(made(writes), x)[0].lanes["lanes_conv"] == 2
    report = check(made(partial(writes, on_a_view=True)), x)
    assert report[0].lanes == {}
    assert "whose memory other tensors share" in str(report)


def test_parts_without_gradients() -> None:
    """What enters in a part without gradients has them outside of it."""

    def frozen(x: Tensor, a: nn.Module, b: nn.Module, norm: nn.Module) -> Tensor:
        y = a(x)
        with torch.no_grad():
            fixed = F.max_pool1d(b(y), 3, 1, 1)
        return F.max_pool1d(norm(b(y) + fixed), 3, 1, 1)

    model = Function(frozen, sparse(4, 4, 3), sparse(4, 4, 3), nn.BatchNorm1d(4))
    assert check(model, torch.randn(4, 4, 40))[0].enters == 1


def test_what_has_no_gradients_gets_none_by_joining() -> None:
    def frozen(x: Tensor, body: nn.Module, norm: nn.Module, head: nn.Module) -> Tensor:
        with torch.no_grad():
            fixed = body(x)
        y = norm(fixed)
        with torch.no_grad():
            y = F.relu(y)
        return F.relu(head(y))

    for training in (True, False):
        layers = sparse(4, 4, 3), nn.BatchNorm1d(4), sparse(4, 4, 3)
        compiled(Function(frozen, *layers).train(training))(torch.randn(4, 4, 40)).sum().backward()
        got = [p.grad is not None for layer in layers for p in layer.parameters()]
        assert got == [False] * 4 + [True] * 2


def test_only_what_saves_more_than_it_costs() -> None:
    alone = nn.Sequential(sparse(4, 4, 3), nn.ReLU()).eval()
    with torch.no_grad():
        compiled(alone)(torch.randn(4, 4, 40))
    (report,) = compiled_report(alone)
    assert not report.lanes
    assert "would cost more than it saves" in str(report)
    assert "0 enter, 0 leave" in str(report)
    joined = nn.Sequential(sparse(4, 32, 3), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(3, 1, 1))
    report = check(joined, torch.randn(4, 4, 40))[0]
    assert "1 lanes_conv, 1 lanes_max_pool, 1 lanes_norm\n  tensors: 1 enter, 1 leave" in str(
        report
    )


@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_averages_follow_a_convolution_that_reduces_channels(channels: int, bias: bool) -> None:
    for pool in (nn.AdaptiveAvgPool1d(10), ShortAvgPool1d()):
        layers = sparse(4, 32, 3), nn.BatchNorm1d(32), nn.ReLU(), pool
        model = nn.Sequential(*layers, nn.Conv1d(32, channels, 1, bias=bias))
        report = check(model, torch.randn(4, 4, 40))[0]
        # A product with a matrix would also average the bias, which changes it unless it sums to 1.
        swapped = channels < 32 and not (bias and isinstance(pool, ShortAvgPool1d))
        assert (report.lanes["lanes_pointwise"], report.leaves) == (int(swapped), 1), report
