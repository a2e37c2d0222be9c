"""What ``sc.prune_filters`` can follow of a model, and what it names because it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from model_state import everything
from networks import Drawn, classifier, data, silenced
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import sparseconv as sc
from sparseconv.pruning import DSP, WHC, Criterion, Evolutionary, keep_filters
from sparseconv.pruning.channels import Channels

X, _ = data()


@dataclass
class Out:
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()
    name: str = "out"


class Opaque:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Returns(nn.Module):
    """A network whose classes come out in something."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.form = classifier(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.body(x))


@pytest.mark.parametrize(
    "form",
    [Out, lambda y: Out(y[:0], (y,)), lambda y: {"y": [y, None, 1, 0.5, True, "a"]}],
    ids=["dataclass", "nested", "dict"],
)
def test_classes_stay_in_whatever_is_returned(form: Callable[[Tensor], Any]) -> None:
    model = Returns(form)
    pruned, report = sc.prune_filters(model, X, Drawn(0, False), ratio=0.5)
    assert pruned.body(X).shape == model.body(X).shape
    assert [layer.filters[1] for layer in report.layers] == [4, 4, 3, 3]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Opaque, "its output holds a Opaque"),
        (lambda y: (y, Opaque(y)), "its output holds a Opaque"),
        (lambda y: [y.detach().numpy()], "its output holds a ndarray"),
        (lambda y: 3, "returned int without any"),
        (lambda y: None, "returned NoneType without any"),
        (lambda y: [], "returned list without any"),
    ],
)
def test_outputs_that_cannot_be_seen(form: Callable[[Tensor], Any], message: str) -> None:
    model = Returns(form)
    before = everything(model)
    for call in (
        lambda: sc.prune_filters(model, X, WHC(), ratio=0.5),
        lambda: keep_filters(model, X, {"body.0": [0]}),
    ):
        with pytest.raises(ValueError, match=f"the model must return tensors.*{message}"):
            call()
    assert everything(model) == before


@pytest.mark.parametrize("sparse", [False, True])
def test_a_series_without_a_batch(sparse: bool) -> None:
    model: Any = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 3, 1)).double()
    if sparse:
        model[2] = sc.SparseConv1d(8, 3, 1, density=0.5).double()
    # Of as many channels as samples nothing else would tell them apart.
    message = r"'0' must be given \(N, C, L\), a batch of series, but got \(2, 12\)"
    with pytest.raises(ValueError, match=message):
        sc.prune_filters(model, X[0], WHC(), ratio=0.5)


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


class ByPosition(ByKeyword):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.b(self.a(x).relu())).relu()
        return self.head(hidden.mean(2)).log_softmax(1)


@pytest.mark.parametrize("equivalent", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        WHC,
        lambda: DSP(X, 0.8),
        lambda: Evolutionary((X, torch.arange(len(X)) % 3), population=3, generations=2),
    ],
    ids=["WHC", "DSP", "evolution"],
)
def test_layers_called_by_keyword(make: Callable[[], Criterion], equivalent: bool) -> None:
    model = ByKeyword()
    same = ByPosition()
    same.load_state_dict(model.state_dict())
    ratio = 0.5 if make is WHC else None
    (small, report), (wanted, expected) = (
        sc.prune_filters(x, X, make(), ratio=ratio, equivalent=equivalent) for x in (model, same)
    )
    assert report.layers == expected.layers
    assert report.layers[0].filters[1] < 8
    torch.testing.assert_close(small.eval()(X), wanted.eval()(X))
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
    model = Auxiliary()
    for call in (
        lambda: sc.prune_filters(model, X, WHC(), ratio=0.5),
        lambda: keep_filters(model, X, {"other": [0]}),
    ):
        with pytest.raises(ValueError, match=r"'aux\.1' is not called.* ignore.* read its own"):
            call()
    pruned, report = sc.prune_filters(model, X, WHC(), ratio=0.5, ignore=["aux", "body"])
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


class Chosen(Criterion):
    """Some filters of the layer ``up``."""

    def __init__(self, kept: list[int]) -> None:
        self.kept = kept

    def scores(self, model: nn.Module, channels: Channels) -> Tensor:
        found = torch.zeros(channels.n_units).double()
        found[channels.layers["up"].outputs[self.kept]] = 1
        return found


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
    before = everything(model)
    calls: list[Callable[[], nn.Module]] = [
        lambda: keep_filters(model, x, {"up": kept}, ignore=["stem", "norm"]),
        lambda: (
            sc.prune_filters(
                model, x, Chosen(kept), ratio=1 - len(kept) / 16, ignore=["stem", "norm"]
            ).model
        ),
    ]
    for call in calls:
        if fits:
            small = call()
            assert torch.equal(small.up.weight, model.up.weight[kept])
            assert torch.equal(small.norm.weight, model.norm.weight)
        else:
            with pytest.raises(ValueError, match=r"computes something else: .*in ignore"):
                call()
    assert everything(model) == before


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


def test_a_masked_layer_in_an_ignored_list() -> None:
    model = Iterated()
    prune.l1_unstructured(model.steps[1], "weight", 9)
    with pytest.raises(ValueError, match=r"'weight' of 'steps\.1' is computed"):
        sc.prune_filters(model, X, WHC(), ratio=0.5)
    small, report = sc.prune_filters(model, X, WHC(), ratio=0.5, ignore=["steps"])
    assert [x.name for x in report.layers] == ["a", "rest.0", "last", "head"]
    assert torch.equal(small.steps[1](small.a(X)), model.steps[1](model.a(X)))


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


def weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return torch.nn.utils.weight_norm(layer)


def half(channels: int = 8) -> nn.Conv1d:
    return nn.Conv1d(8, channels, 1)


OBSTACLES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "LSTM": (lambda: Around(Recurrent(8, 8, batch_first=True)), r"'lstm' in middle \(Recurrent\)"),
    "GroupNorm": (lambda: Around(nn.GroupNorm(2, 8)), r"'group_norm' in middle \(GroupNorm\)"),
    "ConvTranspose": (lambda: Around(nn.ConvTranspose1d(8, 8, 1)), r"in middle \(ConvTranspose1d"),
    "reshape": (
        lambda: Around(Call(lambda x: x.view(-1, 8 * 12)), last=nn.Linear(8 * 12, 3)),
        "relies on a number of channels",
    ),
    "view": (lambda: Around(Call(lambda x: x.view(-1, 8, 12))), "relies on a number of channels"),
    "branches": (
        lambda: Around(Call(lambda x: x[:, :4] - x[:, 4:] / 2), 4),
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
    "glu": (lambda: Around(nn.GLU(1), 4), r"'glu' in middle \(GLU\)"),
    "own convolution": (
        lambda: Around(Call(lambda x: torch.conv1d(x, torch.ones(8, 8, 1).double()))),
        r"'conv1d' in middle \(Call\)",
    ),
    "subclass": (lambda: Around(type("Own", (nn.Conv1d,), {})(8, 8, 1)), r"in middle \(Own\)"),
    "weight_norm": (lambda: Around(weight_norm(half())), "'weight' of 'middle' is computed"),
    "parametrized": (
        lambda: Around(parametrizations.weight_norm(half())),
        "'weight' of 'middle' is computed",
    ),
    "pruned": (lambda: Around(prune.l1_unstructured(half(), "weight", 9)), "'weight' of 'middle'"),
    "pruned bias": (lambda: Around(prune.random_unstructured(half(), "bias", 2)), "'bias' of 'mid"),
}


@pytest.mark.parametrize("equivalent", [False, True])
@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_followed_is_named_and_can_be_ignored(name: str, equivalent: bool) -> None:
    make, message = OBSTACLES[name]
    model = make()
    model(X)
    before = everything(model)
    # Zeros show no difference between channels.
    x, criterion = torch.zeros(2, 2, 12).double(), Drawn(0, False)
    with pytest.raises(ValueError, match=message):
        sc.prune_filters(model, x, criterion, ratio=0.5, equivalent=equivalent)
    assert everything(model) == before
    pruned, report = sc.prune_filters(
        model, x, criterion, ratio=0.5, ignore=["middle"], equivalent=equivalent
    )
    changed = [layer.name for layer in report.layers if layer.filters[0] != layer.filters[1]]
    assert changed == ["other"]
    assert pruned(X).shape == model(X).shape
    assert everything(model) == before


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


def shared() -> nn.Module:
    model = Around(half())
    model.last.weight = model.end.weight
    return model


def in_a_list() -> nn.Module:
    model = Call(lambda x: x)
    model.layers = [classifier()]
    return model


@torch.jit.script
def compiled(x: Tensor) -> Tensor:
    return torch.relu(x) * 2


UNSUPPORTED: list[tuple[Callable[[], nn.Module], str]] = [
    (shared, "'last' and 'end' share a parameter; only a layer that is used twice"),
    (lambda: classifier().to("meta"), "real numbers, but '0.weight' is of torch.float64 on meta"),
    (lambda: classifier().to(torch.complex64), "real numbers, but '0.weight' is of .*complex64"),
    (lambda: torch.compile(classifier(), backend="eager"), "'it' is compiled; prune its _orig_mod"),
    (
        lambda: nn.Sequential(torch.compile(classifier(), backend="eager")),
        "before torch.compile, but '0' is compiled",
    ),
    (
        lambda: nn.Sequential(type("Own", (nn.Conv1d,), {})(2, 8, 1).double(), half()),
        r"anything, in 0 \(Own\)",
    ),
    (lambda: nn.Sequential(nn.LazyConv1d(8, 3)), "'0.weight' has no shape yet"),
    (in_a_list, r"a module stands in Call\.layers, .*; use nn\.ModuleList"),
    (
        lambda: nn.Sequential(classifier(), torch.jit.script(nn.Sequential(nn.Tanh()))),
        "'1' is a ScriptModule; prune before torch.jit",
    ),
    (
        lambda: Around(Call(lambda x: compiled(x))),
        r"code that fails when watched.* in middle \(Call\)",
    ),
    (
        lambda: sc.prune_filters(classifier(), X, WHC(), ratio=0.5, equivalent=True).model,
        r"the model holds compressors; sparseconv\.pruning\.merge",
    ),
    (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.Linear(10, 4)).double(),
        r"a layer along another dimension than the channels' in 1 \(Linear\)",
    ),
]


@pytest.mark.parametrize(("make", "message"), UNSUPPORTED)
def test_models_that_it_refuses(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sc.prune_filters(make(), X, WHC(), ratio=0.5)
