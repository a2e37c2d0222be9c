"""Forms of networks that ``sc.prune_filters`` follows; operations are in ``test_operations.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pruning_networks import Drawn, Function, classifier, data, silenced
from random_networks import RandomNetwork
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning import keep_filters
from sparseconv.pruning.tracing import trace
from sparseconv.running import output_tensors

X, Y = data()


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
        assert report.macs[0] == channels.macs()
        assert report.parameters[1] == sum(p.numel() for p in small.parameters())
        for layer in report.layers:
            module = small.get_submodule(layer.name)
            assert 1 <= layer.filters[1] == len(layer.kept) <= layer.filters[0]
            assert layer.parameters[1] == sum(p.numel() for p in module.parameters())
    assert len(refused) < 2  # of 10


def test_a_dsn_keeps_its_kernel_groups() -> None:
    model = sc.models.DSN(1, 2, nf=6)
    pruned, report = sc.prune_filters(model, torch.zeros(1, 1, 50), Drawn(1, False), fraction=0.5)
    conv = pruned.blocks[1].conv
    assert conv.regions == tuple(sc.Region((3 * i, 3 * i + 3), (0, 13 * (i + 1))) for i in range(3))
    old = model.blocks[1].conv
    rows, columns = (
        next(layer.kept for layer in report.layers if layer.name == f"blocks.1.{name}")
        for name in ("conv", "bottleneck")
    )
    assert torch.equal(conv.dense_weight(), old.dense_weight()[list(rows)][:, list(columns)])
    assert pruned.cost(50).params == report.parameters[1]
    assert pruned.cost(50).macs_executed == report.macs[1]


def test_a_layer_that_is_called_twice_is_counted_twice() -> None:
    layer = nn.Conv1d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv1d(2, 4, 1), layer, nn.MaxPool1d(2), layer, nn.Conv1d(4, 3, 1))
    channels = trace(model, (torch.zeros(1, 2, 12),))
    assert channels.macs() == 12 * 2 * 4 + (12 + 6) * 4 * 4 * 3 + 6 * 4 * 3
