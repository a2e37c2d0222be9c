"""What the pass that ``sc.prune_filters`` follows must show of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from model_state import everything
from networks import Drawn, classifier, data
from torch import Tensor, nn

import sparseconv as sc
from sparseconv.pruning import WHC, keep_filters

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
        with pytest.raises(ValueError, match=r"'aux\.1' is not called in eval mode.* in ignore"):
            call()
    pruned, report = sc.prune_filters(model, X, WHC(), ratio=0.5, ignore=["aux", "body"])
    assert {x.name: x.filters for x in report.layers} == {"other": (6, 3), "head": (3, 3)}
    assert [y.shape for y in pruned.train()(X)] == [(10, 3), (10, 3)]  # as fine-tuning runs it
