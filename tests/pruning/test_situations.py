"""Networks that people have: ``sc.prune_filters`` keeps what it cannot follow, and no more."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from edge_networks import Causal, UNet, series
from pruning_networks import Function, data, masked
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv.pruning import Magnitude

X, Y = data()


def pruned(model: nn.Module, x: Tensor = X, **options: Any) -> tuple[nn.Module, Any]:
    """Prune half of each layer's filters; the result must compute what the masked network does."""
    model.to(x).eval()
    small, report = sc.prune_filters(model, x, Magnitude(), fraction=0.5, **options)
    torch.testing.assert_close(small(x), masked(model, report)(x))
    assert report.parameters.after == sum(p.numel() for p in small.parameters())
    return small, report


def filters(report: Any) -> dict[str, int]:
    return {layer.name: layer.filters.after for layer in report.layers}


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def test_a_u_net() -> None:
    torch.manual_seed(0)
    model, x = UNet(), series(4).double()
    small, report = pruned(model, x)
    kept = {"first": 3, "down": 4, "middle": 4, "up": 2, "norm": 2, "mixed": 6, "end": 4}
    assert filters(report) == kept
    assert report.left["last"] == "it is a grouped transposed convolution"
    assert str(small.up) == "ConvTranspose1d(4, 2, kernel_size=(3,), stride=(2,))"
    for network, macs in zip((model, small), report.macs, strict=True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x[:1])
        assert 2 * macs == counter.get_total_flops()


class Standardized(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight - self.weight.mean((1, 2), keepdim=True), padding=1)


class Query(nn.MultiheadAttention):
    """A learned query, which is given to a module."""

    def __init__(self) -> None:
        super().__init__(8, 2, batch_first=True)
        self.query, self.inner = nn.Parameter(torch.rand(1, 1, 8)), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        query = self.inner(self.query.expand(len(x), -1, -1))
        return super().forward(query, x.mT, x.mT)[0].mT


class Mixed(nn.Module):
    """A sum with what a parameter mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv1d(8, 8, 1), nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.einsum("ncl,cd->ndl", x, self.mix).relu()


def between(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    ends = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 6, 3, padding=1)
    return nn.Sequential(ends[0], nn.ReLU(), middle, nn.ReLU(), ends[1], Means(), nn.Linear(6, 3))


TIED = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1))
TIED[1].weight = TIED[0].weight


@pytest.mark.parametrize(
    ("middle", "left", "reason"),
    [
        (Causal(8, 8, 3, dilation=2), [4, 4], None),
        (Standardized(8, 8, 3), [8, 4], ("0", "the model computes different outputs")),
        (Query(), [8], ("0", "'multi_head_attention_forward' in 2 (Query)")),
        (Query(), [8], ("2.out_proj", "this example_input does not call it")),
        (Mixed(), [8, 8], ("2.conv", "its channels are used by 'add' in 2 (Mixed)")),
        (Query(), [8], ("2", "Query is not pruned; only Conv1d, ConvTranspose1d, SparseConv1d")),
        (weight_norm(nn.Conv1d(8, 8, 1)), [8], ("2", "parametrize.remove_parametrizations")),
        (TIED, [8], ("2.0", "it shares a parameter with '2.1'")),
        (nn.Linear(12, 12), [4], ("2", "in dimension 1, but it reads them in dimension 2")),
    ],
)
def test_layers_that_differ(middle: nn.Module, left: list[int], reason: Any) -> None:
    small, report = pruned(between(middle))
    assert [layer.filters.after for layer in report.layers] == [*left, 3, 3]
    assert type(small[2]) is type(middle)
    if reason is not None:
        name, why = reason
        assert why in report.left[name]
        unwrapped = " ".join(str(report).split())
        assert f"{name}: {report.left[name]}" in unwrapped


class Later(nn.Module):
    """A second head that train mode calls, and a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv1d(2, 8, 3), nn.Conv1d(8, 8, 3), nn.Conv1d(8, 8, 3)
        self.head, self.aux, self.norm = nn.Linear(8, 3), nn.Linear(16, 3), nn.BatchNorm1d(3)
        self.dead = nn.Conv1d(5, 5, 1)

    def forward(self, x: Tensor, target: Any = None) -> Any:
        a = self.a(x).relu()
        b = self.b(a).relu()
        y = self.head(self.c(b).relu().mean(2))
        both = torch.cat([a.mean(2), b.mean(2)], 1)
        return (y, self.norm(self.aux(both)) + target.mean()) if self.training else y


def test_layers_that_eval_mode_does_not_call() -> None:
    torch.manual_seed(0)
    model = Later().double()
    small, report = sc.prune_filters(model, (X[:1], Y.double()), Magnitude(), fraction=0.5)
    assert filters(report) == {"a": 8, "b": 8, "c": 4, "head": 3}
    assert "the model does not run in train mode" in report.left["a"]
    assert report.left["dead"] == "this example_input does not call it"
    assert [y.shape for y in small.train()(X, Y.double())] == [(10, 3), (10, 3)]
    small, _ = pruned(model)  # without the target, which train mode needs, it is not verified
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        small.train()(X, Y.double())
    small, report = pruned(model, ignore=["a", "b"])
    assert filters(report) == {"c": 4, "head": 3}
    assert small.train()(X, Y.double())[1].shape == (10, 3)


def noisy(x: Tensor) -> Tensor:
    x = F.dropout(F.alpha_dropout(F.dropout1d(x, 0.2), 0.2), 0.2) + torch.randn_like(x)
    return x * random.random() * np.random.rand()


def test_dropout_and_noise_that_are_active_in_eval_mode() -> None:
    model = between(Function(noisy)).double()
    states = random.getstate(), torch.random.get_rng_state()
    report = sc.prune_filters(model, X, Magnitude(), fraction=0.5).report
    assert [layer.filters.after for layer in report.layers] == [4, 3, 3]
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])
    drawn = between(Function(lambda x: x * torch.randint(9, x.shape).sum())).double()
    report = sc.prune_filters(drawn, X, Magnitude(), fraction=0.5).report
    assert "draws integers" in report.left["0"]
    count = itertools.count()
    rarely = Function(lambda x: x * (1 + (next(count) % 4 == 1)))  # the runs after are alike
    with pytest.raises(ValueError, match="each time the model runs on the same input"):
        pruned(between(rarely))


def test_a_layer_that_is_kept_leaves_the_scores_of_others() -> None:
    model = between(Function(lambda x: x.view(len(x), 8, -1)))
    _, report = pruned(model)
    assert [layer.filters.after for layer in report.layers] == [8, 3, 3]
    norms = model[4].weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(
        report.scores, norms
    )  # not of a weight that was masked for the other


def around(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(2, 8, 3), middle, nn.Conv1d(8, 3, 3)).double()


class Remembers(nn.Module):
    """Keeps a mean of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean += x.mean((0, 2))
        return x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(len(x), 8, 1) if self.training else x


class Louder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.shape[1] if self.training else x


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (Remembers(), "the model does not run in train mode (RuntimeError"),
        (Noisy(), "the model does not run in train mode (RuntimeError"),
        (Louder(), "the model computes different outputs in train mode"),
    ],
)
def test_channels_that_train_mode_needs_stay(middle: nn.Module, why: str) -> None:
    with pytest.raises(ValueError, match="has no filters that can be removed") as refused:
        sc.prune_filters(around(middle), X, Magnitude(), fraction=0.5)
    assert f"\n0: without some of its filters, {why}" in str(refused.value)
