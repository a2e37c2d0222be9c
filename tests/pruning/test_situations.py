"""Networks that people have: ``sc.prune_filters`` follows them, and keeps no more than it must."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from edge_networks import Causal, UNet, series
from layers import Function
from pruning_networks import Drawn, classifier, data, masked, silenced
from random_networks import RandomNetwork
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

import sparseconv as sc
from sparseconv.pruning import Magnitude, keep_filters
from sparseconv.pruning.tracing import trace
from sparseconv.running import output_tensors

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
    mean = Function(lambda x: x.mean(-1))
    return nn.Sequential(ends[0], nn.ReLU(), middle, nn.ReLU(), ends[1], mean, nn.Linear(6, 3))


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


@dataclass
class Out:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    name: str = "out"


class ByKeyword(nn.Module):
    """Layers that are given their input by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 8, 3), nn.Conv1d(8, 6, 3)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(input=self.b(input=self.a(input=x).relu())).relu()
        return self.head(input=hidden.mean(2)).log_softmax(1)


class Iterated(nn.Module):
    """Layers in a list, and in a Sequential, that are called one by one; their sum is residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(2, 8, 1)
        self.steps = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1) for _ in range(2))
        self.rest = nn.Sequential(nn.Conv1d(8, 6, 3), nn.ReLU())
        self.last, self.head = nn.Conv1d(6, 6, 1), nn.Linear(6, 3)
        self.shared = nn.ModuleList([self.steps[1]])  # a layer of two names

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        for step in self.steps:
            hidden = hidden + step(hidden).relu()
        for layer in self.rest:
            hidden = layer(hidden)
        return self.head(self.last(hidden).mean(2))


CLASSIFIER = {"0.0": 4, "0.1": 4, "0.5": 3}
EVERY = {"a": 4, "steps.0": 4, "steps.1": 4, "rest.0": 3, "last": 3}
END = {"rest.0": 3, "last": 3}


@pytest.mark.parametrize(
    ("make", "ignore", "left"),
    [
        *(
            (lambda form=form: nn.Sequential(classifier(), Function(form)), (), CLASSIFIER)
            for form in (
                Out,
                lambda y: Out(y[:0], (y,)),
                lambda y: {"y": [y, None, 1, 0.5, True, "a"]},
                lambda y: (y, y > -1),
            )
        ),
        (ByKeyword, (), {"a": 4, "b": 3, "norm": 3}),
        (Iterated, (), EVERY),
        (Iterated, ("rest",), {"last": 3}),
        (Iterated, ("steps",), END),
        (Iterated, ("shared",), END),
        (Iterated, ("shared.0",), END),
    ],
)
def test_networks(
    make: Callable[[], nn.Module], ignore: tuple[str, ...], left: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = make().double()
    small, report = sc.prune_filters(model, X, Drawn(0, False), fraction=0.5, ignore=ignore)
    outputs = (output_tensors(m.eval()(X)) for m in (small, silenced(model, report)))
    torch.testing.assert_close(*outputs)
    lost = {x.name: x.filters.after for x in report.layers if x.filters.after < x.filters.before}
    assert lost == left


def test_an_iterator_of_ignored_layers_serves_every_round() -> None:
    layers = [nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3), nn.Conv1d(4, 2, 3)]
    counts_channels = Function(lambda x: x * x.shape[1])  # which the first round finds out
    model = nn.Sequential(*layers[:2], counts_channels, *layers[2:])
    small, report = sc.prune_filters(
        model, X[:, :2].float(), Magnitude(), fraction=0.5, ignore=iter("0")
    )
    assert [len(m.weight) for m in small if isinstance(m, nn.Conv1d)] == [4, 4, 2, 2]
    assert report.left["0"] == "it is named in ignore"


class Branch(nn.Module):
    """Channels move in a residual branch, some weights of which are zero, as in a new network."""

    def __init__(self, move: Callable[[Tensor], Tensor], zero: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 16, 3, padding=1)
        self.move = move
        self.read, self.norm = nn.Conv1d(16, 4, 3, padding=1), nn.BatchNorm1d(4)
        if zero == "read":
            self.read = sc.SparseConv1d(16, 4, 3, padding=1, density=0.5)
        self.act, self.head = nn.ELU(inplace=True), nn.Linear(4, 3)
        self.double()
        for parameter in self.get_submodule(zero).parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(self.act(x))
        branch = self.norm(self.read(self.move(self.up(hidden))))
        # Saturated for the most part.
        return (1000 * self.head(self.act(hidden + branch).mean(2))).softmax(1)


def rolled(x: Tensor) -> Tensor:
    return torch.relu_(torch.cat([x[:, -1:], x[:, :-1]], 1))


def dealt(x: Tensor) -> Tensor:
    return torch.cat([x[:, ::2], x[:, 1::2]], 1)


@pytest.mark.parametrize("zero", ["up", "read", "norm"])
@pytest.mark.parametrize(
    ("move", "kept", "fits"),
    [
        (rolled, [0, 1, 2, 3], False),
        (rolled, [0, 7, 8, 15], True),  # the last one comes first in both
        (dealt, [0, 1, 3, 4], False),
        (dealt, [0, 2, 4, 6], False),
        (dealt, [0, 5, 8, 9], True),
        (torch.relu_, [3, 6], True),
    ],
)
def test_channels_that_move_where_weights_are_zero(
    move: Callable[[Tensor], Tensor], kept: list[int], fits: bool, zero: str
) -> None:
    model = Branch(move, zero)
    for x in (X, torch.zeros(1, 2, 12).double()):
        if fits:
            small = keep_filters(model, x, {"up": kept}, ignore=["stem", "norm"])
            assert torch.equal(small.up.weight, model.up.weight[kept])
            assert torch.equal(small.norm.weight, model.norm.weight)
        else:
            with pytest.raises(ValueError, match=r"computes different outputs: .*in ignore"):
                keep_filters(model, x, {"up": kept}, ignore=["stem", "norm"])


@pytest.mark.parametrize("block", range(6))
def test_random_networks(block: int) -> None:
    refused = []
    for seed in range(10 * block, 10 * block + 10):
        network = RandomNetwork(seed)
        model, x = network.model, network.example
        if not (channels := trace(model, (x,))).n_units:
            refused.append(seed)
            continue
        fraction = (seed % 7 + 1) / 9
        small, report = sc.prune_filters(model, x, Drawn(seed, seed % 2 == 0), fraction=fraction)
        assert torch.equal(small(x), silenced(model, report)(x)), model
        assert report.left == channels.left  # verification took back nothing
        assert report.macs[0] == channels.macs()
        assert report.parameters[1] == sum(p.numel() for p in small.parameters())
        for layer in report.layers:
            module = small.get_submodule(layer.name)
            assert 1 <= layer.filters[1] == len(layer.kept) <= layer.filters[0]
            assert layer.parameters[1] == sum(p.numel() for p in module.parameters())
    assert len(refused) < 2  # of 10


def test_a_layer_that_is_called_twice_is_counted_twice() -> None:
    layer = nn.Conv1d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv1d(2, 4, 1), layer, nn.MaxPool1d(2), layer, nn.Conv1d(4, 3, 1))
    channels = trace(model, (torch.zeros(1, 2, 12),))
    assert channels.macs() == 12 * 2 * 4 + (12 + 6) * 4 * 4 * 3 + 6 * 4 * 3
