"""What ``sc.prune_filters`` follows in a model, and what it names because it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from networks import Drawn, classifier, data, silenced
from torch import Tensor, nn
from torch.nn.utils import prune

import sparseconv as sc
from sparseconv.pruning import DSP, WHC, Criterion, Evolutionary, keep_filters

X, Y = data()


@dataclass
class Out:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    name: str = "out"


class Returns(nn.Module):
    """A network whose classes come out in something."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.form = classifier(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.body(x))


@pytest.mark.parametrize(
    "form",
    [
        Out,
        lambda y: Out(y[:0], (y,)),
        lambda y: {"y": [y, None, 1, 0.5, True, "a"]},
        lambda y: (y, y > -1),
    ],
    ids=["dataclass", "nested", "dict", "mask"],
)
def test_classes_stay_in_whatever_is_returned(form: Callable[[Tensor], Any]) -> None:
    model = Returns(form)
    pruned, report = sc.prune_filters(model, X, Drawn(0, False), ratio=0.5)
    assert pruned.body(X).shape == model.body(X).shape
    assert [layer.filters[1] for layer in report.layers] == [4, 4, 3, 3]


class ByKeyword(nn.Module):
    """Layers that are given their input by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 8, 3), nn.Conv1d(8, 6, 3)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(input=self.b(input=self.a(input=x).relu())).relu()
        return self.head(input=hidden.mean(2)).log_softmax(1)


@pytest.mark.parametrize(
    "criterion", [WHC(), DSP(X, 0.8), Evolutionary((X, Y), population=3, generations=2)], ids=str
)
def test_layers_called_by_keyword(criterion: Criterion) -> None:
    model = ByKeyword()
    ratio = 0.5 if criterion.threshold is None else None
    small, report = sc.prune_filters(model, X, criterion, ratio=ratio)
    assert report.layers[0].filters[1] < 8
    assert torch.allclose(small.eval()(X), silenced(model, report).eval()(X))
    pairs, _ = sc.prune_filters(model, X, WHC(), ratio=0.5, equivalent=True)
    assert pairs(X).shape == (len(X), 3)
    factors, _ = sc.factorize(model, [["b"]], method="svd", rank=2)
    assert factors(X).shape == (len(X), 3)


class Auxiliary(nn.Module):
    """A second head that only training calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.other = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 6, 1)
        self.head, self.aux = nn.Linear(6, 3), nn.ModuleList([nn.ReLU(), nn.Linear(8, 3)])
        self.double()

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).relu()
        y = self.head(self.other(hidden).relu().mean(2))
        return (y, self.aux[1](hidden.mean(2))) if self.training else y


def test_a_layer_that_only_training_calls() -> None:
    pruned, report = sc.prune_filters(Auxiliary(), X, WHC(), ratio=0.5, ignore=["aux", "body"])
    assert {x.name: x.filters for x in report.layers} == {"other": (6, 3), "head": (3, 3)}
    assert [y.shape for y in pruned.train()(X)] == [(10, 3), (10, 3)]  # as fine-tuning runs it


class Branch(nn.Module):
    """Channels move in a residual branch, some weights of which are zero, as in a new network."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.up = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 16, 3, padding=1)
        self.move = move
        self.read, self.norm = nn.Conv1d(16, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.act, self.head = nn.ELU(inplace=True), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(self.act(x))
        branch = self.norm(self.read(self.move(self.up(hidden))))
        # Saturated for the most part.
        return (1000 * self.head(self.act(hidden + branch).mean(2))).softmax(1)


def rolled(x: Tensor) -> Tensor:
    return torch.relu_(x.roll(1, 1))


def dealt(x: Tensor) -> Tensor:
    return torch.cat([x[:, ::2], x[:, 1::2]], 1)


@pytest.mark.parametrize("x", [X, torch.zeros(1, 2, 12).double()], ids=["example", "zeros"])
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
    move: Callable[[Tensor], Tensor], kept: list[int], fits: bool, zero: str, x: Tensor
) -> None:
    model = Branch(move)
    if zero == "read":
        model.read = sc.SparseConv1d(16, 4, 3, padding=1, density=0.5).double()
    for parameter in model.get_submodule(zero).parameters():
        nn.init.zeros_(parameter)
    if fits:
        small = keep_filters(model, x, {"up": kept}, ignore=["stem", "norm"])
        assert torch.equal(small.up.weight, model.up.weight[kept])
        assert torch.equal(small.norm.weight, model.norm.weight)
    else:
        with pytest.raises(ValueError, match=r"computes something else: .*in ignore"):
            keep_filters(model, x, {"up": kept}, ignore=["stem", "norm"])


class Iterated(nn.Module):
    """Layers in a list, and in a Sequential, that are called one by one; their sum is residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Conv1d(2, 8, 1)
        self.steps = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1) for _ in range(2))
        self.rest = nn.Sequential(nn.Conv1d(8, 6, 3), nn.ReLU())
        self.last, self.head = nn.Conv1d(6, 6, 1), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        for step in self.steps:
            hidden = hidden + step(hidden).relu()
        for layer in self.rest:
            hidden = layer(hidden)
        return self.head(self.last(hidden).mean(2))


@pytest.mark.parametrize(
    ("ignore", "pruned"),
    [
        ([], ["a", "steps.0", "steps.1", "rest.0", "last"]),
        (["rest"], ["last"]),
        (["steps"], ["rest.0", "last"]),
        (["a", "steps"], ["rest.0", "last"]),
        (["shared"], ["rest.0", "last"]),
        (["shared.0"], ["rest.0", "last"]),
    ],
)
def test_layers_inside_of_what_is_ignored_keep_their_channels(
    ignore: list[str], pruned: list[str]
) -> None:
    model = Iterated()
    model.shared = nn.ModuleList([model.steps[1]])  # a layer of two names
    small, report = sc.prune_filters(model, X, WHC(), ratio=0.5, ignore=ignore)
    assert [x.name for x in report.layers if x.filters[0] > x.filters[1]] == pruned
    assert small(X).shape == (len(X), 3)


class Around(nn.Module):
    """Something between two convolutions."""

    def __init__(self, middle: nn.Module, channels: int = 8, last: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Conv1d(2, 8, 3, padding=1, bias=False), middle
        self.last = last or nn.Conv1d(channels, 3, 1, bias=False)
        self.other = nn.Conv1d(2, 6, 3, padding=1)
        self.end = nn.Conv1d(6, 3, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        found = self.last(self.middle(self.first(x)))
        return found.flatten(1).sum(1) + self.end(self.other(x)).flatten(1).sum(1)


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Recurrent(nn.LSTM):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2))[0].transpose(1, 2)


OBSTACLES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LSTM": (lambda: Around(Recurrent(8, 8, batch_first=True)), r"'lstm' in middle \(Recurrent\)"),
    "GroupNorm": (lambda: Around(nn.GroupNorm(2, 8)), r"'group_norm' in middle \(GroupNorm\)"),
    "reshape": (
        lambda: Around(Call(lambda x: x.view(-1, 8 * 12)), last=nn.Linear(8 * 12, 3)),
        "relies on a number of channels",
    ),
    "chunk": (
        lambda: Around(Call(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1))),
        "computes something else",
    ),
    "slice": (lambda: Around(Call(lambda x: x[:, 5:]), 3), "relies on a number of channels"),
    "index": (
        lambda: Around(Call(lambda x: (x[x > 0].sum() + x.argmax()) * x)),
        r"'__getitem__' in middle \(Call\)",
    ),
    "where": (
        lambda: Around(Call(lambda x: x * len(torch.where(x)[0]))),
        r"'where' in middle \(Call\)",
    ),
    "mT": (lambda: Around(Call(lambda x: x.mT.transpose(1, 2))), r"'mT' in middle \(Call\)"),
    "data": (lambda: Around(Call(lambda x: x.data)), r"'data' in middle \(Call\)"),
    "PReLU": (lambda: Around(nn.PReLU(8)), r"'prelu' in middle \(PReLU\)"),
    "own convolution": (
        lambda: Around(Call(lambda x: torch.conv1d(x, torch.ones(8, 8, 1).double()))),
        r"'conv1d' in middle \(Call\)",
    ),
    "subclass": (lambda: Around(type("Own", (nn.Conv1d,), {})(8, 8, 1)), r"in middle \(Own\)"),
    "pruned": (
        lambda: Around(prune.l1_unstructured(nn.Conv1d(8, 8, 1), "weight", 9)),
        "'weight' of 'middle'",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_followed_is_named_and_can_be_ignored(name: str) -> None:
    make, message = OBSTACLES[name]
    model = make()
    # Zeros show no difference between channels.
    x, criterion = torch.zeros(2, 2, 12).double(), Drawn(0, False)
    with pytest.raises(ValueError, match=message):
        sc.prune_filters(model, x, criterion, ratio=0.5)
    pruned, report = sc.prune_filters(model, x, criterion, ratio=0.5, ignore=["middle"])
    changed = [layer.name for layer in report.layers if layer.filters[0] != layer.filters[1]]
    assert changed == ["other"]
    assert pruned(X).shape == model(X).shape


@pytest.mark.parametrize(
    "middle",
    [
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x * (x.abs() >= x.mean(2, keepdim=True)),
        lambda x: torch.where(x.mean(2, keepdim=True) < 1, torch.zeros(()).double(), x),
        nn.PReLU(),
    ],
)
def test_comparisons_and_a_single_slope_treat_channels_alike(middle: Any) -> None:
    middle = middle if isinstance(middle, nn.Module) else Call(middle)
    model = nn.Sequential(
        nn.Conv1d(2, 8, 3), middle, nn.Conv1d(8, 6, 1), nn.Flatten(), nn.Linear(60, 3)
    ).double()
    pruned, report = sc.prune_filters(model, X, Drawn(0, False), ratio=0.5)
    assert report.layers[0].filters == (8, 4)
    assert torch.allclose(pruned(X), silenced(model, report)(X))
