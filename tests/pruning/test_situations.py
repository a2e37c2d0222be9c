"""Networks that people have: ``sc.prune_filters`` keeps what it cannot follow, and no more."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Drawn, Function, data, masked
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import sparseconv as sc
from sparseconv.pruning import DSP, WHC, Jacobian, Magnitude, keep_filters

X, Y = data()


def pruned(model: nn.Module, x: Tensor = X, **options: Any) -> tuple[nn.Module, Any]:
    """Prune half of each layer's filters; the result must compute what the masked network does."""
    model.to(x).eval()
    small, report = sc.prune_filters(model, x, Magnitude(), ratio=0.5, **options)
    torch.testing.assert_close(small(x), masked(model, report)(x))
    assert report.parameters.after == sum(p.numel() for p in small.parameters())
    return small, report


def filters(report: Any) -> dict[str, int]:
    return {layer.name: layer.filters.after for layer in report.layers}


class Same(nn.Module):
    def __init__(self, inputs: int, outputs: int, taps: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, taps, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        (taps,), (stride,) = self.conv.kernel_size, self.conv.stride
        missing = max(0, (-(-x.shape[2] // stride) - 1) * stride + taps - x.shape[2])
        return self.conv(F.pad(x, (missing // 2, missing - missing // 2)))


class Bottleneck(nn.Module):
    """Squeeze and excitation by einsum, a shortcut that pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, (outputs - inputs) // 2
        self.norm1, self.conv1 = nn.BatchNorm1d(inputs), Same(inputs, outputs, 1, 1)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.conv2 = Same(outputs, outputs, 16, stride, outputs // 8)
        self.norm3, self.conv3 = nn.BatchNorm1d(outputs), Same(outputs, outputs, 1, 1)
        self.fc1, self.fc2 = nn.Linear(outputs, outputs // 2), nn.Linear(outputs // 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        y = self.conv3(self.norm3(y).relu())
        y = torch.einsum("ncl,nc->ncl", y, self.fc2(self.fc1(y.mean(-1)).relu()).sigmoid())
        x = F.max_pool1d(F.pad(x, (0, self.stride - 1)), self.stride) if self.stride > 1 else x
        return y + F.pad(x.transpose(1, 2), (self.more, self.more)).transpose(1, 2)


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def test_bottlenecks_of_an_ecg_network() -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(Same(1, 16, 16, 2), nn.BatchNorm1d(16), nn.ReLU())
    blocks = [Bottleneck(16, 16, 2), Bottleneck(16, 16, 1), Bottleneck(16, 32, 2)]
    _, report = pruned(
        nn.Sequential(stem, *blocks, Means(), nn.Linear(32, 4)), torch.randn(3, 1, 200)
    )
    assert report.parameters.before == 13_364
    assert report.parameters.after <= 4_964  # without the squeeze and the shortcut
    assert report.left["3.conv3.conv"].startswith("16 of them, since its channels meet zeros")


class Speaker(nn.Module):
    """A Res2Net block, which splits channels, and statistics over time, which repeats them."""

    def __init__(self, spread: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spread = spread
        self.stem, self.norm = nn.Conv1d(20, 32, 5, padding=2), nn.BatchNorm1d(32)
        self.parts = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=2, dilation=2) for _ in range(3))
        self.wide, self.a, self.b = (
            nn.Conv1d(32, 48, 1),
            nn.Conv1d(144, 16, 1),
            nn.Conv1d(16, 48, 1),
        )
        self.last = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.norm(self.stem(x).relu()).chunk(4, dim=1)
        found, y = [first], torch.zeros(())
        for part, conv in zip(rest, self.parts, strict=True):
            found.append(y := conv(part + y).relu())
        x = self.wide(torch.cat(found, 1)).relu()
        statistics = [self.spread(s, x.shape[2]) for s in (x.mean(2, True), x.std(2, keepdim=True))]
        weight = self.b(self.a(torch.cat([x, *statistics], 1)).tanh()).softmax(2)
        mean = (x * weight).sum(2)
        spread = ((x * x * weight).sum(2) - mean * mean).clamp(min=1e-4).sqrt()
        return self.last(torch.cat([mean, spread], 1))


def test_split_and_repeated_channels_of_a_speaker_network() -> None:
    repeat, expand = (
        pruned(Speaker(spread), torch.randn(3, 20, 60))[1].parameters
        for spread in (lambda s, n: s.repeat(1, 1, n), lambda s, n: s.expand(-1, -1, n))
    )
    assert repeat == expand
    assert repeat.after < 0.5 * repeat.before


def double(inputs: int, outputs: int) -> nn.Sequential:
    one, two = (nn.Conv1d(n, outputs, 9, padding=4) for n in (inputs, outputs))
    norms = nn.BatchNorm1d(outputs), nn.BatchNorm1d(outputs)
    return nn.Sequential(one, norms[0], nn.ReLU(), two, norms[1], nn.ReLU())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down1, self.down2, self.middle = double(2, 8), double(8, 16), double(16, 32)
        self.up2, self.up1 = nn.ConvTranspose1d(32, 16, 2, 2), nn.ConvTranspose1d(16, 8, 2, 2)
        self.end2, self.end1, self.out = double(32, 16), double(16, 8), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool1d(a, 2))
        c = self.middle(F.max_pool1d(b, 2))
        c = self.end2(torch.cat([b, self.up2(c)], 1))
        return self.out(self.end1(torch.cat([a, self.up1(c)], 1)))


def test_a_u_net() -> None:
    small, report = pruned(UNet())
    assert set(filters(report).values()) == {3, 4, 8, 16}
    assert str(small.up2) == "ConvTranspose1d(16, 8, kernel_size=(2,), stride=(2,))"
    assert report.macs.after < 0.3 * report.macs.before
    model = UNet().double()
    again = keep_filters(model, X, {layer.name: layer.kept for layer in report.layers})
    assert again(X).shape == model(X).shape
    pairs, report = sc.prune_filters(model, X, WHC(), ratio=0.5, equivalent=True)
    assert "up2" in report.unpaired[0] + report.unpaired[1]
    assert pairs(X).shape == model(X).shape


class OneTap(nn.Module):
    """A transposed convolution of one tap, or the convolution that computes the same."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv1d(2, 8, 3), nn.Linear(6, 3)
        same = nn.Conv1d(8, 6, 1)
        self.middle: nn.Module = nn.ConvTranspose1d(8, 6, 1) if transposed else same
        with torch.no_grad():
            weight = same.weight.transpose(0, 1) if transposed else same.weight
            self.middle.weight.copy_(weight)
            self.middle.bias.copy_(same.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).relu()).relu().mean(2)).log_softmax(1)


@pytest.mark.parametrize("criterion", [WHC(), Jacobian((X, Y)), DSP(X, 0.9)], ids=str)
def test_criteria_of_a_transposed_convolution(criterion: Any) -> None:
    limits = {} if isinstance(criterion, DSP) else {"ratio": 0.5}
    one, other = (
        sc.prune_filters(OneTap(transposed).double(), X, criterion, **limits).report
        for transposed in (True, False)
    )
    torch.testing.assert_close(one.scores, other.scores)
    assert [layer.kept for layer in one.layers] == [layer.kept for layer in other.layers]
    assert one.macs == other.macs


class Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class Functional(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, padding=1)


class Standardized(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight - self.weight.mean((1, 2), keepdim=True), padding=1)


class ChannelsLast(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def between(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    ends = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 6, 3, padding=1)
    return nn.Sequential(ends[0], nn.ReLU(), middle, nn.ReLU(), ends[1], Means(), nn.Linear(6, 3))


LAST = nn.Sequential(Function(lambda x: x.mT), ChannelsLast(8, 8, 1), Function(lambda x: x.mT))
TIED = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1))
TIED[1].weight = TIED[0].weight


@pytest.mark.parametrize(
    ("middle", "left", "reason"),
    [
        (Causal(8, 8, 3, dilation=2), [4, 4], None),
        (Functional(8, 8, 3), [4, 4], None),
        (Standardized(8, 8, 3), [8, 4], ("0", "the model computes something else")),
        (LAST, [8], ("2.1", "something else than its base class")),
        (weight_norm(nn.Conv1d(8, 8, 1)), [8], ("2", "parametrize.remove_parametrizations")),
        (TIED, [8], ("2.0", "it shares a parameter with '2.1'")),
        (nn.Linear(12, 12), [4], ("2", "along another dimension than the channels'")),
    ],
)
def test_layers_that_differ(middle: nn.Module, left: list[int], reason: Any) -> None:
    small, report = pruned(between(middle))
    assert [layer.filters.after for layer in report.layers] == [*left, 3, 3]
    assert type(small[2]) is type(middle)
    if reason is not None:
        name, why = reason
        assert why in report.left[name]
        assert f"{name} keeps filters: {report.left[name]}" in str(report)


class Later(nn.Module):
    """A second head that train mode calls, and a layer that nothing calls."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv1d(2, 8, 3), nn.Conv1d(8, 8, 3)
        self.c, self.head, self.aux = nn.Conv1d(8, 8, 3), nn.Linear(8, 3), nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(3) if norm else nn.Identity()
        self.dead = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.a(x).relu()
        b = self.b(a).relu()
        y = self.head(self.c(b).relu().mean(2))
        both = torch.cat([a.mean(2), b.mean(2)], 1)
        return (y, self.norm(self.aux(both))) if self.training else y


def test_layers_that_eval_mode_does_not_call() -> None:
    small, report = pruned(Later(norm=True))
    assert filters(report) == {"a": 8, "b": 8, "c": 4, "head": 3}
    assert "its channels meet 'aux': it is not called in eval mode" in report.left["a"]
    assert report.left["dead"] == "it is not called in eval mode"
    assert [y.shape for y in small.train()(X)] == [(10, 3), (10, 3)]
    with pytest.raises(ValueError, match=r"may be read by 'dead', which was not called; if not, "):
        pruned(Later(norm=True), X[:1])  # BatchNorm cannot train with one series
    _, report = pruned(Later(norm=True), X[:1], ignore=["dead", "aux", "a", "b"])
    assert filters(report) == {"c": 4, "head": 3}


class Parametrized(nn.Module):
    """A scale for each channel, one for each sample, and a position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Conv1d(2, 8, 3), nn.Conv1d(8, 6, 3), nn.Linear(6, 3)
        self.scale, self.sample = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(10))
        self.position = nn.Parameter(torch.rand(1, 8, 10))
        self.register_buffer("shift", torch.rand(8, 1))
        self.slope = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.a(x) * self.scale.exp()[None, :, None] * self.sample + self.position)
        return self.head(self.b(y - self.shift).relu().mean(2))


def test_parameters_of_channels_fall_with_them() -> None:
    model = Parametrized()
    optimizer = torch.optim.Adam(model.parameters())
    model(X.float()).sum().backward()
    optimizer.step()
    small, report = pruned(model, X.float(), optimizer=optimizer)
    kept = list(report.layers[0].kept)
    assert torch.equal(small.scale, model.scale[kept])
    assert torch.equal(small.position, model.position[:, kept])
    assert torch.equal(small.shift, model.shift[kept])
    assert (small.slope.num_parameters, small.sample.shape) == (4, (10,))
    found = report.optimizer.state[small.scale]["exp_avg"]
    assert torch.equal(found, optimizer.state[model.scale]["exp_avg"][kept])


def noisy(x: Tensor) -> Tensor:
    x = F.dropout(F.alpha_dropout(F.dropout1d(x, 0.2), 0.2), 0.2) + torch.randn_like(x)
    return x * random.random() * np.random.rand()


def test_dropout_and_noise_that_are_active_in_eval_mode() -> None:
    model = between(Function(noisy)).double()
    states = random.getstate(), torch.random.get_rng_state()
    report = sc.prune_filters(model, X, Magnitude(), ratio=0.5).report
    assert [layer.filters.after for layer in report.layers] == [4, 3, 3]
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    count = itertools.count(1)
    with pytest.raises(ValueError, match="something else each time that it runs on the same input"):
        pruned(between(Function(lambda x: x * next(count))))


def test_a_learned_query_that_is_given_to_a_module() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.head = nn.Conv1d(2, 8, 3), nn.Conv1d(8, 8, 3), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.query = nn.Parameter(torch.rand(1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x).relu()).transpose(1, 2)
            return self.head(self.attention(self.query.expand(len(x), -1, -1), y, y)[0][:, 0])

    _, report = pruned(Pooled())
    assert filters(report) == {"a": 4, "b": 8, "head": 3}
    assert (
        "'multi_head_attention_forward' in attention (MultiheadAttention, line" in report.left["b"]
    )
    report.measure(rounds=6, least_seconds=1e-6)


def test_nothing_that_can_be_removed() -> None:
    model = nn.Sequential(nn.Conv1d(2, 8, 1), Function(lambda x: x.softmax(1)), nn.Conv1d(8, 3, 1))
    message = (
        r"removed:\n0: its channels meet 'softmax' in 1 .*\n2: the model returns its channels$"
    )
    with pytest.raises(ValueError, match=message):
        sc.prune_filters(model.double(), X, Drawn(0, False), ratio=0.5)
